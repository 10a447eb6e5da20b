"""The API page, in a real browser: it shows every operation, works, and asks nobody but this server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from browser import Browser
from stack import Up

LISTED = "[...document.querySelectorAll('.opblock')].map(one => one.querySelector('.opblock-summary-method').innerText"
LISTED += " + ' ' + one.querySelector('.opblock-summary-path').dataset.path)"
COMPLAINTS = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests of this module."""
    with Browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def page(shared_up: Up, browser: Browser) -> Browser:
    """The browser with the page just opened."""
    browser.events.clear()
    browser.open(f"{shared_up.url}/docs")
    browser.shows(f"{LISTED}.length")
    return browser


def requests(browser: Browser) -> list[str]:
    """What the browser has asked for, wherever; not what is within the page itself."""
    urls = [one["request"]["url"] for one in browser.told("Network.requestWillBeSent")]
    return [url for url in urls if not url.startswith("data:")]


def complaints(browser: Browser) -> list[dict[str, Any]]:
    """Errors and warnings of the browser, violations of the page's policy among them."""
    return [one for name in COMPLAINTS for one in browser.told(name)]


def click(browser: Browser, selector: str) -> None:
    browser.shows(f"!!document.querySelector('{selector}')")
    browser.evaluate(f"document.querySelector('{selector}').click()")


def test_the_page_shows_every_operation_and_asks_nobody_else(shared_up: Up, page: Browser) -> None:
    # Given the operations of the description
    document = httpx.get(f"{shared_up.url}/openapi.json", verify=False).json()
    wanted = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}

    # When the page is open, then it lists them all
    assert set(page.evaluate(LISTED)) == wanted
    assert page.evaluate("document.title") == "Seriatim API"

    # And it has loaded all that from here, without a complaint
    assert {url.removeprefix(shared_up.url) for url in requests(page)} >= {"/docs", "/docs/start.js", "/openapi.json"}
    assert [url for url in requests(page) if not url.startswith(f"{shared_up.url}/")] == []
    assert complaints(page) == []


def test_a_series_is_made_from_the_page(shared_up: Up, page: Browser) -> None:
    # Given somebody who has entered a key
    click(page, ".btn.authorize")
    page.shows("!!document.querySelector('.auth-container input')")
    page.evaluate("document.querySelector('.auth-container input').focus()")
    page.call("Input.insertText", text=shared_up.key)
    click(page, ".auth-btn-wrapper .authorize")
    click(page, ".btn-done")

    # When they open an operation and send its example as it stands
    operation = "#operations-sequence-sequence_v1_put_series"
    click(page, f"{operation} .opblock-summary-control")
    click(page, f"{operation} .try-out__btn")
    click(page, f"{operation} .execute")

    # Then the page shows the answer of the service, and the series is there
    answer = page.shows(f"document.querySelector('{operation} .live-responses-table .response')?.innerText")
    assert answer.startswith("200")
    assert '"format": "INV-%yearLong%-%incYearly%"' in answer
    with shared_up.client() as client:
        assert [one["name"] for one in client.get("/sequence/v1/series").json()["list"]] == ["Sales"]
    assert complaints(page) == []


def test_what_must_not_be_on_the_page_is_stopped_and_would_be_seen(page: Browser) -> None:
    # Given what a page should not do: inline script and style, an image and a request from elsewhere, an error
    for planted in (
        "document.head.append(Object.assign(document.createElement('script'), {text: 'window.planted = 1'}))",
        "document.head.append(Object.assign(document.createElement('style'), {textContent: 'body {color: red}'}))",
        "document.body.append(Object.assign(document.createElement('img'), {src: 'https://example.com/a.png'}))",
        "fetch('https://example.com/').catch(() => 0)",
        "console.error('planted')",
    ):
        # When it is done, then there is a complaint about it
        page.events.clear()
        page.evaluate(f"({planted}, 1)")
        page.shows("1")  # whatever is told comes before this
        assert complaints(page), planted

    # And what was stopped had no effect
    assert page.evaluate("window.planted") is None
    assert page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"


def test_the_page_and_what_it_loads_need_no_credentials_and_allow_nothing_from_elsewhere(shared_up: Up) -> None:
    with httpx.Client(base_url=shared_up.url, verify=False) as client:
        # Given the page
        page = client.get("/docs")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert not re.search("unsafe|http|[*]", policy)

        # When what it names is loaded, then it is there, of the right kind, and not sent again to whoever has it
        named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        kinds = {name.rpartition(".")[2]: client.get(f"/{name}").headers["Content-Type"] for name in named}
        assert kinds == {
            "png": "image/png",
            "css": "text/css; charset=utf-8",
            "json": "application/json",
            "js": "text/javascript; charset=utf-8",
        }
        for name in named:
            whole = client.get(f"/{name}")
            assert whole.headers["X-Content-Type-Options"] == "nosniff"
            assert client.get(f"/{name}", headers={"If-None-Match": whole.headers["ETag"]}).status_code == 304


def test_nothing_else_lies_beside_the_page(client: httpx.Client) -> None:
    for path in (
        "/docs/",
        "/docs/index.html",
        "/docs/swagger-initializer.js",
        "/docs/../app.py",
        "/docs/%2e%2e/app.py",
    ):
        assert client.get(path).status_code == 404
