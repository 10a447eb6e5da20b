"""Signing beside: long chains are signed in a process of their own.

A receipt names the one before, so that a chain is signed one record after the other, which takes longer than reading
and committing them; and a signature holds the interpreter's lock. The process ends with the one that it works for.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from seriatim.errors import Unavailable
from seriatim.signing import Signer

Chain = tuple[str, list[bytes]]
"""The hash that the first record links to, and what the records say, as `Signer.chain` takes both."""
FEW = 128
"""So many are signed sooner here than sent away and back."""


class SigningProcess:
    """Signs with the key of `signer`: what was begun last, until its receipts are taken."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._begun: Sequence[Chain] = ()
        self._pipe: Connection | None = None
        self._sent = False

    def begin(self, chains: Sequence[Chain]) -> None:
        """Begins to sign; what was begun before is forgotten.

        Raises:
            Unavailable: the process has ended.
        """
        if self._sent:
            self._receive()
        self._begun = chains
        self._sent = sum(len(payloads) for _, payloads in chains) > FEW
        if self._sent:
            if self._pipe is None:
                self._pipe = self._start()
            try:
                self._pipe.send(chains)
            except OSError as error:
                raise self._ended() from error

    def receipts(self) -> list[list[str]]:
        """Returns the receipts of each chain that was begun.

        Raises:
            Unavailable: the process has ended.
        """
        if self._sent:
            return self._receive()
        return [self._signer.chain(*chain) for chain in self._begun]

    def _receive(self) -> list[list[str]]:
        assert self._pipe is not None
        self._sent = False
        try:
            signed: list[list[str]] = self._pipe.recv()
        except (OSError, EOFError) as error:
            raise self._ended() from error
        return signed

    def _ended(self) -> Unavailable:
        assert self._pipe is not None
        self._pipe.close()
        self._pipe, self._sent = None, False
        return Unavailable("The process that signs has ended. It is started anew.")

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads' locks
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, self._signer), name="signing", daemon=True).start()
        theirs.close()
        atexit.register(ours.close)  # behind which the process ends; before multiprocessing waits for that
        return ours


def _serve(pipe: Connection, signer: Signer) -> None:
    """Signs until nobody listens. A signal to the whole group is for the worker, which finishes what it has begun."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        while True:
            pipe.send([signer.chain(*chain) for chain in pipe.recv()])
