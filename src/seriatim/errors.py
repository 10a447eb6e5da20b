"""Everything that Seriatim raises on purpose.

SeriatimError
├── BadRequest        400  the request cannot be read
├── Unauthorized      401  no key, or not a valid one
├── Forbidden         403  the key's scopes do not allow it
├── NotFound          404  no such object in this company
├── NotAllowed        405  the path does not take this method
├── Conflict          409  contradicts what is there
├── TooLarge          413  the body is larger than the limit
├── Invalid           422  fields are wrong; names them
├── Busy              429  the caller should slow down
├── Unavailable       503  not now: repeat the same request, with the same id
│   ├── Stale              this process must meet the Redis server (again) first
│   └── Halted             allocation is stopped until somebody acts on the reason
│       └── Damaged        ... because Redis and the store contradict themselves or one another
├── ConfigError            a setting, a file or an argument is wrong
└── Unproven               an entry is not what its receipt says
    └── Unsettled          it has no receipt yet

Each message is for the user and says what to do. Nothing but Seriatim's own faults is a 500. The client raises the same
as the service; the last three never travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

NAMED_MAX = 5
"""How many wrong fields a message names; `fields` names more."""


class SeriatimError(Exception):
    """Base of all; `message` is a sentence for the user."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retry_after_s: ClassVar[int | None] = None
    ids: Sequence[str] = ()
    """Which entries a client asked for: to be asked for again, by these ids, while it is not known what they got."""

    def __init__(self, message: str, *, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields or {}


class BadRequest(SeriatimError):  # noqa: N818 -- named as HTTP names it, here and below
    """The request cannot be read at all."""

    status = 400
    code = "bad_request"


class Unauthorized(SeriatimError):  # noqa: N818
    """No credentials, or none that are valid."""

    status = 401
    code = "unauthorized"


class Forbidden(SeriatimError):  # noqa: N818
    """The credentials are valid and do not reach this far."""

    status = 403
    code = "forbidden"


class NotFound(SeriatimError):  # noqa: N818
    """No such object, or none that the caller's company can see."""

    status = 404
    code = "not_found"


class NotAllowed(SeriatimError):  # noqa: N818
    """The path exists and does not take this method."""

    status = 405
    code = "method_not_allowed"


class Conflict(SeriatimError):  # noqa: N818
    """The request contradicts what is already there."""

    status = 409
    code = "conflict"


class TooLarge(SeriatimError):  # noqa: N818
    """The body is larger than the limit."""

    status = 413
    code = "too_large"


class Invalid(SeriatimError):  # noqa: N818
    """Some fields are wrong; the answer says which and why."""

    status = 422
    code = "invalid"

    def __init__(self, fields: dict[str, str]) -> None:
        listed = "; ".join(f"{name}: {why}" for name, why in list(fields.items())[:NAMED_MAX])
        super().__init__(f"Correct these fields and send the request again. {listed}", fields=fields)


class Busy(SeriatimError):  # noqa: N818
    """The caller sends more than it may."""

    status = 429
    code = "busy"
    retry_after_s = 1


class Unavailable(SeriatimError):  # noqa: N818
    """Not now. The outcome of an allocation is unknown; repeating it with the same id is safe."""

    status = 503
    code = "unavailable"
    retry_after_s = 1


class Stale(Unavailable):
    """What this process knows of the Redis server is out of date: it must meet the server before it goes on."""

    def __init__(self) -> None:
        super().__init__("The Redis server has changed and is being checked. Repeat the request.")


class Halted(Unavailable):
    """Going on could repeat or lose a number. `message` is the reason; nothing is allocated until it is dealt with."""

    code = "halted"
    retry_after_s = 30


class Damaged(Halted):
    """Redis and the store contradict themselves or one another. Whoever sees it halts the whole data set."""


class ConfigError(SeriatimError):
    """A setting, a file, a command line or an argument is wrong; for the operator, never sent over HTTP."""

    code = "wrong_setting"


class Unproven(SeriatimError):  # noqa: N818
    """An entry differs from its receipt, or the receipt was not signed by a key that is trusted."""

    code = "unproven"


class Unsettled(Unproven):
    """The entry, or its void, has no receipt yet. A worker makes it, within moments as a rule."""

    code = "unsettled"
