"""Long chains are signed in a process beside, which comes and goes without anybody being the wiser."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from joserfc.jwk import ECKey, OKPKey

from seriatim import signing
from seriatim.errors import Unavailable
from seriatim.signing import JsonWebKeySet, Signer
from seriatim.signing_process import FEW, Chain, SigningProcess
from stack import ended, until
from test_signing import jwks, key_file, make_entry

LONG = FEW + 1
HOLDER = """
import sys
from pathlib import Path
from seriatim.signing import Signer
from seriatim.signing_process import SigningProcess
import multiprocessing
if __name__ == "__main__":
    process = SigningProcess(Signer(Path(sys.argv[1]), "Issuer"))
    process.begin([("link", [b'{"prev":""}'] * 1000)])
    process.receipts()
    print(multiprocessing.active_children()[0].pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["ES256", "Ed25519"])
def signer(request: pytest.FixtureRequest, tmp_path: Path) -> Signer:
    """A signer of either algorithm."""
    key = ECKey.generate_key("P-256") if request.param == "ES256" else OKPKey.generate_key("Ed25519")
    return Signer(key_file(tmp_path / "key.json", key), "Issuer")


@pytest.fixture
def process(signer: Signer) -> Iterator[SigningProcess]:
    before = set(children())
    yield SigningProcess(signer)
    for pid in set(children()) - before:
        os.kill(pid, signal.SIGKILL)


def children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def chain(signer: Signer, link: str, length: int, first: int = 1) -> Chain:
    return link, [signer.payload(make_entry(position)) for position in range(first, first + length)]


def sign(process: SigningProcess, *chains: Chain) -> list[list[str]]:
    process.begin(chains)
    return process.receipts()


def positions(signer: Signer, link: str, receipts: list[str]) -> list[int]:
    """The positions of records whose receipts are good and follow one another from a link on."""
    keys = JsonWebKeySet(jwks(signer))
    said = [keys.open(receipt) for receipt in receipts]
    assert [one["prev"] for one in said] == [link, *(signing.digest(receipt.encode()) for receipt in receipts[:-1])]
    return [one["position"] for one in said]


@pytest.mark.parametrize("lengths", [(1,), (FEW,), (LONG,), (LONG, 1, 300), ()], ids=str)
def test_chains_are_signed_here_or_beside(signer: Signer, process: SigningProcess, lengths: tuple[int, ...]) -> None:
    # Given chains of any length
    chains = [chain(signer, f"link {number}", length) for number, length in enumerate(lengths)]
    before = set(children())

    # When they are signed
    signed = sign(process, *chains)

    # Then each chain is whole, and a process was only made for long ones
    for (link, _), receipts, length in zip(chains, signed, lengths, strict=True):
        assert positions(signer, link, receipts) == list(range(1, length + 1))
    assert len(set(children()) - before) == (sum(lengths) > FEW)


def test_what_nobody_waited_for_is_not_taken_for_something_else(signer: Signer, process: SigningProcess) -> None:
    # Given chains that were begun and given up, long ones and short ones
    for length in (LONG, 5, LONG, LONG):
        process.begin([chain(signer, "old", length)])

    # When another is begun, then its receipts are those that come
    for length in (LONG, 3):
        (receipts,) = sign(process, chain(signer, "new", length, 1000))
        assert positions(signer, "new", receipts) == list(range(1000, 1000 + length))


def test_a_process_that_is_killed_is_made_anew(signer: Signer, process: SigningProcess) -> None:
    # Given one that has signed
    others = set(children())
    sign(process, chain(signer, "link", LONG))
    for begun in (True, False):
        # When it is killed while it signs, or while it waits
        (pid,) = set(children()) - others
        if begun:
            process.begin([chain(signer, "link", 20 * LONG)])
        os.kill(pid, signal.SIGKILL)
        until(partial(ended, pid))

        # Then whoever asks is told so, and the next one is served
        with pytest.raises(Unavailable, match="has ended"):
            sign(process, chain(signer, "link", LONG))
        (receipts,) = sign(process, chain(signer, "link", LONG))
        assert positions(signer, "link", receipts) == list(range(1, LONG + 1))


def test_it_signs_with_the_key_that_the_worker_began_with(
    signer: Signer, process: SigningProcess, tmp_path: Path
) -> None:
    # Given a signer whose file has another key by now
    key_file(tmp_path / "other.json", ECKey.generate_key("P-256")).replace(tmp_path / "key.json")

    # When a long chain is signed, then it is with the old key, on which all others build
    (receipts,) = sign(process, chain(signer, "link", LONG))
    assert len(positions(signer, "link", receipts)) == LONG


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_it_works_for(tmp_path: Path, number: signal.Signals) -> None:
    # Given a process that has one beside it, which a signal to all does not end
    path = key_file(tmp_path / "key.json", ECKey.generate_key("P-256"))
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    with subprocess.Popen(
        [sys.executable, str(script), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        pid = int(holder.stdout.readline())
        for polite in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, polite)
        assert Path(f"/proc/{pid}/cmdline").read_bytes()

        # When that ends in whatever way
        holder.send_signal(number)

        # Then so does it
        until(partial(ended, pid))
