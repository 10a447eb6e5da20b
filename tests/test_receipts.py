"""Receipts of single entries: what a service answered holds, and nothing that was changed in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey

from blocking import calling
from forgery import CLIENT_SIG, claims, forge
from seriatim.client import Client, EntryAnswer, JsonWebKeySet, verify_entry
from seriatim.errors import ConfigError, Unproven, Unsettled
from seriatim.messages import VoidAnswer
from stack import Up, new_id

SIGNED = sorted(set(EntryAnswer.__struct_fields__) - {"updated_at", "void"})
CHARACTERS = "ABCabc019-_.=+/ \n"


class Real:
    """Settled entries of a running service, and its public keys."""

    def __init__(self, up: Up, client: Client) -> None:
        series = client.put_series(new_id(), format="%incYearly%/%yearLong%-%inc%", padding=3, start=7).id
        first = client.issue(series, meta={"n": "1"})
        client.issue(series, meta={"ключ": "é", "b": "", "a": "\U0001f4a9"}, sig=CLIENT_SIG)
        client.issue(series)
        client.void(series, first.id, "wrong customer")
        up.settled()
        self.entries = list(client.entries(series))
        with up.client() as http:
            self.jwks = http.get("/.well-known/jwks.json").content
        self.keys = JsonWebKeySet(self.jwks)


@pytest.fixture(scope="module")
def real(shared_up: Up) -> Iterator[Real]:
    with calling("Client", shared_up.url, shared_up.key) as client:
        yield Real(shared_up, client)


def changed(entry: EntryAnswer, **changes: Any) -> EntryAnswer:
    return msgspec.structs.replace(entry, **changes)


def with_receipt(entry: EntryAnswer, receipt: str) -> EntryAnswer:
    return changed(entry, sigs=[*entry.sigs[:-1], receipt])


def another(data: st.DataObject, value: Any) -> Any:
    """A value of the same kind as this one, and not this one."""
    kinds: dict[type, st.SearchStrategy[Any]] = {
        int: st.integers(-1, 2**53),
        str: st.text(max_size=5) | st.sampled_from([f"{value}x", str(value)[:-1], str(value).swapcase()]),
        type(None): st.text(max_size=5),
        dict: st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
        list: st.deferred(lambda: st.lists(st.sampled_from([CLIENT_SIG, *value]), max_size=4)),
    }
    return data.draw(kinds[type(value)].filter(lambda one: one != value))


def test_what_a_service_answers_holds(real: Real) -> None:
    # Given settled entries: one void, one that its client signed, one with nothing
    assert [(entry.void is None, len(entry.sigs)) for entry in real.entries] == [(False, 1), (True, 2), (True, 1)]

    # When each is verified offline, with and without its issuer's name, then it holds
    for entry in real.entries:
        verify_entry(entry, real.keys)
        verify_entry(entry, real.keys, issuer="seriatim")


def test_entries_that_were_kept_as_json_hold_later(real: Real) -> None:
    # Given entries that were kept as JSON, when they are read again, then they still hold
    kept = msgspec.json.encode(real.entries)
    for entry in msgspec.json.decode(kept, type=list[EntryAnswer]):
        verify_entry(entry, real.keys)


@settings(deadline=None)
@given(data=st.data())
def test_any_changed_field_is_found(real: Real, data: st.DataObject) -> None:
    # Given an entry with any signed field changed, when it is verified, then that is found
    entry = data.draw(st.sampled_from(real.entries))
    name = data.draw(st.sampled_from(SIGNED))
    with pytest.raises(Unproven):
        verify_entry(changed(entry, **{name: another(data, getattr(entry, name))}), real.keys)


@settings(deadline=None)
@given(data=st.data())
def test_any_changed_field_of_a_void_is_found(real: Real, data: st.DataObject) -> None:
    # Given a void entry, when any field of its void is changed, then that is found
    void = real.entries[0].void
    assert void is not None
    name = data.draw(st.sampled_from(VoidAnswer.__struct_fields__))
    forged = msgspec.structs.replace(void, **{name: another(data, getattr(void, name))})
    with pytest.raises(Unproven):
        verify_entry(changed(real.entries[0], void=forged), real.keys)


@settings(deadline=None)
@given(data=st.data())
def test_any_changed_character_of_a_receipt_is_found(real: Real, data: st.DataObject) -> None:
    # Given a receipt in which a character is another, is gone, or has another one before it
    entry = data.draw(st.sampled_from(real.entries))
    receipt = entry.sigs[-1]
    at = data.draw(st.integers(0, len(receipt) - 1))
    character, cut = data.draw(st.sampled_from(["", *CHARACTERS])), data.draw(st.integers(0, 1))
    forged = receipt[:at] + character + receipt[at + cut :]

    # When the entry is verified, then that is found, also where the bytes that it stands for are the same
    if forged != receipt:
        with pytest.raises(Unproven):
            verify_entry(with_receipt(entry, forged), real.keys)


@settings(deadline=None)
@given(data=st.data())
def test_a_receipt_that_another_key_has_signed_does_not_hold(real: Real, data: st.DataObject) -> None:
    # Given somebody who changes an entry and signs it again, under the service's kid or their own
    key = ECKey.generate_key("P-256")
    kid = data.draw(st.sampled_from([json.loads(real.jwks)["keys"][0]["kid"], key.thumbprint()]))
    entry = data.draw(st.sampled_from(real.entries))
    receipt = forge(entry.sigs[-1], key, kid, code="X-1")
    with pytest.raises(Unproven):
        verify_entry(changed(entry, code="X-1", sigs=[*entry.sigs[:-1], receipt]), real.keys)


def test_the_receipt_of_another_record_does_not_hold(real: Real) -> None:
    # Given an entry with the receipt of another one, of its own void, and of another's void
    first, second, third = real.entries
    assert first.void is not None
    for entry, receipt in ((first, third.sigs[-1]), (first, first.void.sig), (third, first.void.sig)):
        with pytest.raises(Unproven, match="differs from its receipt in"):
            verify_entry(with_receipt(entry, receipt or ""), real.keys)
    for entry in (second, third):
        with pytest.raises(Unproven, match="voids"):
            verify_entry(changed(entry, void=first.void), real.keys)


def test_what_has_no_receipt_yet_is_said_to_have_none(real: Real) -> None:
    # Given entries without receipts, one of them with its client's signature, and a void without
    first, second, third = real.entries
    assert first.void is not None
    assert second.sigs[0] == CLIENT_SIG
    unsettled = changed(first, void=msgspec.structs.replace(first.void, sig=None))
    for entry in (changed(second, sigs=[CLIENT_SIG]), changed(third, sigs=[]), unsettled):
        # When they are verified, then they are told from those that are wrong
        with pytest.raises(Unsettled, match="no receipt yet"):
            verify_entry(entry, real.keys)


def test_trust_is_in_the_keys_that_are_given(real: Real) -> None:
    # Given the keys of somebody else, no keys, and something else, when an entry is verified, then it does not hold
    other = json.dumps({"keys": [ECKey.generate_key("P-256").as_dict(private=False) | {"kid": "other"}]})
    for keys in (other.encode(), b'{"keys": []}'):
        with pytest.raises(Unproven, match="none of those given"):
            verify_entry(real.entries[0], JsonWebKeySet(keys))
    with pytest.raises(ConfigError, match="not a JSON Web Key Set"):
        JsonWebKeySet(b"<html>")
    with pytest.raises(Unproven, match="iss"):
        verify_entry(real.entries[0], real.keys, issuer="somebody else")


def test_a_receipt_covers_all_of_an_entry_but_when_it_changed_last(real: Real) -> None:
    # Given what a receipt says, then each field of an entry is in it, under its own name or another, or as its hash
    said = claims(real.entries[1].sigs[-1])
    names = {"series_id": "series", "number": "numbers", "meta": "meta_sha256", "sigs": "sig_sha256"}
    assert {names.get(name, name) for name in SIGNED} == set(said) - {"v", "kind", "iss", "prev"}
