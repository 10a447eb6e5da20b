"""The audit, of any chain whatever: sound as it was signed, and not with any one thing changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OKPKey

from forgery import CLIENT_SIG, digest
from seriatim import verify
from seriatim.errors import ConfigError
from seriatim.model import Counted, Entry, canonical_meta
from seriatim.signing import JsonWebKeySet, Signer

NO_FAULTS: Mapping[int, Mapping[str, Any]] = {}
CHAIN_META = st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2)
CHAINS = st.lists(st.tuples(CHAIN_META, st.booleans()), min_size=1, max_size=5)
SIGNED_FIELDS = {
    "series": ("genesis",),
    "entry": ("position", "id", "code", "numbers", "date", "created_at", "previous_id", "meta", "sig", "receipt"),
    "end": ("series", "position", "hash"),
}


@pytest.fixture(scope="module", params=["ES256", "Ed25519"])
def signer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Signer:
    key = ECKey.generate_key("P-256") if request.param == "ES256" else OKPKey.generate_key("Ed25519")
    path = tmp_path_factory.mktemp("key") / "key.json"
    path.write_text(json.dumps(key.as_dict(private=True)))
    return Signer(path, "Issuer")


def chain(
    signer: Signer, contents: list[tuple[dict[str, str], bool]], faults: Mapping[int, Mapping[str, Any]] = NO_FAULTS
) -> list[dict[str, Any]]:
    """An export of a series, made of what the worker signs with and of nothing else; `faults` are signed, too."""
    series, start, previous = "5e7e0000-0000-4000-8000-000000000000", 7, None
    genesis = rfc8785.dumps({"v": 1, "kind": "genesis", "series": series, "start": start, "prefix": "A-"}).decode()
    head, records = digest(genesis.encode()), []
    for position, (meta, signed) in enumerate(contents, 1):
        entry = Entry(
            series=series,
            id=f"00000000-0000-4000-8000-{position:012d}",
            position=position,
            code=f"A-{start + position - 1}",
            numbers=(Counted("inc", "", start + position - 1),),
            date="2026-11-21",
            created_at=1_795_000_000_000 + position,
            previous_id=previous,
            meta=canonical_meta(meta),
            sig=CLIENT_SIG if signed else None,
            fingerprint=b"",
        )
        entry = msgspec.structs.replace(entry, **faults.get(position, {}))
        receipt = signer.sign(entry, head)
        head, previous = digest(receipt.encode()), entry.id
        fields = {name: getattr(entry, name) for name in SIGNED_FIELDS["entry"]}
        records.append(msgspec.to_builtins(fields | {"kind": "entry", "meta": entry.meta.decode(), "receipt": receipt}))
    end = {"kind": "end", "series": series, "position": len(records), "hash": head}
    return [{"kind": "series", "genesis": genesis, "name": "label"}, *records, end]


def audit(signer: Signer, lines: list[dict[str, Any]]) -> list[verify.Finding]:
    keys = JsonWebKeySet(b'{"keys":[' + signer.public_jwk.encode() + b"]}")
    audits = list(verify.audit_export([msgspec.json.encode(line) for line in lines], keys, {}))
    return audits[-1].findings


def another(data: st.DataObject, value: Any) -> Any:
    """A value of the same kind as this one, and not this one."""
    if isinstance(value, tuple | list):
        changed = copy.deepcopy(list(value))
        name = data.draw(st.sampled_from(sorted(changed[0])))
        changed[0][name] = another(data, changed[0][name])
        return changed
    kinds: dict[type, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**63), 2**63 - 1),
        str: st.text(max_size=5) | st.just(f"{value}x") | st.just(str(value)[:-1]) | st.just(str(value)[::-1]),
        type(None): st.text(max_size=5),
    }
    return data.draw(kinds[type(value)].filter(lambda one: one != value))


@given(data=st.data(), contents=CHAINS)
def test_a_chain_that_nobody_touched_is_sound(
    signer: Signer, data: st.DataObject, contents: list[tuple[dict[str, str], bool]]
) -> None:
    # Given any chain, with whatever label, then there is no finding
    lines = chain(signer, contents)
    lines[0]["name"] = data.draw(st.text())
    assert audit(signer, lines) == []


@given(data=st.data(), contents=CHAINS)
def test_any_changed_field_is_found_somehow(
    signer: Signer, data: st.DataObject, contents: list[tuple[dict[str, str], bool]]
) -> None:
    # Given any chain with any field of any line changed
    lines = chain(signer, contents)
    line = data.draw(st.sampled_from(lines))
    name = data.draw(st.sampled_from(SIGNED_FIELDS[line["kind"]]))
    line[name] = another(data, line[name])

    # When it is audited, then something is found; a genesis that is none may also stop it
    try:
        assert audit(signer, lines) != []
    except ConfigError:
        assert name == "genesis"


def _delete(lines: list[Any], at: int, _to: int) -> None:
    del lines[at]


def _repeat(lines: list[Any], at: int, to: int) -> None:
    lines.insert(max(at, to), lines[at])


def _move(lines: list[Any], at: int, to: int) -> None:
    lines.insert(to, lines.pop(at))


def _swap(lines: list[Any], at: int, to: int) -> None:
    lines[at], lines[to] = lines[to], lines[at]


def _swap_contents(lines: list[Any], at: int, to: int) -> None:
    _swap(lines, at, to)
    lines[at]["position"], lines[to]["position"] = lines[to]["position"], lines[at]["position"]


@pytest.mark.parametrize("tamper", [_delete, _repeat, _move, _swap, _swap_contents])
@given(data=st.data(), contents=st.lists(st.tuples(CHAIN_META, st.booleans()), min_size=2, max_size=5))
def test_any_record_out_of_place_is_found(
    signer: Signer,
    tamper: Callable[[list[Any], int, int], None],
    data: st.DataObject,
    contents: list[tuple[dict[str, str], bool]],
) -> None:
    # Given any chain in which a record was removed, repeated, moved or swapped with another
    lines = chain(signer, contents)
    places = st.integers(1, len(contents))
    at = data.draw(places)
    tamper(lines, at, data.draw(places.filter(lambda one: one != at)))

    # When it is audited, then something is found
    assert audit(signer, lines) != []


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ({"previous_id": "00000000-0000-4000-8000-000000000001"}, [("broken_link", 3)]),
        ({"previous_id": None}, [("broken_link", 3)]),
        ({"numbers": (Counted("inc", "", 10),)}, [("wrong_code", 3), ("number_gap", 3), ("number_gap", 4)]),
        ({"code": "A-10"}, [("wrong_code", 3), ("repeated_code", 4)]),
        ({"date": "2026-13-01"}, [("wrong_code", 3)]),
        ({"numbers": (Counted("incYearly", "2026", 9),)}, [("wrong_code", 3), ("number_gap", 3), ("number_gap", 4)]),
        (
            {"numbers": (Counted("inc", "", 8),), "code": "A-8"},
            [("repeated_code", 3), ("number_gap", 3), ("number_gap", 4)],
        ),
        ({"id": "00000000-0000-4000-8000-000000000002"}, [("repeated_id", 3)]),
        ({"position": 9}, [("missing_record", 3), ("out_of_order", 4), ("added_record", 5)]),
    ],
)
def test_a_fault_that_the_service_itself_signed_is_found(
    signer: Signer, fault: dict[str, Any], found: list[tuple[str, int]]
) -> None:
    # Given a chain that was signed with a fault in its third record, by a service that has gone wrong
    lines = chain(signer, [({}, False)] * 4, {3: fault})

    # When it is audited, then valid receipts do not excuse it
    assert [(one.kind, one.position) for one in audit(signer, lines)] == found
