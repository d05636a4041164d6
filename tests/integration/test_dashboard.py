"""The dashboard in a real browser, on healthy, changing and failing clusters."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.browser import Browser
from tests.harness.peers import PATIENCE, Peer, Peers
from tests.harness.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "dstash" / "peer" / "http" / "dashboard" / "static"
#: Seconds within which a killed peer is shown as down.
NOTICED = 3.0
#: Bytes a second for a joining peer: slow enough to be visible.
SLOW = 50_000
SCREENS = ((1280, 900), (768, 1024), (390, 844), (320, 568))

#: The texts on the page without enough contrast to their background (WCAG 1.4.3, AA).
PALE = """(() => {
  const rgb = (text) => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
    const context = canvas.getContext("2d");
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (text) => {
    const [r, g, b] = rgb(text).slice(0, 3).map((one) => one / 255).map(
      (one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (rgb(colour)[3] === 255) return colour;
    }
    return "white";
  };
  return [...document.querySelectorAll("body *:not(svg *)")]
    .filter((one) => one.checkVisibility() && [...one.childNodes].some(
      (node) => node.nodeType === Node.TEXT_NODE && node.data.trim()))
    .filter((one) => {
      const [low, high] = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05) < 4.5;
    })
    .map((one) => one.outerHTML);
})()"""  # noqa: E501


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests of this file."""
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.resize(*SCREENS[0])
        yield browser


def _show(browser: Browser, peer: Peer) -> None:
    browser.complaints.clear()
    browser.requested.clear()
    browser.open(f"http://127.0.0.1:{peer.http_port}/")
    wait_until(lambda: browser.text("#verdict") != "Loading", PATIENCE, "it has asked")


def _health(browser: Browser, peer: str) -> str:
    return browser.text(f"[data-peer={peer}] .health")


def _wait_for(browser: Browser, peer: str, health: str, patience: float = PATIENCE) -> None:
    wait_until(lambda: _health(browser, peer) == health, patience, f"{peer} is {health}")


def _problems(browser: Browser) -> str:
    return browser.text("#alerts")


def test_dashboard_shows_the_whole_cluster(browser: Browser, trio: Peers) -> None:
    client = trio.client()
    _show(browser, trio["b"])
    for peer in "abc":
        _wait_for(browser, peer, "ok")
    assert browser.text("#verdict") == "All is well"
    assert _problems(browser) == ""
    assert "seen from b" in browser.text("#origin")
    assert "4,096" in browser.evaluate("document.getElementById('ring').textContent")
    zones = browser.evaluate("document.querySelectorAll('#ring .zone').length")
    sets = browser.evaluate("document.querySelectorAll('#ring .set').length")
    assert (zones, sets) == (3, 18), "three zones, and six orders of three peers"
    drawn = "document.querySelectorAll('{} .line').length"
    wait_until(
        lambda: client.lookup("words", 1) is None and browser.evaluate(drawn.format("#load")),
        PATIENCE,
        "there are lines in the charts",
    )
    assert "read " in browser.evaluate("document.querySelector('#throughput svg').ariaLabel")
    assert browser.complaints == []
    assert browser.requested
    here = (f"http://127.0.0.1:{trio['b'].http_port}/", "data:,")
    assert all(url.startswith(here) for url in browser.requested)


def test_dashboard_is_readable_in_light_dark_and_on_a_phone(browser: Browser, trio: Peers) -> None:
    _show(browser, trio["a"])
    pages = set()
    for scheme in ("dark", "light"):
        browser.prefer(scheme)
        assert browser.evaluate(PALE) == []
        pages.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(pages) == 2
    for screen in reversed(SCREENS):
        browser.resize(*screen)
        assert browser.evaluate("document.documentElement.scrollWidth") <= screen[0]


def test_dashboard_works_with_the_keyboard(browser: Browser, trio: Peers) -> None:
    _show(browser, trio["a"])
    _wait_for(browser, "b", "ok")
    pressed = "document.querySelector('#legend [data-choose=b]').ariaPressed"
    browser.evaluate("document.querySelector('#legend [data-choose=a]').focus()")
    browser.press("Tab")
    browser.press("Enter")
    assert browser.evaluate(pressed) == "true"
    assert browser.evaluate("document.querySelectorAll('#ring .chosen').length") == 18
    browser.press("Enter")
    assert browser.evaluate(pressed) == "false"
    unnamed = (
        "[...document.querySelectorAll('[role=img], [role=progressbar], button')].filter("
        "one => !(one.ariaLabel || one.getAttribute('aria-labelledby') || one.innerText)).length"
    )
    # The charts get their names with their first numbers.
    wait_until(lambda: browser.evaluate(unnamed) == 0, 20, "everything has a name")


def test_dashboard_shows_a_join_and_failures(browser: Browser, tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a", "b", "c")
        client = peers.client()
        client.batch_put("words", dict.fromkeys(range(5000), "x" * 100))
        _show(browser, peers["a"])
        _join(browser, peers)
        peers["d"].kill()
        _wait_for(browser, "d", "down", NOTICED)
        assert browser.text("#verdict") == "Degraded"
        assert "d is down" in _problems(browser)
        peers["c"].kill()
        _wait_for(browser, "c", "down", NOTICED)
        wait_until(lambda: "quorum lost for" in _problems(browser), PATIENCE, "it says what fails")
        assert browser.text("#verdict") == "Broken"
        peers["c"].start()
        _wait_for(browser, "c", "ok")
        assert "quorum lost" not in _problems(browser)
        peers["a"].kill()
        wait_until(lambda: "does not answer" in _problems(browser), PATIENCE, "it says so")


def _join(browser: Browser, peers: Peers) -> None:
    client = peers.client()
    peers.start("d", "--join", "manual")
    wait_until(lambda: client.status()["candidates"] == ["d"], PATIENCE, "d waits to be added")
    client.admin.add(["d"], rate=SLOW)
    bar = "+document.querySelector('#transfer-d [role=progressbar]')?.ariaValueNow || 0"
    wait_until(lambda: 0 < browser.evaluate(bar) < 100, PATIENCE, "the bar has begun to grow")
    seen = browser.evaluate(bar)
    assert _health(browser, "d") == "joining"
    assert "d joins" in browser.text("#change-what")
    assert browser.text("#verdict") == "All is well, data is moving"
    wait_until(lambda: seen < browser.evaluate(bar), PATIENCE, "the bar grows")
    client.admin.rate(0)
    _wait_for(browser, "d", "ok")
    wait_until(
        lambda: browser.evaluate("document.getElementById('change').hidden"), PATIENCE, "end"
    )


def test_dashboard_of_a_peer_without_cluster_shows_the_reason(
    browser: Browser, tmp_path: Path
) -> None:
    with Peers.local(tmp_path) as peers:
        lonely = peers.start("lonely", "--min-peers", "3")
        wait_until(lambda: lonely.page("/healthz"), PATIENCE, "it serves pages")
        _show(browser, lonely)
        assert browser.text("#verdict") == "Broken"
        assert "1 of 3 peers have joined" in _problems(browser)
        assert _health(browser, "lonely") == "not ready"


def test_dashboard_loads_no_external_files(trio: Peers) -> None:
    files = sorted(FILES.iterdir())
    assert {file.suffix for file in files} == {".html", ".css", ".js"}
    for file in files:
        outside = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", file.read_text())
        assert set(outside) <= {"http://www.w3.org/2000/svg"}, file.name  # an identifier
        with urllib.request.urlopen(
            f"http://127.0.0.1:{trio['a'].http_port}/{file.name}", timeout=PATIENCE
        ) as answer:
            assert answer.read() == file.read_bytes()
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert '"dstash.peer.http.dashboard" = ["static/*"]' in (ROOT / "pyproject.toml").read_text()
