"""`seriatim load` against a real server."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from browser import Browser
from faulty_proxy import Asked, Proxy, Reply, running
from loading import Ran, load
from stack import SERIATIM, Up, ended, list_entries, new_id, put_entry, put_series, seriatim, until

MIX = "new=70,replay=15,batch=5,list=10"


@pytest.fixture
def client(common_up: Up) -> Iterator[httpx.Client]:
    """An HTTP client of the server's first company: that of the key that loads."""
    with common_up.client() as made:
        yield made


def test_a_mixed_load_is_sound_and_reported(common_up: Up, client: httpx.Client, tmp_path: Path) -> None:
    # Given documents with texts, numbers and nothing
    data = tmp_path / "documents.jsonl"
    documents: list[dict[str, Any]] = [
        {"no": "1", "payable": 12.5, "paid": True, "customer": None},
        {"no": "2", "customer": "Zoë & Ștefan"},
        {"no": "3"},
    ]
    data.write_text("\n".join(map(json.dumps, documents)) + "\n\n")

    before = {one["id"] for one in series_of(client)}

    # When two processes load five series with all kinds of requests
    page = tmp_path / "report.html"
    ran = load(
        common_up,
        *("--series-count", "5", "--zipf", "1", "--mix", MIX, "--batch-size", "10", "--data", str(data)),
        *("--connections", "8", "--processes", "2", "--count", "400", "--report", str(page)),
    )

    # Then all is sound, and all was looked at
    assert ran.exit_code == 0, ran.summary
    assert ran.summary["sound"] is True
    assert ran.summary["findings"] == []
    requests, audit = ran.summary["requests"], ran.summary["audit"]
    assert set(requests) == {"new", "replay", "batch", "list", "all"}
    assert requests["all"]["count"] == sum(one["count"] for kind, one in requests.items() if kind != "all") == 400
    assert audit["entries"] == requests["new"]["count"] + 10 * requests["batch"]["count"] == ran.summary["entries"]
    assert audit["listed"] == audit["receipts"] == audit["entries"]
    assert audit["replays"] == requests["replay"]["count"] > 0
    assert audit["series"] == 5
    assert 50 < audit["sampled"] <= 100
    assert all(0 < one["p50_ms"] <= one["p99_ms"] <= one["max_ms"] for one in requests.values())
    assert sum(row["answered"] for row in ran.summary["rows"]) == 400
    assert "key" not in ran.summary["options"]

    # And the series hold the documents, and took no type's default
    series = [one for one in series_of(client) if one["id"] not in before]
    assert {one["type"] for one in series} == {"load_test"}
    entries = [entry for one in series for entry in list_entries(client, one["id"])]
    assert len(entries) == audit["entries"]
    assert {entry["meta"]["no"]: entry["meta"] for entry in entries} == {
        "1": {"no": "1", "payable": "12.5", "paid": "true"},
        "2": {"no": "2", "customer": "Zoë & Ștefan"},
        "3": {"no": "3"},
    }
    counts = sorted((one["last_index"] for one in series), reverse=True)
    assert counts[0] > 2 * counts[-1]

    # And the report says so
    text = page.read_text()
    for said in ("sound", "p99.9 ms", "Latencies", "uvloop", "processes"):
        assert said in text
    assert common_up.key not in text

    # And is a page of its own: a browser fetches nothing else, complains of nothing, and shows a plot of each kind
    with Browser(tmp_path / "browser") as browser:
        browser.open(page.as_uri())
        browser.shows("location.protocol == 'file:' && document.readyState == 'complete'")
        titles = browser.evaluate("[...document.querySelectorAll('h2:has(+ svg)')].map(one => one.innerText)")
        assert browser.evaluate("Math.min(...[...document.querySelectorAll('svg')].map(one => one.clientHeight))") > 100
        assert browser.evaluate("document.querySelector('.verdict').innerText").endswith("sound")
        assert len(browser.told("Network.requestWillBeSent")) == 1
        assert not any(browser.told(name) for name in ("Log.entryAdded", "Runtime.exceptionThrown"))
    assert "Latencies" in titles


def test_a_service_may_lie_behind_tls_and_below_a_path(common_up: Up, tmp_path: Path) -> None:
    # Given a proxy that speaks TLS, and hands on what is below a path of its own
    class Below(Proxy):
        def reply(self, asked: Asked) -> Reply | None:
            assert asked.path.startswith("/numbers/")
            return self.forward(Asked(asked.method, asked.path.removeprefix("/numbers"), asked.headers, asked.body))

    certificate = make_certificate(tmp_path / "certificate.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    proxy = Below(common_up.url)
    proxy.socket = context.wrap_socket(proxy.socket, server_side=True)

    # When it is loaded, then all is sound
    with running(proxy):
        url = f"{proxy.url.replace('http', 'https')}/numbers/"
        arguments = ("load", url, "--key", common_up.key, "--count", "40", "--connections", "4")
        done = seriatim(*arguments, environment={"SSL_CERT_FILE": str(certificate)})
        unknown = seriatim(*arguments, "--deadline", "0.5")
    assert done.returncode == 0, done.stderr
    assert "40 entries in 1 series, 40 receipts" in done.stdout
    assert unknown.returncode == 2
    assert "CERTIFICATE_VERIFY_FAILED" in unknown.stderr


def make_certificate(path: Path) -> Path:
    """Makes a key and a certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    day = timedelta(days=1)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + builder.sign(key, hashes.SHA256()).public_bytes(pem))
    return path


def test_people_are_told_second_by_second_and_at_the_end(common_up: Up) -> None:
    # When the rate is kept for a second, after warming up
    arguments = ("--rate", "40", "--duration", "1", "--warm-up", "1", "--connections", "4")
    done = seriatim("load", common_up.url, "--key", common_up.key, *arguments)

    # Then progress says how it goes, and the end what came out
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()[:2]
    assert re.fullmatch(r" +1 s  warming up  errors 0  backlog \d+", first)
    assert re.fullmatch(r" +2 s  \d+/s  p50 [\d.]+ ms  p99 [\d.]+ ms  p99.9 [\d.]+ ms  errors 0  backlog \d+", second)
    assert re.search(r"^new +40 ", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("80 entries in 1 series, 80 receipts, 0 replays: sound\n")


def test_the_backlog_is_told_while_no_worker_settles(common_up: Up) -> None:
    # Given a worker that is stopped
    common_up.settled()
    with common_up.worker_stopped():
        # When numbers are issued for more than a second, and receipts not waited for
        ran = load(common_up, "--rate", "40", "--duration", "1.5", "--connections", "4", "--settle", "0")

    # Then all is there, and the backlog grows as they come
    assert ran.exit_code == 0, ran.summary["findings"]
    assert ran.summary["audit"]["listed"] == 60
    assert ran.summary["audit"]["receipts"] == 0
    first, last = (row["backlog"] for row in ran.summary["rows"])
    assert 0 <= first <= last <= 60
    assert last > 0
    assert f"backlog {last}" in ran.progress


def test_others_may_write_into_a_series_that_is_given(common_up: Up, client: httpx.Client) -> None:
    # Given a series with a period, a start, entries, a void and a skip, and somebody who goes on writing into it
    series = put_series(client, format="A-%yearLong%-%incYearly%", start=7)
    first = put_entry(client, series)
    client.post(f"/sequence/v1/series/{series}/entries/{first['id']}/void", json={"reason": "wrong"})
    client.post(f"/sequence/v1/series/{series}/skip", json={"to": 50, "reason": "printed"})
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.01):
            put_entry(client, series, meta={"other": "yes"})

    writer = threading.Thread(target=write)
    writer.start()

    # When it is loaded, then what others wrote is counted and is no finding
    try:
        ran = load(common_up, "--series", series, "--count", "100", "--connections", "4")
    finally:
        over.set()
        writer.join()
    assert ran.exit_code == 0, ran.summary["findings"]
    assert ran.summary["entries"] == 100
    assert ran.summary["audit"]["foreign"] > 0
    assert ran.summary["audit"]["listed"] >= 100 + ran.summary["audit"]["foreign"]


@contextmanager
def loading(up: Up, *arguments: str) -> Iterator[list[Ran]]:
    """Loads a server meanwhile, from when a first number is issued; afterwards holds what came of it."""
    ran: list[Ran] = []
    thread = threading.Thread(target=lambda: ran.append(load(up, *arguments)))
    with up.client() as client:
        before = {one["id"] for one in series_of(client)}
        thread.start()
        until(lambda: [one for one in series_of(client) if one["id"] not in before and one["last_index"]])
    yield ran
    thread.join()


def series_of(client: httpx.Client) -> list[dict[str, Any]]:
    """All series, the newest last."""
    listed: list[dict[str, Any]] = client.get("/sequence/v1/series?limit=1000").json()["list"]
    return listed


def test_an_entry_that_nobody_asked_for_is_found_in_a_series_of_its_own(common_up: Up, client: httpx.Client) -> None:
    # Given a load, when somebody else writes into the series that it made
    with loading(common_up, "--rate", "50", "--duration", "1", "--connections", "2") as ran:
        put_entry(client, series_of(client)[-1]["id"])

    # Then the audit finds it
    assert ran[0].exit_code == 1
    assert ran[0].kinds == {"unexpected_entry"}


def test_a_pause_of_the_server_is_felt_by_all_who_were_due_meanwhile(common_up: Up) -> None:
    # Given 100 requests a second for two seconds, whatever the answers do
    (pid,) = common_up.pids("seriatim serve")
    with loading(common_up, "--rate", "100", "--duration", "2", "--connections", "4") as ran:
        # When the API process is stopped for a second
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1)
        os.kill(pid, signal.SIGCONT)

    # Then four requests were under way, and yet all of the 100 that were due meanwhile count, with their wait
    (done,) = ran
    assert done.exit_code == 0, done.summary["findings"]
    assert done.summary["requests"]["new"]["count"] == 200
    assert sum(bar["count"] for bar in done.summary["bars"] if bar["to_ms"] > 450) >= 50
    assert done.summary["requests"]["new"]["p90_ms"] > 450
    assert done.summary["requests"]["new"]["max_ms"] > 900


def test_a_killed_api_process_costs_repetitions_and_nothing_else(common_up: Up) -> None:
    # Given a load that keeps all connections busy
    (pid,) = common_up.pids("seriatim serve")
    with loading(common_up, "--duration", "2", "--connections", "8") as ran:
        # When the API process is killed, and started again by its supervisor
        os.kill(pid, signal.SIGKILL)

    # Then what was under way was repeated, and all that was answered is there
    (done,) = ran
    assert done.exit_code == 0, done.summary["findings"]
    assert done.summary["errors"]["dropped"] > 0
    assert done.summary["audit"]["unknown"] == 0


def test_an_interrupted_load_is_audited(common_up: Up, client: httpx.Client) -> None:
    # Given a load that would take a minute, when it is interrupted after its first number
    series = put_series(client)

    def interrupt() -> None:
        until(lambda: client.get(f"/sequence/v1/series/{series}").json()["last_index"])
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    ran = load(common_up, "--series", series, "--duration", "60", "--connections", "4")

    # Then it ends early, and is audited all the same
    assert ran.exit_code == 0
    assert ran.summary["seconds"] < 50
    assert ran.summary["audit"]["listed"] == ran.summary["entries"] > 0


def test_a_load_whose_command_is_killed_goes_on_no_longer(common_up: Up, client: httpx.Client) -> None:
    # Given a load that would take a minute
    series = put_series(client)
    command = [*SERIATIM, "load", common_up.url, "--key", common_up.key, "--series", series, "--duration", "60"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as harness:
        until(lambda: client.get(f"/sequence/v1/series/{series}").json()["last_index"])

        # When the command is killed, behind on what it is told, then the processes that it started end as well
        harness.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        children = Path(f"/proc/{harness.pid}/task/{harness.pid}/children").read_text().split()
        harness.kill()
    assert children
    until(lambda: all(ended(int(pid)) for pid in children))
    issued = [-1, 0]
    while issued[-1] != issued[-2]:
        issued.append(client.get(f"/sequence/v1/series/{series}").json()["last_index"])
        time.sleep(0.3)
        assert len(issued) < 50


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("http://127.0.0.1:9",), "Nothing answers at 127.0.0.1:9"),
        (("URL", "--key", "seriatim_wrong"), "API key"),
        (("URL", "--series", new_id()), "There is no series"),
        (("ftp://127.0.0.1",), "must be like https://"),
        (("http://127.0.0.1:x",), "cannot be read"),
        (("URL", "--mix", "new=1,old=2"), "--mix is made of new, replay, batch, list"),
        (("URL", "--mix", "replay=1"), "--mix needs new or batch"),
        (("URL", "--mix", "new"), "is not a kind and its share"),
        (("URL", "--connections", "1", "--processes", "2"), "2 processes need as many --connections"),
        (("URL", "--data", "DATA"), "Line 1 of"),
        (("URL", "--data", "EMPTY"), "has no lines"),
        (("URL/docs",), "/docs"),
        (("URL", "--report", "/nowhere/report.html"), "/nowhere/report.html"),
    ],
)
def test_what_cannot_run_says_why(common_up: Up, tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    (tmp_path / "data").write_text('{"list": ["of", "lists"]}')
    (tmp_path / "empty").touch()
    meant = {"URL": common_up.url, "DATA": str(tmp_path / "data"), "EMPTY": str(tmp_path / "empty")}
    key = () if "--key" in arguments else ("--key", common_up.key)
    done = seriatim("load", *(meant.get(one, one.replace("URL", common_up.url)) for one in arguments), *key)
    assert done.returncode == 2
    assert why in done.stderr
