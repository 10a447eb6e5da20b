"""JSON Web Tokens: who signed them, whether they are for us, now, and what they say."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwe
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.util import urlsafe_b64decode

from issuer import SECRET, claims, encoded, key_set, make_key, sign, sign_with_bytes, signature
from seriatim.config import Config
from seriatim.errors import ConfigError, Unauthorized
from seriatim.tokens import CLOCKS_DIFFER_S, SHARED, SIGNED, SUBJECT_BYTES_MAX, Tokens
from stack import new_id

KEY = make_key("ES256", "ours")
ALGORITHM = "ES256"
DEEP = 5000
pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated", "ignore:Key size should be")


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """What opens tokens of KEY."""
    return opener(tmp_path, KEY)


def opener(directory: Path, *keys: Key, **settings: str) -> Tokens:
    file = directory / "keys.json"
    file.write_bytes(key_set(*keys))
    return Tokens(Config(jwt_jwks=str(file), **settings))  # type: ignore[arg-type]


def refused(tokens: Tokens, token: str, why: str | None = None) -> None:
    with pytest.raises(Unauthorized, match=why) as error:
        tokens.open(token)
    # Whatever a token holds, what is said of it can be sent.
    error.value.message.encode()


# what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", SIGNED)
def test_a_token_is_opened_with_the_public_key_of_who_signed_it(tmp_path: Path, algorithm: str) -> None:
    # Given a published key, and another one of the same kind
    key = make_key(algorithm, "ours")
    other = make_key(algorithm, "not ours")
    tokens = opener(tmp_path, key)

    # When either signs a token that says the same, then only the first is believed
    first, second = new_id(), new_id()
    said = claims(scope="read allocate", company=first, companies=[second])
    opened = tokens.open(sign(key, algorithm, said))
    assert (opened.subject, opened.company, opened.scopes) == ("somebody", first, ("read", "allocate"))
    assert opened.companies == tuple(sorted([first, second]))
    assert opened.expires_at == said["exp"]
    refused(tokens, sign(other, algorithm, said, kid="ours"), "bad_signature")


@pytest.mark.parametrize("algorithm", SHARED)
def test_a_token_is_opened_with_a_shared_secret(algorithm: str) -> None:
    # Given a secret, when a token is signed with it, then it is believed, and one signed with another is not
    tokens = Tokens(Config(jwt_secret=SECRET))
    assert tokens.open(sign(make_key(algorithm), algorithm, claims())).subject == "somebody"
    assert tokens.open(sign(make_key(algorithm), algorithm, claims(), kid="any")).subject == "somebody"
    refused(tokens, sign_with_bytes(SECRET[::-1].encode(), claims(), algorithm), "bad_signature")


def test_a_secret_is_not_shorter_than_the_hash(tmp_path: Path) -> None:
    # Given secrets of several lengths, then each serves the algorithms whose hash is no longer than it
    for length, fitting in {32: ["HS256"], 47: ["HS256"], 48: ["HS256", "HS384"], 64: list(SHARED)}.items():
        secret = SECRET[:length]
        tokens = Tokens(Config(jwt_secret=secret))
        for algorithm in SHARED:
            token = sign_with_bytes(secret.encode(), claims(), algorithm)
            if algorithm in fitting:
                assert tokens.open(token).subject == "somebody"
            else:
                refused(tokens, token, "unsupported_algorithm")

    # And one that fits none, or that is no secret, is refused at once
    with pytest.raises(ConfigError, match="at least 32 random bytes"):
        Tokens(Config(jwt_secret=SECRET[:31]))
    for public in (make_key("RS256").as_pem(private=False), make_key("ES256").as_pem(private=False)):  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match="is a public key"):
            Tokens(Config(jwt_secret=public.decode()))
    with pytest.raises(ConfigError, match="not both"):
        opener(tmp_path, KEY, jwt_secret=SECRET)


def test_without_keys_there_are_no_tokens() -> None:
    assert not Tokens(Config()).accepted
    assert Tokens(Config(jwt_secret=SECRET)).accepted


# which key --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", "null", "none ", "HS0"])
def test_a_token_that_nobody_signed_is_refused(tokens: Tokens, name: str) -> None:
    # Given tokens that say they need no signature, with none, with any, and with that of a key of ours
    header = {"alg": name, "typ": "JWT", "kid": "ours"}
    signed = f"{encoded(header)}.{encoded(claims())}"
    for ending in ("", "AAAA", signature(KEY, ALGORITHM, signed)):
        # Then no set of keys and no secret accepts them
        for one in (tokens, Tokens(Config(jwt_secret=SECRET))):
            refused(one, f"{signed}.{ending}", "unsupported_algorithm")


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
def test_a_public_key_is_no_secret(tmp_path: Path, algorithm: str) -> None:
    # Given a published key, and whatever an attacker can make of it
    key: Any = make_key(algorithm, "ours")
    jwk = key.as_dict(private=False)
    texts = [
        key.as_pem(private=False),
        key.as_pem(private=False).rstrip(b"\n"),
        key.as_der(private=False),
        json.dumps(jwk).encode(),
        json.dumps(jwk, separators=(",", ":")).encode(),
        key_set(key),
        urlsafe_b64decode(jwk.get("x", jwk.get("n")).encode()),
        b"",
    ]
    tokens = opener(tmp_path, key)

    # When that is the secret of a token, then nobody believes it
    for text in texts:
        for shared in SHARED:
            for kid in ({"kid": "ours"}, {}):
                refused(tokens, sign_with_bytes(text, claims(), shared, **kid), "unsupported_algorithm")


def test_an_algorithm_that_does_not_fit_the_key_is_refused(tmp_path: Path) -> None:
    # Given keys of all kinds, one of which says its algorithm
    keys: dict[str, Any] = {name: make_key(name, name) for name in ("ES256", "ES384", "RS256", "EdDSA")}
    bound = RSAKey.import_key(make_key("RS512").as_dict(private=True), {"kid": "bound", "alg": "RS512"})
    tokens = opener(tmp_path, *keys.values(), bound)

    # When a token's header names an algorithm of another kind, or another than the key is for
    wrong = [(kid, name) for kid in keys for name in SIGNED if not name.startswith(kid[:2])]
    wrong += [("ES256", "ES384"), ("ES384", "ES256"), ("bound", "RS256"), ("bound", "PS512")]
    for kid, algorithm in wrong:
        signer = bound if kid == "bound" else make_key(algorithm)
        refused(tokens, sign(signer, algorithm, claims(), kid=kid))

    # Then it is refused, and the right one is not
    assert tokens.open(sign(bound, "RS512", claims())).subject == "somebody"
    assert tokens.open(sign(keys["RS256"], "PS256", claims())).subject == "somebody"


def test_the_key_is_found_by_its_id(tmp_path: Path) -> None:
    # Given one key, then a token may do without its id, and another id is not it
    alone = opener(tmp_path, KEY)
    assert alone.open(sign(KEY, ALGORITHM, claims(), header={"alg": ALGORITHM})).subject == "somebody"
    refused(alone, sign(KEY, ALGORITHM, claims(), kid="unknown"), "invalid_key_id")
    refused(alone, sign(KEY, ALGORITHM, claims(), kid=""), "invalid_key_id")
    refused(alone, sign(KEY, ALGORITHM, claims(), kid=None), "invalid_header_value")

    # Given several, then a token names its own
    second = make_key("ES384", "second")
    several = opener(tmp_path, KEY, second)
    for key, algorithm in ((KEY, ALGORITHM), (second, "ES384")):
        assert several.open(sign(key, algorithm, claims())).subject == "somebody"
        refused(several, sign(key, algorithm, claims(), header={"alg": algorithm}), "invalid_key_id")
    refused(several, sign(KEY, ALGORITHM, claims(), kid="second"), "invalid_key_curve")

    # Given a key without an id, then a token finds it without one
    nameless = opener(tmp_path, make_key("ES256"))
    assert nameless.open(sign(make_key("ES256"), ALGORITHM, claims(), header={"alg": ALGORITHM})).subject == "somebody"


def test_a_key_that_a_token_brings_along_is_not_used(tokens: Tokens) -> None:
    # Given an attacker with a key of their own, when they put it into the header, or say where it is
    theirs = make_key("ES256", "theirs")
    for more in (
        {"jwk": theirs.as_dict(private=False)},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/chain"},
        {"x5c": ["MIIB"]},
        {"kid": "ours", "jwk": theirs.as_dict(private=False)},
        {"kid": "../../etc/passwd"},
        {"kid": "' OR 1=1 --"},
    ):
        # Then it is refused
        refused(tokens, sign(theirs, ALGORITHM, claims(), **more))


# headers and form -------------------------------------------------------------------------------------------------


def test_headers_that_are_not_understood_are_ignored_unless_they_are_critical(tokens: Tokens) -> None:
    # Given a header of a vendor's own, then it does no harm (RFC 7515, section 4)
    assert tokens.open(sign(KEY, ALGORITHM, claims(), cat="of a vendor", typ="at+jwt")).subject == "somebody"

    # Given critical ones, then the token is refused (section 4.1.11), the payload that is not encoded, too
    wrong: list[Any] = [["exp"], ["cat"], ["b64"], ["alg"], [], "cat", 5, None, [[]], [{}], {"b64": 1}]
    for crit in wrong:
        refused(tokens, sign(KEY, ALGORITHM, claims(), cat="of a vendor", b64=True, crit=crit))
        refused(tokens, sign(KEY, ALGORITHM, claims(), b64=False, crit=crit))
    refused(tokens, sign(KEY, ALGORITHM, claims(), b64=False))
    bare = encoded({"alg": ALGORITHM, "kid": "ours", "b64": False, "crit": ["b64"]}) + "."
    bare += json.dumps(claims(), separators=(",", ":"))
    refused(tokens, f"{bare}.{signature(KEY, ALGORITHM, bare)}", "critical")


@pytest.mark.parametrize(
    "header",
    [
        ["alg"],
        "alg",
        "alg b64 crit",
        5,
        None,
        {},
        {"alg": None},
        {"alg": 5},
        {"alg": ["ES256"]},
        {"alg": {"ES256": 1}},
        {"alg": "\ud800"},
        {"alg": "ES256", "kid": 5},
        {"alg": "ES256", "kid": ["ours"]},
        {"alg": "ES256", "kid": "\ud800"},
        {"alg": "ES256", "kid": "k" * 1000},
        b"",
        b"{",
        b"\xff\xfe",
        b'{"alg":"ES256","kid":"ours","x":' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
def test_a_header_of_another_form_is_refused(tokens: Tokens, header: Any) -> None:
    # Given a header that is none, or whose deep or odd parts are signed all the same
    token = sign(KEY, ALGORITHM, claims(), header=header)

    # Then it is refused in words that can be sent
    refused(tokens, token)


def test_what_is_no_signed_token_is_refused(tokens: Tokens) -> None:
    # Given parts of a good token, a token with more of them, an encrypted one, and one that was changed
    good = sign(KEY, ALGORITHM, claims())
    head, body, tail = good.split(".")
    encrypted = jwe.encrypt_compact(
        {"alg": "ECDH-ES", "enc": "A128GCM", "kid": "ours", "cty": "JWT"}, good, ECKey.generate_key("P-256")
    )
    flipped = tail[:-2] + ("A" if tail[-2] != "A" else "B") + tail[-1]
    for token in (
        "",
        "..",
        "a.b.c",
        head,
        f"{head}.{body}",
        f"{head}.{body}.",
        f"{head}..{tail}",
        f".{body}.{tail}",
        f"{good}.{tail}",
        f"{head}.{body}.{flipped}",
        f"{head}.{body}.{tail}=",
        f"{head}.{body}.{tail}\n",
        f" {good}",
        f"{head}.{encoded(claims(sub='somebody else'))}.{tail}",
        encrypted,
        "\x00.\x00.\x00",
        "é.é.é",
        "\ud800.a.b",
        f"{head}.{body}." + "A" * 100_000,
        f"{head}." + "A" * 1_000_000 + f".{tail}",
    ):
        # Then none is believed, and the good one is
        refused(tokens, token)
    assert tokens.open(good).subject == "somebody"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"sub exp"',
        b'{"sub":"a","exp":NaN}',
        b'{"sub":"a","exp":Infinity}',
        b'{"sub":"a","exp":1e400}',
        b'{"sub":"a","exp":' + b"9" * 400 + b"}",
        b'{"sub":"a","exp":' + b"9" * 5000 + b"}",
        b'{"sub":"\xff","exp":9999999999}',
        b'{"sub":"\\ud800","exp":9999999999}',
        b'{"sub":"a","exp":9999999999} {}',
        '{"sub":"a","exp":9999999999}'.encode("utf-16"),
        b'{"sub":"a","exp":9999999999,"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"sub":"a","exp":9999999999,"x":' + b'{"x":' * DEEP + b"1" + b"}" * DEEP + b"}",
    ],
)
def test_a_payload_that_is_no_json_object_is_refused(tokens: Tokens, payload: bytes) -> None:
    refused(tokens, sign(KEY, ALGORITHM, payload))


def test_of_repeated_claims_the_last_counts(tokens: Tokens) -> None:
    # Given repeated claims (RFC 7519, section 4: the last one, or none at all), then the last one counts
    now = int(time.time())
    twice = f'{{"sub":"first","sub":"last","exp":1,"exp":{now + 60}}}'
    assert tokens.open(sign(KEY, ALGORITHM, twice.encode())).subject == "last"
    refused(tokens, sign(KEY, ALGORITHM, f'{{"sub":"a","exp":{now + 60},"exp":1}}'.encode()), "expired")


# claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"sub": None},
        {"sub": 5},
        {"sub": ["somebody"]},
        {"sub": {"name": "somebody"}},
        {"sub": ""},
        {"sub": "two\nlines"},
        {"sub": "a\x00b"},
        {"sub": "a\x1b[31m"},
        {"sub": "\u202eydobemos"},
        {"sub": "a\u2028b"},
        {"sub": "\ud800"},
        {"sub": "s" * (SUBJECT_BYTES_MAX + 1)},
        {"sub": "ß" * (SUBJECT_BYTES_MAX // 2 + 1)},
        {"exp": None},
        {"exp": True},
        {"exp": "9999999999"},
        {"exp": [9999999999]},
        {"exp": 0},
        {"exp": -1},
        {"exp": -1e300},
        {"exp": 10**400},
        {"nbf": "yesterday"},
        {"nbf": True},
        {"nbf": 10**400},
        {"iat": "yesterday"},
        {"iat": [1]},
        {"iat": 10**400},
        {"scope": ["read"]},
        {"scope": 5},
        {"company": 5},
        {"company": ["a"]},
        {"companies": "a"},
        {"companies": {"a": 1}},
        {"companies": [5]},
        {"companies": [["a"]]},
        {"aud": "somebody else"},
        {"aud": ["somebody else"]},
        {"aud": ""},
        {"aud": []},
        {"aud": 5},
        {"aud": [5]},
        {"iss": 5},
        {"jti": 5},
    ],
    ids=repr,
)
def test_a_claim_that_is_missing_or_not_as_it_should_be_is_refused(tokens: Tokens, wrong: dict[str, Any]) -> None:
    refused(tokens, sign(KEY, ALGORITHM, claims(**wrong)))


def test_a_subject_is_a_line_of_text(tokens: Tokens) -> None:
    # Given subjects as issuers write them, then they are taken as they are
    for subject in ("auth0|5f7c8ec7c33c6c004bbafe82", "Jörg Müller", "spiffe://x/y", "s" * SUBJECT_BYTES_MAX, "李"):
        assert tokens.open(sign(KEY, ALGORITHM, claims(sub=subject))).subject == subject


def test_a_token_is_good_from_its_beginning_to_its_end(tokens: Tokens) -> None:
    # Given times around now: the issuer's clock may be a little ahead of ours, and an end is an end
    now = time.time()
    soon, late = int(now) + CLOCKS_DIFFER_S - 1, int(now) + CLOCKS_DIFFER_S + 30
    good: list[dict[str, Any]] = [
        {"nbf": int(now)},
        {"iat": int(now)},
        {"nbf": soon, "iat": soon},
        {"nbf": 0},
        {"iat": -(10**400)},
    ]
    good += [{"exp": int(now) + 5}, {"exp": now + 5.5}, {"exp": 1e300}, {"exp": 2**53}]
    bad: list[dict[str, Any]] = [
        {"nbf": late},
        {"iat": late},
        {"exp": int(now) - 1},
        {"exp": int(now)},
        {"exp": now},
        {"exp": now - 0.001},
    ]

    # Then a token is good between them alone
    for said in good:
        assert tokens.open(sign(KEY, ALGORITHM, claims(**said))).subject == "somebody"
    for said in bad:
        refused(tokens, sign(KEY, ALGORITHM, claims(**said)))


def test_who_issued_it_must_be_who_is_configured(tmp_path: Path) -> None:
    # Given a configured issuer, then a token of that one is good, and of no other
    tokens = opener(tmp_path, KEY, jwt_issuer="https://issuer")
    assert tokens.open(sign(KEY, ALGORITHM, claims(iss="https://issuer"))).subject == "somebody"
    for issuer in (None, "", "https://issuer/", "https://ISSUER", "https://other", ["https://issuer"], 5):
        refused(tokens, sign(KEY, ALGORITHM, claims(iss=issuer)))

    # Given none, then any is good
    assert opener(tmp_path, KEY).open(sign(KEY, ALGORITHM, claims(iss="https://other"))).subject == "somebody"


def test_it_must_be_for_who_is_configured(tmp_path: Path) -> None:
    # Given a configured audience, then a token for it, among others, is good, and no other is
    tokens = opener(tmp_path, KEY, jwt_audience="seriatim")
    right: list[Any] = ["seriatim", ["seriatim"], ["others", "seriatim"]]
    for audience in right:
        assert tokens.open(sign(KEY, ALGORITHM, claims(aud=audience))).subject == "somebody"
    wrong: list[Any] = [None, "", [], "others", ["others"], "Seriatim", "seriatim ", ["seriatim", 5], [["seriatim"]], 5]
    for audience in wrong:
        refused(tokens, sign(KEY, ALGORITHM, claims(aud=audience)))


def test_companies_are_uuids(tokens: Tokens) -> None:
    # Given claims with UUIDs in upper case, and with what is none
    first, second = sorted([new_id(), new_id()])
    said = claims(company=first.upper(), companies=[second.upper(), first, "acme", "", "\x00", "' OR 1=1 --", "İ"])

    # When the token is opened, then the UUIDs are as ours, and the others are nobody's
    opened = tokens.open(sign(KEY, ALGORITHM, said))
    assert (opened.company, opened.companies) == (first, (first, second))
    other = tokens.open(sign(KEY, ALGORITHM, claims(company="acme")))
    assert other.companies == ()


def test_a_token_of_a_weak_key_is_refused(tmp_path: Path) -> None:
    # Given a set with an RSA key that is too short, and a good one
    weak = RSAKey.generate_key(1024, {"kid": "weak"})
    tokens = opener(tmp_path, weak, KEY)

    # Then the one signs no tokens, and the other does
    refused(tokens, sign(weak, "RS256", claims()), "invalid_key_id")
    assert tokens.open(sign(KEY, ALGORITHM, claims())).subject == "somebody"


def test_a_key_for_something_else_signs_no_tokens(tmp_path: Path) -> None:
    # Given a set with one key for signatures, one for encryption, and one for key agreement
    encrypting = ECKey.import_key(make_key("ES256").as_dict(private=True), {"kid": "enc", "use": "enc"})
    agreeing = OKPKey.generate_key("X25519", {"kid": "x"})
    tokens = opener(tmp_path, encrypting, KEY)

    # Then the first alone signs, and is found without an id
    assert tokens.open(sign(KEY, ALGORITHM, claims(), header={"alg": ALGORITHM})).subject == "somebody"
    refused(tokens, sign(encrypting, ALGORITHM, claims()), "invalid_key_id")
    refused(opener(tmp_path, agreeing), sign(make_key("EdDSA"), "EdDSA", claims(), kid="x"))
