"""What a process remembers of credentials: for how long, how many, and what it does when nobody can be asked."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from issuer import Issuer, claims, sign
from seriatim import auth
from seriatim.auth import PREFIX, SCOPES, Authenticator, Principal
from seriatim.config import Config
from seriatim.errors import Unauthorized, Unavailable
from seriatim.registry import ApiKey
from seriatim.store import Store
from seriatim.tokens import Claims, Tokens
from stack import new_id, until

SOON_S = 20


class CountingStore(Store):
    """A store that counts how often it is asked for a key."""

    asked = 0

    def api_key(self, key_id: str) -> ApiKey | None:
        self.asked += 1
        return super().api_key(key_id)


class CountingTokens(Tokens):
    """Tokens that count how many were opened."""

    opened = 0

    def open(self, token: str) -> Claims:
        self.opened += 1
        return super().open(token)


class House:
    """A store that can be moved away, with a company in it, an authenticator, and somebody who issues tokens."""

    def __init__(self, directory: Path) -> None:
        self.home, self.away = directory / "home", directory / "away"
        self.home.mkdir()
        self.store = CountingStore(f"sqlite:///{self.home / 'store.db'}")
        self.store.migrate()
        self.company = self.store.create_company("acme", "test").id
        self.issuer = Issuer(directory, company=self.company, scope="read")
        self.tokens = CountingTokens(Config(jwt_jwks=str(self.issuer.file)))
        self.authenticator = Authenticator(self.store, self.tokens, rate=0, in_flight=10)

    def key(self) -> str:
        return auth.create_key(self.store, [self.company], SCOPES, "test")[0]

    async def principal(self, credentials: str) -> Principal:
        return await asyncio.wait_for(self.authenticator.principal(credentials, tokens=True), SOON_S)

    @contextmanager
    def without_store(self) -> Iterator[None]:
        self.store.close()
        shutil.move(self.home, self.away)
        try:
            yield
        finally:
            shutil.move(self.away, self.home)


@pytest.fixture
def house(directory: Path) -> Iterator[House]:
    made = House(directory)
    yield made
    made.store.close()


def trusting(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Sets how long an answer of the store is trusted."""
    monkeypatch.setattr(auth, "TRUST_S", seconds)


def at_once(waiting: Awaitable[Principal]) -> Principal:
    """What is known without waiting for anything."""
    running: Any = waiting
    try:
        running.send(None)
    except StopIteration as done:
        principal: Principal = done.value
        return principal
    running.close()
    raise AssertionError("it waits")


async def known(look: Callable[[], Awaitable[Principal]]) -> bool:
    try:
        await look()
    except Unauthorized:
        return False
    return True


async def answered(look: Callable[[], Awaitable[Principal]]) -> Principal:
    """Who holds credentials, as somebody is told who repeats what is not answered."""
    for _ in range(1000):
        with suppress(Unavailable):
            return await look()
        await asyncio.sleep(0.01)
    raise AssertionError("never answered")


def wrong_key() -> str:
    return PREFIX + new_id().replace("-", "") + "abc"


# how often it asks ------------------------------------------------------------------------------------------------


def test_many_requests_of_one_key_ask_the_store_once(house: House) -> None:
    # Given a key that was never seen, when many requests come with it at once, and then one by one
    key = house.key()

    async def ask() -> None:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(house.principal(key)) for _ in range(50)]
        for _ in range(50):
            assert at_once(house.authenticator.principal(key, tokens=False)) == asked[0].result()

    # Then the store is asked once
    asyncio.run(ask())
    assert house.store.asked == 1


def test_a_key_in_use_is_checked_before_anybody_has_to_wait(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a key that is trusted for a long minute, of which more than half has gone by
    trusting(monkeypatch, 60)
    key = house.key()

    async def ask() -> None:
        await house.principal(key)
        checked = house.authenticator._checked[key]
        checked.refresh_at = time.monotonic() - 1

        # When it is used, then it is checked anew, and nobody waits for that
        assert at_once(house.authenticator.principal(key, tokens=False)).company == house.company
        assert checked.checking is not None
        await checked.checking
        assert house.store.asked == 2
        assert checked.refresh_at > time.monotonic()

    asyncio.run(ask())


def test_a_token_is_opened_once_a_minute(house: House) -> None:
    # Given a token, when it is used again and again, then it is opened once
    token = house.issuer.token()

    async def ask() -> None:
        await house.principal(token)
        checked = house.authenticator._checked[token]
        for _ in range(50):
            assert at_once(house.authenticator.principal(token, tokens=True)).actor == "token somebody"
        assert house.tokens.opened == 1

        # And again when half of a minute, or of what it has left, has gone by
        assert 20 < checked.refresh_at - time.monotonic() < auth.TRUST_TOKEN_S / 2 + 1
        checked.refresh_at = 0
        assert at_once(house.authenticator.principal(token, tokens=True)).actor == "token somebody"
        assert checked.checking is not None
        await checked.checking
        assert house.tokens.opened == 2

    asyncio.run(ask())


def test_all_tokens_of_one_subject_have_one_allowance(house: House) -> None:
    # Given many tokens of one subject that come at once, and one of another
    tokens = [house.issuer.token(jti=new_id()) for _ in range(50)]

    async def ask() -> None:
        holders = await asyncio.gather(*map(house.principal, tokens))
        assert len({id(holder.allowance) for holder in holders}) == 1
        assert (await house.principal(house.issuer.token(sub="other"))).allowance is not holders[0].allowance

    asyncio.run(ask())


# what it keeps ----------------------------------------------------------------------------------------------------


def test_what_it_remembers_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given more keys and tokens than are remembered, when all are used, then the oldest are forgotten
    monkeypatch.setattr(auth, "CACHE_KEYS_MAX", 10)
    good = [*(house.key() for _ in range(20)), *(house.issuer.token(sub=f"user {n}") for n in range(20))]

    async def ask() -> None:
        for one in good:
            await house.principal(one)
        assert list(house.authenticator._checked) == good[-10:]

        # And checked anew when they come again
        assert (await house.principal(good[0])).company == house.company

    asyncio.run(ask())


def test_garbage_is_not_kept(house: House) -> None:
    # Given a known key, and what is none in many ways
    key = house.key()
    other = Issuer(house.home, company=house.company)
    garbage = [wrong_key() for _ in range(50)] + [other.token() for _ in range(50)] + ["", "a", "a.b", "a.b.c", PREFIX]
    garbage += [key + "A", key[:-1], "A" * 100_000, "a." * 5000, "é" * 44, PREFIX + "é" * 35, "ey.." + "A" * 9000]
    garbage += [*house.issuer.forgeries().values()]

    async def ask() -> None:
        before = await house.principal(key)
        for one in garbage:
            with pytest.raises(Unauthorized):
                await house.principal(one)

        # Then nothing of it stays, neither while the store is there nor while it is not
        assert list(house.authenticator._checked) == [key]
        with house.without_store():
            for one in garbage[:20]:
                with pytest.raises(Unavailable):
                    await house.principal(one)
            assert list(house.authenticator._checked) == [key]
            assert await house.principal(key) == before

    asyncio.run(ask())


def test_what_is_too_long_or_of_another_form_is_not_even_looked_up(house: House) -> None:
    # Given credentials that cannot be any, then nobody is asked about them
    async def ask() -> None:
        for one in (
            "",
            "a.b",
            PREFIX + "A" * 34,
            PREFIX + "A" * 36,
            PREFIX + "é" * 35,
            "A" * 9000,
            "a.b." + "A" * 9000,
        ):
            with pytest.raises(Unauthorized):
                at_once(house.authenticator.principal(one, tokens=True))
        for one in (house.issuer.token(), "a.b.c"):
            with pytest.raises(Unauthorized, match="Only API keys"):
                at_once(house.authenticator.principal(one, tokens=False))

    asyncio.run(ask())
    assert (house.store.asked, house.tokens.opened) == (0, 0)


def test_a_token_that_is_known_is_still_no_key(house: House) -> None:
    # Given a token that was accepted where tokens are
    token = house.issuer.token()

    async def ask() -> None:
        assert (await house.principal(token)).company == house.company

        # When it comes where only keys are, then it is refused
        with pytest.raises(Unauthorized, match="Only API keys"):
            await house.authenticator.principal(token, tokens=False)

    asyncio.run(ask())


# the end ----------------------------------------------------------------------------------------------------------


def test_a_token_is_never_accepted_after_its_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given tokens with moments left, one of them used as long as the store is there, one also without it
    ends = time.time() + 1.2
    first, second = house.issuer.token(exp=ends), house.issuer.token(exp=ends, sub="other")
    trusting(monkeypatch, 60)  # what is trusted when the store is lost

    async def use(token: str) -> None:
        while True:
            began = time.time()
            if not await known(partial(house.principal, token)):
                assert time.time() >= ends
                return
            assert began < ends
            await asyncio.sleep(0.01)

    async def ask() -> None:
        await house.principal(second)
        await use(first)
        with house.without_store():
            await use(second)

    # When they are used again and again, then each is good until then and no longer
    asyncio.run(ask())


def test_a_token_that_ends_while_the_store_is_away_has_ended(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a token that is known, and a store that goes away
    ends = time.time() + 0.5
    token = house.issuer.token(exp=ends)
    trusting(monkeypatch, 60)

    async def ask() -> None:
        await house.principal(token)
        with house.without_store():
            house.authenticator._checked[token].until = house.authenticator._checked[token].refresh_at = 0
            assert await known(partial(house.principal, token))

            # When its end comes, then it is over
            await asyncio.sleep(ends - time.time())
            assert not await known(partial(house.principal, token))

    asyncio.run(ask())


def test_a_revoked_key_is_refused_with_the_first_answer_of_the_store(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a key that was used, and then not for longer than an answer is trusted
    trusting(monkeypatch, 0.05)
    key = house.key()

    async def ask() -> None:
        await house.principal(key)
        house.store.revoke_key(key[len(PREFIX) :][: auth.ID_LENGTH], "test")
        await asyncio.sleep(0.1)

        # When it is revoked, then its next use is refused, and nothing of it stays
        assert not await known(partial(house.principal, key))
        assert not house.authenticator._checked

    asyncio.run(ask())


# when the store does not answer -----------------------------------------------------------------------------------


def test_a_store_that_is_down_refuses_no_key_that_was_valid_when_it_went(house: House) -> None:
    # Given a process that has checked one of two keys, and a token
    seen, fresh, token = house.key(), house.key(), house.issuer.token()

    async def checks() -> None:
        before = await house.principal(seen)
        assert (await house.principal(token)).company == house.company

        # When the store goes away for longer than a check is trusted
        with house.without_store():
            await asyncio.sleep(auth.TRUST_S * 1.5)

            # Then the known key still counts, as does the token, and of the other key nothing is known
            assert await house.principal(seen) == before
            assert (await house.principal(token)).company == house.company
            with pytest.raises(Unavailable):
                await house.principal(fresh)

        # And once the store is back, so are all
        assert (await house.principal(fresh)).company == house.company
        assert await house.principal(seen) == before

    asyncio.run(checks())


def test_a_fault_of_ours_lets_nobody_in(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a known key, and a store that then fails in a way that nobody thought of
    trusting(monkeypatch, 0.05)
    key = house.key()

    async def ask() -> None:
        await house.principal(key)
        monkeypatch.setattr(house.store, "api_key", None)
        await asyncio.sleep(0.1)

        # When the key is used again, then the fault is seen, each time
        for _ in range(2):
            with pytest.raises(TypeError):
                await house.principal(key)

    asyncio.run(ask())


class Locked:
    """A PostgreSQL store whose tables somebody else can lock, so that whoever asks for what is in them hangs."""

    def __init__(self, url: str, directory: Path) -> None:
        self.store = CountingStore(url)
        self.store.migrate()
        self.company = self.store.create_company("acme", "test").id
        self.issuer = Issuer(directory, company=self.company, scope="read")
        tokens = Tokens(Config(jwt_jwks=str(self.issuer.file)))
        self.authenticator = Authenticator(self.store, tokens, rate=0, in_flight=10)
        self.engine = sa.create_engine(url)

    def key(self) -> str:
        return auth.create_key(self.store, [self.company], SCOPES, "test")[0]

    async def principal(self, credentials: str) -> Principal:
        return await asyncio.wait_for(self.authenticator.principal(credentials, tokens=True), SOON_S)

    @contextmanager
    def lock(self, table: str = "api_keys") -> Iterator[sa.Connection]:
        with self.engine.connect() as connection:
            connection.execute(sa.text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            yield connection


@pytest.fixture
def locked(postgresql_url: str, directory: Path) -> Iterator[Locked]:
    made = Locked(postgresql_url, directory)
    yield made
    made.engine.dispose()
    made.store.close()


def test_a_store_that_hangs_stops_no_known_key_and_is_waited_for_once(
    locked: Locked, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more known keys than there are threads to ask with, one of which is to be revoked, and a new one
    trusting(monkeypatch, 0.05)
    keys, fresh = [locked.key() for _ in range(10)], locked.key()

    async def ask() -> None:
        for key in keys:
            await locked.principal(key)
        await asyncio.sleep(0.1)

        # When the store hangs, then the first to come waits for as long as patience lasts
        with locked.lock() as connection:
            monkeypatch.setattr(auth, "PATIENCE_S", 0.2)
            assert (await locked.principal(keys[0])).company == locked.company

            # And nobody else for so long, nor anybody twice
            monkeypatch.setattr(auth, "PATIENCE_S", 3600)
            for key in keys:
                assert (await locked.principal(key)).company == locked.company
                for _ in range(10):
                    assert at_once(locked.authenticator.principal(key, tokens=False)).company == locked.company

            # And of what is not known it is said that nobody can tell; everything else in the process goes on
            for key in (fresh, wrong_key()):
                with pytest.raises(Unavailable):
                    await locked.principal(key)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "goes on"), SOON_S) == "goes on"
            connection.rollback()

        # And when it answers again, so do we, and trust nothing old
        assert (await answered(partial(locked.principal, fresh))).company == locked.company
        with pytest.raises(Unauthorized):
            await answered(partial(locked.principal, wrong_key()))
        locked.store.revoke_key(keys[5][len(PREFIX) :][: auth.ID_LENGTH], "test")
        await asyncio.sleep(0.1)
        assert [await known(partial(locked.principal, key)) for key in keys] == [n != 5 for n in range(10)]

    asyncio.run(ask())


def test_a_token_ends_although_nobody_can_be_asked(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a token with moments left, and a store that then hangs
    monkeypatch.setattr(auth, "PATIENCE_S", 0.05)
    ends = time.time() + 1
    token = locked.issuer.token(exp=ends)

    async def ask() -> None:
        await locked.principal(token)
        with locked.lock("companies") as connection:
            # When it is used again and again, then it is good until its end and no longer
            while await known(partial(locked.principal, token)):
                assert time.time() < ends + SOON_S
                await asyncio.sleep(0.01)
            assert time.time() >= ends
            connection.rollback()

    asyncio.run(ask())


def test_a_slow_answer_that_a_key_is_revoked_is_waited_for(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a key that was used and then revoked, and a store that is slow just then
    trusting(monkeypatch, 0.05)
    key = locked.key()

    async def ask() -> None:
        await locked.principal(key)
        locked.store.revoke_key(key[len(PREFIX) :][: auth.ID_LENGTH], "test")
        await asyncio.sleep(0.1)
        with locked.lock() as connection:
            # When it is used, then the answer is waited for
            using = asyncio.create_task(locked.principal(key))
            await asyncio.sleep(0.2)
            assert not using.done()
            connection.rollback()

            # And it is refused
            with pytest.raises(Unauthorized):
                await using

    asyncio.run(ask())


def test_garbage_in_great_numbers_does_not_pile_up(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a known key, and a store that hangs
    trusting(monkeypatch, 0.05)
    monkeypatch.setattr(auth, "CHECKS_MAX", 5)
    key = locked.key()

    async def ask() -> None:
        await locked.principal(key)
        monkeypatch.setattr(auth, "PATIENCE_S", 0.05)
        await asyncio.sleep(0.1)
        with locked.lock() as connection:
            # When wrong keys come in great numbers
            for _ in range(100):
                with pytest.raises(Unavailable):
                    await locked.principal(wrong_key())

            # Then no more of them wait than some, and the known key counts
            assert len(locked.authenticator._checked) <= 6
            assert (await locked.principal(key)).company == locked.company
            connection.rollback()

        # And nothing of them stays
        await asyncio.to_thread(until, lambda: len(locked.authenticator._checked) == 1)

    asyncio.run(ask())


def test_tokens_whose_keys_cannot_be_read_hold_up_no_key(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given tokens in greater number than there are threads, which all wait for their keys to be read
    published: Any = house.tokens._published
    monkeypatch.setattr(auth, "PATIENCE_S", 0.05)
    unknown = [sign(house.issuer.key, "ES256", claims(sub=str(n)), kid="unknown") for n in range(auth.THREADS + 2)]
    key = house.key()

    async def ask() -> None:
        with published._reading:
            for token in unknown:
                with pytest.raises(Unavailable):
                    await house.principal(token)

            # Then a key that was never seen is checked meanwhile
            assert (await house.principal(key)).company == house.company

        # And once they can be read, the tokens are known to be wrong
        for token in unknown:
            with pytest.raises(Unauthorized):
                await answered(partial(house.principal, token))

    asyncio.run(ask())
