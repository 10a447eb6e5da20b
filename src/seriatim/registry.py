"""Whom the service knows, and what they did: companies, API keys, signing keys, the audit log."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from seriatim.database import Database
from seriatim.errors import Conflict, Invalid, NotFound
from seriatim.model import Company
from seriatim.tables import api_keys, audit_log, companies, signing_keys

NAME_LENGTH_MAX = 255
PAGE = 1000


class ApiKey(msgspec.Struct, frozen=True):
    """An API key as it is kept: never the secret itself."""

    id: str
    company: str
    companies: tuple[str, ...]
    """All that it may act for; `company` is the default."""
    salt: bytes
    hash: bytes
    scopes: tuple[str, ...]
    created_at: int
    revoked_at: int | None


class Logged(msgspec.Struct, frozen=True):
    """Something out of the ordinary that somebody did."""

    at: int
    actor: str
    action: str
    detail: dict[str, Any]


def now_ms() -> int:
    """Returns the time of this machine. For labels only: documents take their time from Redis."""
    return time.time_ns() // 1_000_000


class Registry(Database):
    """The part of the store that is about who does something."""

    # companies and keys -------------------------------------------------------------------------------------------

    def create_company(self, name: str, actor: str) -> Company:
        """Creates a company.

        Raises:
            Invalid: the name is not one that a list can show.
            Conflict: the name is taken.
        """
        if not name.strip() or not name.isprintable() or len(name) > NAME_LENGTH_MAX:
            raise Invalid({"name": f"must be a line of 1 to {NAME_LENGTH_MAX} printable characters"})
        company = Company(id=str(uuid.uuid4()), name=name, created_at=now_ms())
        with self.write() as connection:
            statement = self.insert(companies).values(msgspec.structs.asdict(company)).on_conflict_do_nothing()
            if connection.execute(statement.returning(companies.c.id)).first() is None:
                raise Conflict(f"A company named {name!r} exists. Choose another name.")
            self._log(connection, actor, "create company", {"company": company.id, "name": name})
        return company

    def companies(self) -> list[Company]:
        """Returns all companies, oldest first."""
        with self.read() as connection:
            ordered = sa.select(companies).order_by(companies.c.created_at, companies.c.id)
            return [Company(row.id, row.name, row.created_at) for row in connection.execute(ordered)]

    def company(self, name_or_id: str) -> Company:
        """Returns the company of that name or id.

        Raises:
            NotFound: there is none.
        """
        for company in self.companies():
            if name_or_id in (company.name, company.id):
                return company
        raise NotFound(f"There is no company {name_or_id!r}. `seriatim companies list` shows them.")

    def known_companies(self, ids: Sequence[str]) -> list[str]:
        """Returns those of some canonical UUIDs that are companies."""
        with self.read() as connection:
            return list(connection.execute(sa.select(companies.c.id).where(companies.c.id.in_(ids))).scalars())

    def add_key(self, key: ApiKey, actor: str) -> None:
        """Keeps a new API key."""
        with self.write() as connection:
            texts = {"scopes": " ".join(key.scopes), "companies": " ".join(key.companies)}
            connection.execute(sa.insert(api_keys).values(msgspec.structs.asdict(key) | texts))
            said = {"key": key.id, "companies": key.companies, "scopes": key.scopes}
            self._log(connection, actor, "create key", said)

    def api_key(self, key_id: str) -> ApiKey | None:
        """Returns the API key with that id, revoked or not."""
        with self.read() as connection:
            row = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        return None if row is None else _key(row)

    def api_keys(self) -> list[ApiKey]:
        """Returns all API keys, oldest first."""
        with self.read() as connection:
            return [_key(row) for row in connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at))]

    def revoke_key(self, key_id: str, actor: str) -> None:
        """Revokes an API key for good.

        Raises:
            NotFound: there is none with that id.
        """
        with self.write() as connection:
            unrevoked = sa.func.coalesce(api_keys.c.revoked_at, now_ms())
            changed = sa.update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=unrevoked)
            if connection.execute(changed).rowcount != 1:
                raise NotFound(f"There is no key {key_id!r}. `seriatim keys list` shows them.")
            self._log(connection, actor, "revoke key", {"key": key_id})

    # signing keys and audit ---------------------------------------------------------------------------------------

    def add_signing_key(self, kid: str, jwk: str) -> None:
        """Publishes the public part of a signing key. It stays for good."""
        row = {"kid": kid, "jwk": jwk, "created_at": now_ms()}
        with self.write() as connection:
            connection.execute(self.insert(signing_keys).values(row).on_conflict_do_nothing())

    def signing_keys(self) -> list[str]:
        """Returns the public signing keys as JWK texts, oldest first."""
        with self.read() as connection:
            ordered = sa.select(signing_keys.c.jwk).order_by(signing_keys.c.created_at, signing_keys.c.kid)
            return list(connection.execute(ordered).scalars())

    def logged(self) -> Iterator[Logged]:
        """Yields the audit log, oldest first."""
        with self.read() as connection:
            ordered = sa.select(audit_log).order_by(audit_log.c.id).execution_options(yield_per=PAGE)
            for row in connection.execute(ordered):
                yield Logged(row.at, row.actor, row.action, msgspec.json.decode(row.detail))

    def _log(
        self, connection: sa.Connection, actor: str, action: str, detail: dict[str, Any], *, at: int | None = None
    ) -> None:
        row = {
            "at": at or now_ms(),
            "actor": actor,
            "action": action,
            "detail": msgspec.json.encode(detail).decode(),
        }
        connection.execute(sa.insert(audit_log).values(row))


def _key(row: sa.Row[Any]) -> ApiKey:
    companies_, scopes = tuple(row.companies.split(" ")), tuple(row.scopes.split(" "))
    kept = bytes(row.salt), bytes(row.hash)
    return ApiKey(row.id, row.company, companies_, *kept, scopes, row.created_at, row.revoked_at)
