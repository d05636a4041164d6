"""``python -m bench.compaction``: what a compaction of a peer that serves gives back, and costs.

One peer and two clients on this machine: one looks keys up, the other puts keys, each at a steady
rate. Times at rest and during a compaction alternate.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.scaling import INDEX, Figure, Lookups, percentile
from dstash import Client
from tests.harness.peers import Peer, Peers
from tests.harness.waiting import wait_until

#: Seconds until earlier work no longer delays look-ups.
_SETTLE_SECONDS = 2.0
_CALM_SECONDS = 8.0
_PUTS_PER_SECOND = 100
_BATCH = 5000

Note = Callable[[str], None]


class Puts(threading.Thread):
    """Puts new keys at a steady rate and records the duration of each (milliseconds)."""

    def __init__(self, client: Client) -> None:
        super().__init__(daemon=True)
        self.samples: list[float] = []
        self._client = client
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Put keys until stopped."""
        number = 0
        while not self._stop_asked.wait(1 / _PUTS_PER_SECOND):
            began = time.perf_counter()
            self._client.put(INDEX, f"new-{number}", "v" * 100)
            self.samples.append((time.perf_counter() - began) * 1000)
            number += 1

    def take(self) -> list[float]:
        """Return the samples so far, and start over."""
        taken, self.samples = self.samples, []
        return taken

    def stop(self) -> None:
        """Stop putting."""
        self._stop_asked.set()
        self.join()


def run(folder: Path, options: argparse.Namespace, note: Note) -> Iterator[Figure]:
    """Run all measurements."""
    with Peers.local(folder, "--replicas", "1") as peers:
        peers.form("a")
        fill(peers.client(timeout=120.0), options, note)
        lookups, puts = Lookups(peers.client(), options.records), Puts(peers.client())
        lookups.start()
        puts.start()
        calm, busy, slow = [], [], []
        calm_puts, compactions = [], []
        for number in range(options.rounds):
            note(f"round {number + 1}")
            time.sleep(_SETTLE_SECONDS)
            lookups.take(), puts.take()
            time.sleep(_CALM_SECONDS)
            calm += lookups.take()
            calm_puts += puts.take()
            compactions.append(compact(peers["a"], peers.client()))
            busy += lookups.take()
            slow += puts.take()
        lookups.stop()
        puts.stop()
        first = compactions[0]
        before, after = first["before"] / options.records, first["after"] / options.records
        yield Figure("bytes of the file for each record, before", before, "B", "", None)
        yield Figure("after", after, "B", "", None)
        yield Figure("a compaction takes", first["seconds"], "s", "", None)
        held = max(done["held_seconds"] for done in compactions) * 1000
        yield Figure("commits are held back for, at most", held, "ms", "", None)
        for what, rest, work in (("look-ups", calm, busy), ("puts", calm_puts, slow)):
            ratio = percentile(work, 0.99) / percentile(rest, 0.99)
            yield Figure(f"p99 of {what} at rest", percentile(rest, 0.99), "ms", "", None)
            yield Figure(f"p99 of {what} meanwhile", percentile(work, 0.99), "ms", "", None)
            wanted, met = ("< 1.5", ratio < 1.5) if what == "look-ups" else ("", None)
            yield Figure(f"{what}: meanwhile / at rest", ratio, "x", wanted, met)


def fill(client: Client, options: argparse.Namespace, note: Note) -> None:
    """Put all records in random order."""
    note(f"storing {options.records:,} records")
    numbers = list(range(options.records))
    random.Random(1).shuffle(numbers)
    value = "v" * options.value_bytes
    for begin in range(0, options.records, _BATCH):
        part = numbers[begin : begin + _BATCH]
        client.batch_put(INDEX, {f"k{number}": value for number in part})


def compact(peer: Peer, client: Client) -> dict[str, float]:
    """Compact a peer; return what its status says of it afterwards."""
    ended = int(client.admin.compact(peer.name)["compaction"]["ended"])
    found: list[dict[str, float]] = []

    def has_ended() -> bool:
        time.sleep(0.2)  # a request costs time, too
        found.append(dict(peer.page("/status")["compaction"]))
        return found[-1]["ended"] > ended

    wait_until(has_ended, 600, "it is compacted")
    return found[-1]


def main() -> int:
    """Run all measurements; the exit code says whether every target was reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.compaction", description=__doc__)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dstash-compaction-") as folder:
        figures = list(run(Path(folder), options, Console(stderr=True).print))
    table = Table("what", "value", "unit", "wanted", "met")
    for figure in figures:
        met = "" if figure.met is None else "yes" if figure.met else "NO"
        table.add_row(figure.what, f"{figure.value:.2f}", figure.unit, figure.wanted, met)
    Console(width=100).print(table)
    return 0 if all(figure.met is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
