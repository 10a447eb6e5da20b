"""Whether one OpenAPI document (3.1) does all that another (3.0) says: what is missing, path by path, schema by schema.

Of what callers send, ours must take all that the other takes; of what they are sent, ours must be what the other says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]


def missing(seed: Document, ours: Document) -> list[str]:
    """What a client written for `seed` would miss in `ours`."""
    return [
        gap
        for path, methods in seed["paths"].items()
        for method, wanted in methods.items()
        for gap in _Comparison(seed, ours, f"{method} {path}").gaps(wanted, ours["paths"].get(path, {}).get(method))
    ]


class _Comparison:
    def __init__(self, seed: Document, ours: Document, place: str) -> None:
        self._seed = seed
        self._ours = ours
        self._place = place

    def gaps(self, wanted: Document, given: Document | None) -> Iterator[str]:
        if given is None:
            yield f"{self._place}: is not there"
            return
        yield from self._parameters(wanted, given)
        yield from self._security(wanted, given)
        if "requestBody" in wanted:
            body = given.get("requestBody", {"content": {}})
            yield from self._contents(wanted["requestBody"], body, "request", told=False)
            if body.get("required") and not wanted["requestBody"].get("required"):
                yield f"{self._place}: requires a body"
        elif given.get("requestBody", {}).get("required"):
            yield f"{self._place}: requires a body"
        for status, answer in wanted["responses"].items():
            if status not in given["responses"]:
                yield f"{self._place}: has no {status}"
            else:
                found = resolved(self._ours, given["responses"][status])
                yield from self._contents(resolved(self._seed, answer), found, status, told=True)

    def _parameters(self, wanted: Document, given: Document) -> Iterator[str]:
        known = {(one["name"], one["in"]): one for one in given["parameters"]}
        for one in wanted.get("parameters", ()):
            ours = known.pop((one["name"], one["in"]), None)
            if ours is None:
                yield f"{self._place}: has no parameter {one['name']}"
            else:
                yield from self._schemas(one["schema"], ours["schema"], one["name"], told=False)
                if ours["required"] and not one.get("required"):
                    yield f"{self._place}: requires parameter {one['name']}"
        for name, _ in (name for name, one in known.items() if one["required"]):
            yield f"{self._place}: requires another parameter, {name}"

    def _security(self, wanted: Document, given: Document) -> Iterator[str]:
        for scheme in _schemes(self._seed, wanted.get("security", self._seed["security"])):
            if scheme not in _schemes(self._ours, given["security"]):
                yield f"{self._place}: cannot be called with {' '.join(scheme)}"

    def _contents(self, wanted: Document, given: Document, name: str, *, told: bool) -> Iterator[str]:
        for media_type, content in wanted["content"].items():
            if media_type not in given.get("content", {}):
                yield f"{self._place}: {name} is not {media_type}"
            else:
                yield from self._schemas(content["schema"], given["content"][media_type]["schema"], name, told=told)

    def _schemas(self, wanted: Document, given: Document, name: str, *, told: bool) -> Iterator[str]:
        """What our schema lacks; `told` is whether callers are sent it."""
        wanted, given = resolved(self._seed, wanted), resolved(self._ours, given)
        theirs, ours = _types(wanted), _types(given)
        if not (ours <= theirs if told else theirs <= ours):
            yield f"{self._place}: {name} is of type {_list(ours)}, not {_list(theirs)}"
        for key, one in wanted.get("properties", {}).items():
            if key not in given.get("properties", {}):
                yield f"{self._place}: {name} has no {key}"
            else:
                yield from self._schemas(one, given["properties"][key], f"{name}.{key}", told=told)
        for inside in ("items", "additionalProperties"):
            if isinstance(wanted.get(inside), dict):
                yield from self._schemas(wanted[inside], given.get(inside, {}), f"{name}[]", told=told)
        theirs, ours = set(wanted.get("required", ())), set(given.get("required", ()))
        for key in sorted(theirs - ours if told else ours - theirs):
            yield f"{self._place}: {name}.{key} is {'not there always' if told else 'required'}"


def resolved(document: Document, schema: Document) -> Document:
    """What a reference stands for, the rest as it is."""
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def _types(schema: Document) -> set[str]:
    named = schema.get("type", [])
    types = {named} if isinstance(named, str) else set(named)
    types |= {"null"} if schema.get("nullable") else set()
    for one in schema.get("anyOf", ()):
        types |= {"object"} if "$ref" in one else _types(one)
    return types or {"anything"}


def _schemes(document: Document, security: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    schemes = document["components"]["securitySchemes"]
    found = [schemes[name] for one in security for name in one]
    return [(one["type"], one.get("scheme", ""), one.get("in", ""), one.get("name", "")) for one in found]


def _list(types: set[str]) -> str:
    return " or ".join(sorted(types))
