"""``python -m tests.bench.scaling``: how fast data moves, and what look-ups feel of it.

All in one run, on this machine: peers and client share its cores.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from dstash import Client
from dstash.cluster.rendezvous import Candidate, place, place_again
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import wait_until

INDEX = "bench"
_CALM_SECONDS = 5.0
_MEMBERS = 1000


class Figure(NamedTuple):
    """One thing that was measured, and what is asked of it."""

    what: str
    value: float
    unit: str
    wanted: str
    met: bool | None


class Lookups(threading.Thread):
    """Looks up one key after the other, and remembers how long each took (milliseconds)."""

    def __init__(self, client: Client, keys: int) -> None:
        super().__init__(daemon=True)
        self.samples: list[float] = []
        self._client = client
        self._keys = keys
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Look up until told to stop."""
        rng = random.Random(1)
        while not self._stop_asked.is_set():
            key = f"k{rng.randrange(self._keys)}"
            began = time.perf_counter()
            assert self._client.lookup(INDEX, key) is not None
            self.samples.append((time.perf_counter() - began) * 1000)

    def take(self) -> list[float]:
        """Return the samples so far, and begin anew."""
        taken, self.samples = self.samples, []
        return taken

    def stop(self) -> None:
        """Stop looking up."""
        self._stop_asked.set()
        self.join()


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the sample below which that share of them lies."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


def candidate(cluster: Peers, client: Client, name: str) -> None:
    """Start a peer that waits to be added."""
    cluster.start(name, "--join", "manual")
    wait_until(lambda: name in client.status()["candidates"], PATIENCE, f"{name} waits")


def move(folder: Path, records: int, value_bytes: int, *, with_lookups: bool) -> list[Figure]:
    """Measure how fast a second peer is filled from the first one."""
    with Peers.local(folder, "--replicas", "2") as cluster:
        cluster.form("p1")
        client = cluster.client()
        value = "v" * value_bytes
        client.batch_put(INDEX, ((f"k{n}", value) for n in range(records))).raise_for_failures()
        candidate(cluster, client, "p2")
        lookups = Lookups(cluster.client(), records)
        calm: list[float] = []
        if with_lookups:
            lookups.start()
            time.sleep(_CALM_SECONDS)
            calm = lookups.take()
        client.order("add", ["p2"])
        wait_until(lambda: client.topology().change is None, 600, "the data has moved")
        busy = lookups.take()
        if with_lookups:
            lookups.stop()
        (facts,) = [one["healing"] for one in client.status()["members"] if one["id"] == "p2"]
    return _figures(facts, value_bytes, calm, busy)


def _figures(
    facts: dict[str, Any], value_bytes: int, calm: Sequence[float], busy: Sequence[float]
) -> list[Figure]:
    seconds = facts["filling_ms"] / 1000
    per_second = facts["filled_records"] / seconds
    megabytes = facts["filled_bytes"] / seconds / 1e6
    beside = ", with look-ups beside" if calm else ""
    met = per_second >= 100_000 or megabytes >= 30
    wanted = "100,000 records/s or 30 MB/s"
    figures = [
        Figure(f"records of {value_bytes} B{beside}", per_second, "records/s", wanted, met),
        Figure(f"bytes, records of {value_bytes} B{beside}", megabytes, "MB/s", wanted, met),
    ]
    if calm and busy:
        quiet, loud = percentile(calm, 0.99), percentile(busy, 0.99)
        figures += [
            Figure("p99 of a look-up, calm", quiet, "ms", "", None),
            Figure("p99 of a look-up, data moves", loud, "ms", "twice calm", loud < 2 * quiet),
        ]
    return figures


def turn_epochs(folder: Path, rounds: int) -> Figure:
    """Measure a change of placement that has no data to move, from order to end."""
    taken = []
    with Peers.local(folder) as cluster:
        cluster.form("p1", "p2", "p3")
        client = cluster.client()
        for number in range(4, 4 + rounds):
            candidate(cluster, client, f"p{number}")
            began = time.perf_counter()
            client.order("add", [f"p{number}"])
            while client.topology().change is not None:
                time.sleep(0.005)
            taken.append(time.perf_counter() - began)
    median = sorted(taken)[len(taken) // 2]
    return Figure("a change without data", median, "s", "1 s", median < 1)


def placements() -> list[Figure]:
    """Measure placement over many members."""
    members = [Candidate(f"peer{n}", f"zone{n % 20}") for n in range(_MEMBERS)]
    began = time.perf_counter()
    table = place(members, 3)
    first = time.perf_counter() - began
    more = [*members, Candidate("one-more", "zone1")]
    began = time.perf_counter()
    place_again(table, members, more, 3)
    again = (time.perf_counter() - began) * 1000
    return [
        Figure(f"placement over {_MEMBERS} members", first, "s", "2 s", first < 2),
        Figure("one member more", again, "ms", "50 ms", again < 50),
    ]


def main() -> int:
    """Run; the exit code says whether every target was reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scaling", description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3, help="changes without data")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = placements()
    with tempfile.TemporaryDirectory(prefix="dstash-bench-") as name:
        folder = Path(name)
        for part in ("epochs", "small", "large", "beside"):
            (folder / part).mkdir()
        figures.append(turn_epochs(folder / "epochs", options.rounds))
        figures += move(folder / "small", options.records, 100, with_lookups=False)
        figures += move(folder / "large", options.records // 4, 1000, with_lookups=False)
        figures += move(folder / "beside", options.records, 100, with_lookups=True)
    show(figures, as_json=options.json)
    return 0 if all(one.met is not False for one in figures) else 1


def show(figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print what was measured."""
    if as_json:
        sys.stdout.write(json.dumps([one._asdict() for one in figures], indent=1) + "\n")
        return
    table = Table("what", "measured", "wanted", "")
    for one in figures:
        met = "" if one.met is None else ("yes" if one.met else "no")
        table.add_row(one.what, f"{one.value:,.2f} {one.unit}", one.wanted, met)
    Console(width=100).print(table)


if __name__ == "__main__":
    sys.exit(main())
