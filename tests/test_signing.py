"""Receipts: canonical payloads, keys, links. What is signed is checked with a library that knows nothing of us."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from seriatim import signing
from seriatim.errors import ConfigError
from seriatim.model import COUNTER_MAX, Counted, Entry, Numbering, Series, canonical_meta
from seriatim.signing import BadSignature, JsonWebKeySet, Signer, UnknownKey

COUNTERS = st.builds(Counted, counter=st.text(), period=st.text(), value=st.integers(0, COUNTER_MAX))
ENTRIES = st.builds(
    Entry,
    series=st.text(),
    id=st.text(),
    position=st.integers(1, COUNTER_MAX),
    code=st.text(),
    numbers=st.lists(COUNTERS, min_size=1, max_size=3).map(tuple),
    date=st.text(),
    created_at=st.integers(0, 4_102_444_799_999),
    previous_id=st.none() | st.text(),
    meta=st.dictionaries(st.text(), st.text(), max_size=3).map(canonical_meta),
    sig=st.none() | st.text(),
    fingerprint=st.binary(min_size=8, max_size=8),
)


def make_entry(position: int, code: str = "A-1") -> Entry:
    return Entry(
        series="5e7e0000-0000-4000-8000-000000000000",
        id=f"00000000-0000-4000-8000-{position:012d}",
        position=position,
        code=code,
        numbers=(Counted("inc", "", position),),
        date="2026-11-21",
        created_at=1_795_000_000_000 + position,
        previous_id=None if position == 1 else f"00000000-0000-4000-8000-{position - 1:012d}",
        meta=b"{}",
        sig=None,
        fingerprint=b"",
    )


def make_series(numbering: Numbering) -> Series:
    return Series(
        pk=1,
        id="5e7e0000-0000-4000-8000-000000000000",
        ordinal=1,
        company="c0c0c0c0-0000-4000-8000-000000000000",
        type="invoice",
        name="Sales",
        description="",
        code="",
        numbering=numbering,
        sig=None,
        active=True,
        default=True,
        version=1,
        shard=3,
        loaded_epoch=None,
        genesis=None,
        position=0,
        k=0,
        head=None,
        claims=0,
        created_at=1_795_000_000_000,
        updated_at=1_795_000_000_000,
    )


def key_file(path: Path, key: ECKey | OKPKey | RSAKey) -> Path:
    path.write_text(json.dumps(key.as_dict(private=True)))
    return path


def jwks(*signers: Signer) -> bytes:
    return b'{"keys":[' + ",".join(one.public_jwk for one in signers).encode() + b"]}"


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """A signer with the key that a first start makes."""
    signing.create_key(tmp_path / "key.json")
    return Signer(tmp_path / "key.json", "Issuer")


@pytest.fixture(params=["ES256", "Ed25519"])
def any_signer(request: pytest.FixtureRequest, tmp_path: Path) -> Signer:
    """A signer of either algorithm."""
    key = ECKey.generate_key("P-256") if request.param == "ES256" else OKPKey.generate_key("Ed25519")
    return Signer(key_file(tmp_path / "key.json", key), "Issuer")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signer, str]:
    """A signer and a receipt, for all examples of a property."""
    path = tmp_path_factory.mktemp("signed") / "key.json"
    signer = Signer(key_file(path, ECKey.generate_key("P-256")), "Issuer")
    return signer, signer.sign(signer.payload(make_entry(1)), "link")


@given(ENTRIES, st.text(), st.text())
@example(make_entry(1, '"\\/\b\f\n\r\t\x00\x1f\x7f\x80\u2028\uffff\U0001f4a9'), "\U0010ffff", "")
def test_a_payload_is_the_canonical_json_of_rfc_8785(entry: Entry, issuer: str, prev: str) -> None:
    # Given any entry, when the payload of its receipt is made
    payload = signing.payload(entry, issuer, prev)

    # Then an implementation of the RFC writes the same bytes, and they say what the entry is
    said = json.loads(payload)
    assert rfc8785.dumps(said) == payload
    assert said.pop("iss") == issuer
    assert said.pop("prev") == prev
    assert said == signing.claims(entry)
    assert ("previous_id" in said) == (entry.previous_id is not None)
    assert ("sig_sha256" in said) == (entry.sig is not None)


@given(ENTRIES, st.text())
@example(make_entry(1, '"prev":""'), '"prev":""')
def test_a_payload_has_one_place_for_its_link(entry: Entry, issuer: str) -> None:
    # Given any entry, when its payload is made without a link
    unlinked = signing.payload(entry, issuer, "")

    # Then the place is found, and with a link there it is the payload with that link
    link = signing.digest(b"")
    assert unlinked.count(signing.UNLINKED) == 1
    assert unlinked.replace(signing.UNLINKED, f'"prev":"{link}"'.encode()) == signing.payload(entry, issuer, link)


@given(st.builds(Numbering, prefix=st.text(), padding=st.integers(0, 20), suffix=st.text()))
@example(Numbering('"\\\x7f\u2028\U0001f4a9', 3, "\uffff", COUNTER_MAX))
def test_a_genesis_is_the_canonical_json_of_rfc_8785(numbering: Numbering) -> None:
    # Given any numbering, when its series' genesis is made, then it is canonical and says how the series counts
    said = json.loads(signing.genesis(make_series(numbering)))
    assert rfc8785.dumps(said) == signing.genesis(make_series(numbering))
    assert (said["prefix"], said["padding"], said["suffix"]) == (numbering.prefix, numbering.padding, numbering.suffix)
    assert said["start"] == numbering.first


def test_a_receipt_verifies_with_joserfc_alone(any_signer: Signer) -> None:
    # Given a receipt, and the key set that the service publishes
    receipt = any_signer.sign(any_signer.payload(make_entry(1)), "link")
    published = KeySet.import_key_set(json.loads(jwks(any_signer)))

    # When another library verifies it by the kid
    opened = jws.deserialize_compact(receipt, published, algorithms=[any_signer.algorithm])

    # Then it holds, under the header and with the payload that the design promises
    assert opened.headers() == {"alg": any_signer.algorithm, "kid": any_signer.kid, "typ": "seriatim-receipt"}
    assert opened.payload == signing.payload(make_entry(1), "Issuer", "link")
    assert not any(key.is_private for key in published.keys)


def test_algorithms_go_by_their_names_of_today(tmp_path: Path) -> None:
    # Given a key of either kind, then the header says ES256 or, as RFC 9864 names it, Ed25519
    ec = Signer(key_file(tmp_path / "ec", ECKey.generate_key("P-256")), "Issuer")
    okp = Signer(key_file(tmp_path / "okp", OKPKey.generate_key("Ed25519")), "Issuer")
    assert (ec.algorithm, okp.algorithm) == ("ES256", "Ed25519")
    assert json.loads(ec.public_jwk)["alg"] == "ES256"
    assert json.loads(okp.public_jwk)["alg"] == "Ed25519"


def test_a_published_key_holds_nothing_private(any_signer: Signer) -> None:
    # Given a signer, then its public part names the key by its RFC 7638 thumbprint, and `d` is not in it
    public = json.loads(any_signer.public_jwk)
    assert "d" not in public
    names = ("crv", "kty", "x", "y") if public["kty"] == "EC" else ("crv", "kty", "x")
    required = json.dumps({name: public[name] for name in names}, separators=(",", ":")).encode()
    assert public["kid"] == base64.urlsafe_b64encode(hashlib.sha256(required).digest()).rstrip(b"=").decode()
    assert public["use"] == "sig"


def test_each_receipt_links_to_the_exact_bytes_of_the_one_before(any_signer: Signer) -> None:
    # Given a chain of three, begun from a genesis
    genesis = signing.genesis(make_series(Numbering("A-")))
    head = signing.digest(genesis)
    receipts = []
    for position in (1, 2, 3):
        receipts.append(any_signer.sign(any_signer.payload(make_entry(position)), head))
        head = signing.digest(receipts[-1].encode())

    # When each `prev` is read, then it is base64url of SHA-256 over what came before, unpadded
    links = [json.loads(_decoded(receipt.split(".")[1]))["prev"] for receipt in receipts]
    before = [genesis, *(receipt.encode() for receipt in receipts[:-1])]
    assert links == [
        base64.urlsafe_b64encode(hashlib.sha256(one).digest()).decode().removesuffix("=") for one in before
    ]
    assert all(len(link) == 43 for link in links)


@given(data=st.data())
def test_a_receipt_with_any_character_changed_does_not_open_as_something_else(
    signed: tuple[Signer, str], data: st.DataObject
) -> None:
    # Given a receipt in which one character is another
    signer, receipt = signed
    at = data.draw(st.integers(0, len(receipt) - 1))
    changed = receipt[:at] + data.draw(st.characters().filter(lambda one: one != receipt[at])) + receipt[at + 1 :]

    # When it is opened, then it is refused; or it is the same receipt, whose last base64url bits do not count
    try:
        said = JsonWebKeySet(jwks(signer)).open(changed)
    except (BadSignature, UnknownKey):
        return
    assert said == JsonWebKeySet(jwks(signer)).open(receipt)
    assert _decoded(changed.rpartition(".")[2]) == _decoded(receipt.rpartition(".")[2])


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384", "EdDSA", "Ed25519", "RS256"])
def test_a_receipt_that_names_another_algorithm_does_not_open(signer: Signer, algorithm: str) -> None:
    # Given a receipt whose header names another algorithm
    _, payload, signature = signer.sign(signer.payload(make_entry(1)), "").split(".")
    header = _encoded({"alg": algorithm, "kid": signer.kid, "typ": "seriatim-receipt"})

    # When it is opened with the service's keys, with its signature or with none, then it is refused
    for one in (signature, ""):
        with pytest.raises(BadSignature):
            JsonWebKeySet(jwks(signer)).open(f"{header}.{payload}.{one}")


def test_an_unknown_kid_is_told_from_a_wrong_signature(tmp_path: Path, signer: Signer) -> None:
    # Given a receipt of somebody else
    other = Signer(key_file(tmp_path / "other", ECKey.generate_key("P-256")), "Issuer")

    # When it is opened with our keys, then its kid is what is missing
    with pytest.raises(UnknownKey, match=other.kid):
        JsonWebKeySet(jwks(signer)).open(other.sign(other.payload(make_entry(1)), ""))


def test_receipts_of_rotated_keys_open_as_long_as_their_keys_are_published(tmp_path: Path) -> None:
    # Given receipts of two keys, one after the other
    signers = [Signer(key_file(tmp_path / str(n), ECKey.generate_key("P-256")), "Issuer") for n in range(2)]
    receipts = [signer.sign(signer.payload(make_entry(n + 1)), "") for n, signer in enumerate(signers)]

    # When both keys are published, then both open
    key_set = JsonWebKeySet(jwks(*signers))
    assert [key_set.open(receipt)["position"] for receipt in receipts] == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"keys": {}}',
        '{"keys": [5]}',
        '{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}',
        '{"keys": [{"kid": "a", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}',
        '{"keys": [{"kid": "a", "kty": "oct", "k": "AAAA"}]}',
        "<html>not found</html>",
        "[" * 100_000,
        "\xff",
    ],
)
def test_what_is_no_key_set_is_refused_with_advice(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not a JSON Web Key Set: .+/\.well-known/jwks\.json"):
        JsonWebKeySet(text.encode("latin-1"))


# the private key's file -------------------------------------------------------------------------------------------


@pytest.fixture
def no_umask() -> Iterator[None]:
    """A umask that hides nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_only_its_owner_may_read_the_key(tmp_path: Path) -> None:
    # Given a directory that is not there, and no umask, when the key is made
    path = tmp_path / "new" / "key.json"
    signing.create_key(path)

    # Then the file is for its owner alone, nothing else is left, and it signs with ES256
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["key.json"]
    assert Signer(path, "Issuer").algorithm == "ES256"


def test_a_key_that_is_there_stays(tmp_path: Path) -> None:
    # Given a key, when it is to be made again, then its file is as it was
    path = tmp_path / "key.json"
    signing.create_key(path)
    before = path.read_bytes()
    signing.create_key(path)
    assert path.read_bytes() == before


def test_many_that_make_the_key_at_once_end_with_one(tmp_path: Path) -> None:
    # Given processes and threads that start together, when each makes the key and reads it
    path = tmp_path / "key.json"
    with (
        ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as processes,
        ThreadPoolExecutor(16) as threads,
    ):
        kids = {*processes.map(_made_kid, [path] * 16), *threads.map(_made_kid, [path] * 64)}

    # Then all have the same one, and no other file is left
    assert len(kids) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["key.json"]


def test_threads_that_race_for_a_new_key_end_with_one(tmp_path: Path) -> None:
    # Given many new places for a key, when threads race for each of them, then all of each have the same one
    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            path = tmp_path / str(number) / "key.json"
            assert len(set(threads.map(_made_kid, [path] * 8))) == 1


@pytest.mark.parametrize(
    "content",
    ["", "{}", "null", "[" * 100_000, "\xff", '{"kty": "EC"}', '{"kty": "oct", "k": "AAAA"}', "PUBLIC", "WRONG D"],
)
def test_a_broken_key_file_is_refused_with_advice(tmp_path: Path, signer: Signer, content: str) -> None:
    # Given a file that holds no private key, or a public one, or parts that do not fit
    private = signer.key.as_dict(private=True)
    broken = {"PUBLIC": signer.public_jwk, "WRONG D": json.dumps(private | {"d": "AAAA"})}.get(content, content)
    path = tmp_path / "broken.json"
    path.write_bytes(broken.encode("latin-1"))

    # When a signer is made of it, then the message names the file and says what to do
    with pytest.raises(ConfigError, match=r"broken\.json .+ Restore it .+ SERIATIM_SIGNING_KEY"):
        Signer(path, "Issuer")


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ECKey.generate_key("P-384"), id="P-384"),
        pytest.param(ECKey.generate_key("secp256k1"), id="secp256k1"),
        pytest.param(OKPKey.generate_key("X25519"), id="X25519"),
        pytest.param(OKPKey.generate_key("Ed448"), id="Ed448"),
        pytest.param(RSAKey.generate_key(2048), id="RSA"),
    ],
)
def test_a_key_for_another_algorithm_is_refused_with_advice(tmp_path: Path, key: ECKey | OKPKey | RSAKey) -> None:
    # Given a private key that is neither P-256 nor Ed25519, when a signer is made of it, then it is refused
    with pytest.raises(ConfigError, match="SERIATIM_SIGNING_KEY"):
        Signer(key_file(tmp_path / "key.json", key), "Issuer")


def test_a_missing_key_file_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read: .+ SERIATIM_SIGNING_KEY"):
        Signer(tmp_path / "nowhere.json", "Issuer")


def _made_kid(path: Path) -> str:
    signing.create_key(path)
    return Signer(path, "Issuer").kid


def _encoded(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
