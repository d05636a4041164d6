"""Creates the screenshot of the dashboard in the README: ``make screenshot``, six minutes.

Six peers in three zones after five minutes of load; the sixth is joining.
"""

from __future__ import annotations

import math
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from tests.harness.browser import Browser
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import wait_until

ROOT: Final = Path(__file__).resolve().parent.parent
KEYS: Final = 60_000
SECONDS: Final = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
#: Streaming rate of the sixth peer in bytes a second: it must still be joining at the end.
RATE: Final = 400_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Peers.local(Path(folder)) as peers:
        peers.form("peer1", "peer2", "peer3", "peer4", "peer5", zones="abcab")
        client = peers.client()
        client.batch_put("users", dict.fromkeys(range(KEYS), "x" * 200)).raise_for_failures()
        halt = threading.Event()
        load = threading.Thread(target=_load, args=(peers, halt))
        load.start()
        try:
            halt.wait(SECONDS)
            peers.start("peer6", "--zone", "c", "--join", "manual")
            wait_until(lambda: client.status()["candidates"], PATIENCE, "it waits to be added")
            client.admin.add(["peer6"], rate=RATE)
            _take(Path(folder), f"http://127.0.0.1:{peers['peer1'].http_port}/")
        finally:
            halt.set()
            load.join()


def _load(peers: Peers, halt: threading.Event) -> None:
    """Read and write at a varying rate, so that the graphs are not flat."""
    client = peers.client()
    place, began = 0, time.monotonic()
    while not halt.wait(0.05):
        wave = 1.3 + math.sin((time.monotonic() - began) / 25)
        reads, writes = round(300 * wave), round(60 * wave)
        client.batch_lookup("users", [(place + 7 * n) % KEYS for n in range(reads)])
        client.batch_put("users", {(place + 13 * n) % KEYS: "y" * 200 for n in range(writes)})
        place += reads


def _take(folder: Path, url: str) -> None:
    bar = "+document.querySelector('#transfers [role=progressbar]')?.ariaValueNow || 0"
    with Browser(folder) as browser:
        browser.resize(1240, 900)
        browser.open(url)
        wait_until(lambda: browser.evaluate(bar) >= 40, PATIENCE, "the sixth has taken some")
        (ROOT / "docs" / "dashboard.png").write_bytes(browser.screenshot())


if __name__ == "__main__":
    main()
