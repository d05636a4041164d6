"""``python -m bench.scaling``: the rate of streaming, and its effect on look-ups.

All in one run on this machine: peers and clients share its cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from dstash import Client
from dstash.cluster.topology.rendezvous import Candidate, place, place_again
from dstash.errors import ChangeConflict
from tests.harness.peers import Peer, Peers
from tests.harness.waiting import PATIENCE, wait_until

INDEX = "bench"
#: A rate above the possible one, which gives streaming priority.
_HASTE = 1_000_000_000
#: Look-ups a second.
_PACE = 400
#: Duration (seconds) of phases with and without streaming; and the time after a new epoch, when all
#: sides compute new tables, that is not counted.
_PHASE, _SETTLE = 0.5, 0.2
_MEMBERS = 1000


class Figure(NamedTuple):
    """A figure and its target."""

    what: str
    value: float
    unit: str
    wanted: str
    met: bool | None


class Lookups(threading.Thread):
    """Looks up keys at a steady rate and records the duration of each (milliseconds).

    A client without pauses would use the processors that the measured work needs, and would send
    fewer requests while answers are slow. A look-up that starts late because of the previous one is
    measured from its due time, to avoid "coordinated omission" (Gil Tene).
    """

    def __init__(self, client: Client, keys: int) -> None:
        super().__init__(daemon=True)
        self.samples: list[float] = []
        self._client = client
        self._keys = keys
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Look up keys until stopped."""
        rng = random.Random(1)
        due = time.perf_counter()
        while not self._stop_asked.is_set():
            key = f"k{rng.randrange(self._keys)}"
            due += 1 / _PACE
            began = due
            if (early := due - time.perf_counter()) > 0:
                time.sleep(early)
                began = time.perf_counter()
            assert self._client.lookup(INDEX, key) is not None
            self.samples.append((time.perf_counter() - began) * 1000)

    def take(self) -> list[float]:
        """Return the samples so far, and start over."""
        taken, self.samples = self.samples, []
        return taken

    def stop(self) -> None:
        """Stop looking up."""
        self._stop_asked.set()
        self.join()


def percentile(samples: Sequence[float], share: float) -> float:
    """Return a quantile of the samples."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


def candidate(cluster: Peers, client: Client, name: str) -> None:
    """Start a candidate."""
    cluster.start(name, "--join", "manual")
    wait_until(lambda: name in client.status()["candidates"], PATIENCE, f"{name} waits")


def move(folder: Path, records: int, value_bytes: int, rate: int) -> list[Figure]:
    """Measure the rate of streaming from the first peer to the second, with a limit."""
    with ready_to_move(folder, records, value_bytes) as (cluster, client):
        before = [cpu_seconds(cluster[name]) for name in ("p1", "p2")]
        client.admin.add(["p2"], rate=rate)
        wait_until(lambda: client.topology().change is None, 600, "the data has moved")
        after = [cpu_seconds(cluster[name]) for name in ("p1", "p2")]
        stats = filled(client)
    busiest = max(end - begin for begin, end in zip(before, after, strict=True))
    what = f"records of {value_bytes} B, {'in haste' if rate else 'gently'}"
    return [
        *rates(what, stats, stats["streaming_ms"] / 1000),
        *rates(f"{what}, by the CPU of the busier peer", stats, busiest),
    ]


def filled(client: Client) -> dict[str, Any]:
    """Return the progress of streaming that the second peer reports."""
    (status,) = [
        member["maintenance"] for member in client.status()["members"] if member["id"] == "p2"
    ]
    return dict(status)


def rates(what: str, stats: Mapping[str, Any], seconds: float) -> list[Figure]:
    """Return the streamed bytes and records per second; a target needs either."""
    per_second = stats["streamed_records"] / seconds
    megabytes = stats["streamed_bytes"] / seconds / 1e6
    met = per_second >= 100_000 or megabytes >= 30
    return [
        Figure(what, per_second, "records/s", "100,000, or", met),
        Figure(what, megabytes, "MB/s", "30", met),
    ]


@dataclass
class Felt:
    """Durations of look-ups (milliseconds) without and with streaming, and the streamed bytes."""

    calm: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    moved: dict[str, float] = field(default_factory=lambda: {"records": 0, "bytes": 0})
    seconds: float = 0.0

    def figures(self, value_bytes: int) -> list[Figure]:
        """Return the figures of all changes together."""
        if not self.calm or not self.busy:
            raise SystemExit(f"records of {value_bytes} B move too soon: take more of them")
        quiet, loud = percentile(self.calm, 0.99), percentile(self.busy, 0.99)
        stats = {f"filled_{what}": amount for what, amount in self.moved.items()}
        return [
            *rates(f"records of {value_bytes} B that move meanwhile", stats, self.seconds),
            Figure("p99 of a look-up, data rests", quiet, "ms", "", None),
            Figure("p99 of a look-up, data moves", loud, "ms", "twice that", loud < 2 * quiet),
        ]


def feel(folder: Path, records: int, value_bytes: int, felt: Felt) -> None:
    """Measure look-ups, alternately with and without streaming, within one topology change."""
    with ready_to_move(folder, records, value_bytes) as (cluster, client):
        lookups = Lookups(cluster.client(), records)
        lookups.start()
        client.admin.add(["p2"])
        while (change := client.topology().change) is not None:
            time.sleep(_SETTLE)
            before, began = filled(client), time.perf_counter()
            lookups.take()
            time.sleep(_PHASE)
            samples = lookups.take()
            if client.topology().change == change:  # streaming or paused during the whole phase
                (felt.calm if change.paused else felt.busy).extend(samples)
                if not change.paused:
                    after = filled(client)
                    felt.seconds += time.perf_counter() - began
                    for what in felt.moved:
                        felt.moved[what] += after[f"filled_{what}"] - before[f"filled_{what}"]
            with contextlib.suppress(ChangeConflict):  # it has ended
                client.admin.request("resume" if change.paused else "pause")
        lookups.stop()


@contextlib.contextmanager
def ready_to_move(folder: Path, records: int, value_bytes: int) -> Iterator[tuple[Peers, Client]]:
    """A peer with records, and a candidate."""
    with Peers.local(folder, "--replicas", "2") as cluster:
        cluster.form("p1")
        client = cluster.client()
        value = "v" * value_bytes
        client.batch_put(INDEX, ((f"k{n}", value) for n in range(records)))
        candidate(cluster, client, "p2")
        yield cluster, client


def cpu_seconds(peer: Peer) -> float:
    """Return the processor time of a peer, which other load does not affect."""
    assert peer.process is not None
    stat = Path(f"/proc/{peer.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def turn_epochs(folder: Path, rounds: int) -> Figure:
    """Measure a topology change without data, from request to end."""
    taken = []
    with Peers.local(folder) as cluster:
        cluster.form("p1", "p2", "p3")
        client = cluster.client()
        for number in range(4, 4 + rounds):
            candidate(cluster, client, f"p{number}")
            began = time.perf_counter()
            client.admin.add([f"p{number}"])
            while client.topology().change is not None:
                time.sleep(0.005)
            taken.append(time.perf_counter() - began)
    median = sorted(taken)[len(taken) // 2]
    return Figure("a change without data", median, "s", "1 s", median < 1)


def placements() -> list[Figure]:
    """Measure the computation of a placement with many members."""
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
    """Run all measurements; the exit code says whether every target was reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3, help="changes of each kind")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = placements()
    with tempfile.TemporaryDirectory(prefix="dstash-bench-") as name:
        folder = Path(name)
        for part in ("epochs", "small", "large", "hasty"):
            (folder / part).mkdir()
        figures.append(turn_epochs(folder / "epochs", options.rounds))
        figures += move(folder / "small", options.records, 100, 0)
        figures += move(folder / "large", options.records // 4, 1000, 0)
        figures += move(folder / "hasty", options.records, 100, _HASTE)
        small, large = Felt(), Felt()
        for number in range(options.rounds):  # the speed of the machine varies
            for value_bytes, records, felt in (
                (100, 4 * options.records, small),
                (1000, options.records, large),
            ):
                felt_in = folder / f"felt-{value_bytes}-{number}"
                felt_in.mkdir()
                feel(felt_in, records, value_bytes, felt)
        figures += [*small.figures(100), *large.figures(1000)]
    show(figures, as_json=options.json)
    return 0 if all(figure.met is not False for figure in figures) else 1


def show(figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print the figures."""
    if as_json:
        sys.stdout.write(json.dumps([figure._asdict() for figure in figures], indent=1) + "\n")
        return
    table = Table("what", "measured", "wanted", "")
    for figure in figures:
        met = "" if figure.met is None else ("yes" if figure.met else "no")
        table.add_row(figure.what, f"{figure.value:,.2f} {figure.unit}", figure.wanted, met)
    Console(width=100).print(table)


if __name__ == "__main__":
    sys.exit(main())
