"""What authentication, scopes and limits cost a PUT: beside the same API without them, for API keys and for tokens.

Three API processes on one Valkey and one store, each used in turn.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import msgspec
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from client import Load, Run, run
from contenders import Arena
from options import Options, turned
from parts import Parts

WITHOUT, KEY, TOKEN = "without", "API key", "token (ES256)"
UNGUARDED = str(Path(__file__).parent / "unguarded.py")


class Guarded(msgspec.Struct, frozen=True):
    """One run."""

    round: int
    credentials: str
    run: Run


def measure(arena: Arena, options: Options) -> list[Guarded]:
    """One run of each a round, each in a series of its own."""
    guarded = []
    directory = arena.directory()
    with contextlib.ExitStack() as stack:
        parts = stack.enter_context(contextlib.closing(Parts(directory)))
        token = _token(parts.company, directory / "jwks.json")
        fronts = {
            WITHOUT: parts.front(WITHOUT, "-", [UNGUARDED], BENCH_COMPANY=parts.company),
            KEY: parts.front(KEY),
            TOKEN: parts.front(TOKEN, token, SERIATIM_JWT_JWKS=str(directory / "jwks.json")),
        }
        running = {name: stack.enter_context(front) for name, front in fronts.items()}
        for number in range(options.rounds):
            for name in turned(list(running), number):
                series = running[name].create_series(1)
                guarded.append(Guarded(number, name, run(running[name], series, Load(64, options.seconds))))
    return guarded


def _token(company: str, jwks: Path) -> str:
    private = ECKey.generate_key("P-256", {"kid": "bench"})
    jwks.write_text(json.dumps(KeySet([private]).as_dict(private=False)))
    claims = {"sub": "bench", "exp": int(time.time()) + 86_400, "scope": "read allocate manage", "company": company}
    return jwt.encode({"alg": "ES256", "kid": "bench"}, claims, private)
