"""The audit, of any chain whatever: sound as it was signed, and not with any one thing changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from seriatim.model import Counted, Entry, Record, Skip, Void, canonical_meta
from seriatim.signing import JsonWebKeySet, Signer

Content = tuple[dict[str, str], bool] | int
"""Of a chain: an entry's meta and whether its client signed it; numbers to skip; or 0, to void an entry."""
NO_FAULTS: Mapping[int, Mapping[str, Any]] = {}
CHAIN_META = st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2)
CONTENTS: st.SearchStrategy[Content] = st.one_of(st.tuples(CHAIN_META, st.booleans()), st.integers(0, 3))
CHAINS = st.lists(CONTENTS, min_size=1, max_size=6)
SIGNED_FIELDS = {
    "series": ("genesis",),
    "entry": ("position", "id", "code", "numbers", "date", "created_at", "previous_id", "meta", "sig", "receipt"),
    "skip": ("position", "k", "counter", "period", "from", "to", "reason", "actor", "created_at", "receipt"),
    "void": ("position", "k", "voids", "reason", "actor", "created_at", "receipt"),
    "end": ("series", "position", "hash"),
}
SERIES = "5e7e0000-0000-4000-8000-000000000000"
START = 7
AT = 1_795_000_000_000


@pytest.fixture(scope="module", params=["ES256", "Ed25519"])
def signer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Signer:
    key = ECKey.generate_key("P-256") if request.param == "ES256" else OKPKey.generate_key("Ed25519")
    path = tmp_path_factory.mktemp("key") / "key.json"
    path.write_text(json.dumps(key.as_dict(private=True)))
    return Signer(path, "Issuer")


def chain(
    signer: Signer, contents: Sequence[Content], faults: Mapping[int, Mapping[str, Any]] = NO_FAULTS
) -> list[dict[str, Any]]:
    """An export of a series, made of what the worker signs with and of nothing else; `faults` are signed, too."""
    genesis = rfc8785.dumps({"v": 1, "kind": "genesis", "series": SERIES, "start": START, "prefix": "A-"}).decode()
    head, lines = digest(genesis.encode()), []
    for nth, record in enumerate(records(contents), 1):
        faulty = msgspec.structs.replace(record, **faults.get(nth, {}))
        receipt = signer.sign(signer.payload(faulty), head)
        head = digest(receipt.encode())
        lines.append(line(faulty, receipt))
    position, k = (lines[-1]["position"], lines[-1].get("k", 0)) if lines else (0, 0)
    end = {"kind": "end", "series": SERIES, "position": position, "k": k, "hash": head}
    return [{"kind": "series", "genesis": genesis, "name": "label"}, *lines, end]


def records(contents: Sequence[Content]) -> Iterator[Record]:
    """What a service records; a void that finds no entry is left out."""
    position, k, number, previous, void = 0, 0, START - 1, None, 0
    for content in contents:
        if isinstance(content, tuple):
            meta, signed = content
            position, k, number = position + 1, 0, number + 1
            yield entry(position, number, previous, canonical_meta(meta), CLIENT_SIG if signed else None)
            previous = entry_id(position)
        elif content:
            k += 1
            yield Skip(SERIES, position, k, "inc", "", number + 1, number + content, "why", "who", AT)
            number += content
        elif void < position:
            k, void = k + 1, void + 1
            yield Void(SERIES, position, k, void, "why", "who", AT)


def entry_id(position: int) -> str:
    return f"00000000-0000-4000-8000-{position:012d}"


def entry(position: int, number: int, previous: str | None, meta: bytes, sig: str | None) -> Entry:
    return Entry(
        series=SERIES,
        id=entry_id(position),
        position=position,
        code=f"A-{number}",
        numbers=(Counted("inc", "", number),),
        date="2026-11-21",
        created_at=AT + position,
        previous_id=previous,
        meta=meta,
        sig=sig,
        fingerprint=b"",
    )


def line(record: Record, receipt: str) -> dict[str, Any]:
    """A record as the documentation says that an export carries it; on purpose not the code under test."""
    values = msgspec.structs.asdict(record) | {"receipt": receipt}
    if isinstance(record, Entry):
        fields = {name: values[name] for name in SIGNED_FIELDS["entry"]} | {"meta": record.meta.decode()}
        return msgspec.to_builtins({"kind": "entry"} | fields)  # type: ignore[no-any-return]
    kind = "skip" if isinstance(record, Skip) else "void"
    values |= {"from": values.get("first"), "to": values.get("last")}
    return {"kind": kind} | {name: values[name] for name in SIGNED_FIELDS[kind]}


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
def test_a_chain_that_nobody_touched_is_sound(signer: Signer, data: st.DataObject, contents: list[Content]) -> None:
    # Given any chain, with whatever label, then there is no finding
    lines = chain(signer, contents)
    lines[0]["name"] = data.draw(st.text())
    assert audit(signer, lines) == []


@given(data=st.data(), contents=CHAINS)
def test_any_changed_field_is_found_somehow(signer: Signer, data: st.DataObject, contents: list[Content]) -> None:
    # Given any chain with any field of any line changed
    lines = chain(signer, contents)
    touched = data.draw(st.sampled_from(lines))
    name = data.draw(st.sampled_from(SIGNED_FIELDS[touched["kind"]]))
    touched[name] = another(data, touched[name])

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
    for name in ("position", "k"):
        if name in lines[at] and name in lines[to]:
            lines[at][name], lines[to][name] = lines[to][name], lines[at][name]


@pytest.mark.parametrize("tamper", [_delete, _repeat, _move, _swap, _swap_contents])
@given(
    data=st.data(), contents=st.lists(st.tuples(CHAIN_META, st.booleans()) | st.integers(1, 3), min_size=2, max_size=5)
)
def test_any_record_out_of_place_is_found(
    signer: Signer,
    tamper: Callable[[list[Any], int, int], None],
    data: st.DataObject,
    contents: list[Content],
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
        ({"id": "00000000-0000-4000-8000-000000000002"}, [("repeated_id", 3), ("broken_link", 4)]),
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


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ({"first": 9}, [("number_gap", 1)]),
        ({"first": 7}, [("number_gap", 1)]),
        ({"last": 20}, [("number_gap", 2)]),
        ({"last": 8}, [("number_gap", 2)]),
        ({"first": 8, "last": 7}, [("number_gap", 1), ("number_gap", 2)]),
        ({"counter": "incYearly"}, [("number_gap", 1), ("number_gap", 2)]),
        ({"period": "2026"}, [("number_gap", 1), ("number_gap", 2)]),
        ({"k": 2}, [("missing_record", 1), ("out_of_order", 1), ("broken_link", 2)]),
    ],
)
def test_a_skip_that_explains_something_else_is_found(
    signer: Signer, fault: dict[str, Any], found: list[tuple[str, int]]
) -> None:
    # Given a chain in which a skip of 8 to 10 was signed with a fault, then the gap is not explained
    lines = chain(signer, [({}, False), 3, 0, ({}, False)], {2: fault})
    assert [(one.kind, one.position) for one in audit(signer, lines)] == found


@pytest.mark.parametrize("voids", [0, -1, 1, 3])
def test_a_void_of_what_cannot_be_void_is_found(signer: Signer, voids: int) -> None:
    # Given two entries and two voids, the second of no entry, or of one that is void already or is still to come
    lines = chain(signer, [({}, False), ({}, False), 0, 0, ({}, False)], {4: {"voids": voids}})
    assert [(one.kind, one.position) for one in audit(signer, lines)] == [("wrong_void", 2)]


def test_a_gap_without_a_skip_is_found_and_with_it_is_none(signer: Signer) -> None:
    # Given a chain with a skip, when the skip is taken out and everything signed again
    assert audit(signer, chain(signer, [({}, False), 3, ({}, False)])) == []
    without = chain(signer, [({}, False), ({}, False)], {2: {"numbers": (Counted("inc", "", 11),), "code": "A-11"}})

    # Then the gap is what is left
    assert [(one.kind, one.position) for one in audit(signer, without)] == [("number_gap", 2)]
