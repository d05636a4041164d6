"""``python -m bench.repair``: the cost of anti-entropy when idle, and of a repair.

Three peers and one client on this machine. For the idle rounds a proxy in front of each peer counts
bytes. Look-ups during the repair are compared with earlier ones of the same run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.scaling import INDEX, Figure, Lookups, percentile
from dstash import Client
from tests.harness.invariants import digests
from tests.harness.peers import Peer, Peers
from tests.harness.waiting import wait_until
from tests.harness.wires import CLIENT, Wires

_NAMES = ("a", "b", "c")
#: Default interval of anti-entropy rounds.
_ROUND_S = 10.0
#: Seconds until earlier work no longer delays look-ups.
_SETTLE_SECONDS = 3.0
_CALM_SECONDS = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")

Note = Callable[[str], None]


def run(folder: Path, options: argparse.Namespace, note: Note) -> list[Figure]:
    """Run all measurements."""
    with Peers.local(folder) as peers:
        peers.form(*_NAMES)
        client = peers.client(timeout=120.0)
        note(f"storing {options.records:,} records")
        value = "v" * options.value_bytes
        entries = ((f"k{number}", value) for number in range(options.records))
        client.batch_put(INDEX, entries, write="all")
        wait_until(lambda: are_equal(peers, client), 300, "all are equal")
        figures = list(repair(peers, client, options, note))
        if options.rounds:
            figures += count_bytes(peers, options.rounds, note)
    return figures


def count_bytes(peers: Peers, rounds: int, note: Note) -> list[Figure]:
    """Put proxies in front of the peers, and measure idle rounds."""
    running = peers.all.items()
    wires = Wires(lambda: {name: peer.process.pid for name, peer in running if peer.process})
    try:
        for name in _NAMES:
            put_behind(wires, peers[name])
        return list(idle(peers, wires, rounds, note))
    finally:
        wires.close()


def put_behind(wires: Wires, peer: Peer) -> None:
    """Restart a peer behind a proxy that counts bytes."""
    peer.stop()
    peer.options += ["--advertise", f"127.0.0.1:{wires.lead_to(peer.name, peer.port)}"]
    peer.start()
    peer.wait_ready()


def idle(peers: Peers, wires: Wires, rounds: int, note: Note) -> Iterator[Figure]:
    """Measure rounds without differences."""
    note(f"{rounds} idle rounds")
    time.sleep(3 * _ROUND_S)  # the first comparison computes the digests, which are then cached
    used, moved = cpu_seconds(peers), between_peers(wires)
    began = time.monotonic()
    time.sleep(rounds * _ROUND_S)
    seconds = time.monotonic() - began
    kilobytes = (between_peers(wires) - moved) / 1000 / (seconds / _ROUND_S)
    core = 100 * (cpu_seconds(peers) - used) / seconds / len(_NAMES)
    yield Figure("an idle round of all peers", kilobytes, "kB", "< 1000", kilobytes < 1000)
    yield Figure("of a core, for each idle peer", core, "%", "< 5", core < 5)


def repair(
    peers: Peers, client: Client, options: argparse.Namespace, note: Note
) -> Iterator[Figure]:
    """Measure the repair of a peer that was down, and its effect on look-ups."""
    changed = options.changed
    lookups = Lookups(peers.client(), options.records)
    lookups.start()
    note(f"{changed:,} keys change while one is away")
    peers["c"].kill()
    value = "w" * options.value_bytes
    client.batch_put(INDEX, ((f"k{n}", value) for n in range(changed)))
    time.sleep(_SETTLE_SECONDS)
    lookups.take()
    time.sleep(_CALM_SECONDS)
    calm = lookups.take()
    peers["c"].start()
    peers["c"].wait_ready()
    began = time.monotonic()
    lookups.take()
    wait_until(lambda: not hints_left(client), 300, "what was noted for it has come in")
    replaying, replayed = lookups.take(), time.monotonic() - began
    wait_until(lambda: are_equal_now(peers, client), 300, "all are equal")
    seconds = time.monotonic() - began
    comparing = lookups.take()
    lookups.stop()
    calm_p99, repair_p99 = percentile(calm, 0.99), percentile(replaying + comparing, 0.99)
    ratio = repair_p99 / calm_p99
    yield Figure(f"until {changed:,} keys are equal", seconds, "s", "< 30", seconds < 30)
    yield Figure("until what was noted for it is there", replayed, "s", "", None)
    yield Figure("p99 of single look-ups, calm", calm_p99, "ms", "", None)
    yield Figure("p99 meanwhile", percentile(replaying, 0.99), "ms", "", None)
    yield Figure("p99 from then until all is equal", percentile(comparing, 0.99), "ms", "", None)
    yield Figure("p99 of single look-ups, repair", repair_p99, "ms", "", None)
    yield Figure("repair / calm", ratio, "x", "< 2", ratio < 2)


def hints_left(client: Client) -> int:
    """Return the number of hints, at most twice a second, because a request costs time too."""
    time.sleep(0.5)
    members = client.status()["members"]
    return sum(
        sum(member.get("maintenance", {"hints": {"": 1}})["hints"].values()) for member in members
    )


def are_equal_now(peers: Peers, client: Client) -> bool:
    """Like ``are_equal``, at most twice a second, because a request costs time too."""
    time.sleep(0.5)
    return are_equal(peers, client)


def are_equal(peers: Peers, client: Client) -> bool:
    """Whether all replicas of all partitions are equal."""
    epoch = client.topology().epoch
    return len({digests(peers[name], peers.cluster, epoch) for name in _NAMES}) == 1


def between_peers(wires: Wires) -> int:
    """Return the bytes sent between peers so far."""
    return sum(count for way, count in wires.moved.items() if CLIENT not in way)


def cpu_seconds(peers: Peers) -> float:
    """Return the total processor time of all peers."""
    return sum(_ticks(peers[name]) for name in _NAMES) / _TICKS


def _ticks(peer: Peer) -> int:
    assert peer.process is not None
    fields = Path(f"/proc/{peer.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def main() -> int:
    """Run all measurements; the exit code says whether every target was reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.repair", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--changed", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=6, help="idle ones; 0: do not measure them")
    parser.add_argument("--value-bytes", type=int, default=100)
    options = parser.parse_args()
    note = Console(stderr=True).print
    with tempfile.TemporaryDirectory(prefix="dstash-repair-") as folder:
        figures = run(Path(folder), options, note)
    table = Table("what", "value", "unit", "wanted", "met")
    for figure in figures:
        met = "" if figure.met is None else "yes" if figure.met else "NO"
        table.add_row(figure.what, f"{figure.value:.2f}", figure.unit, figure.wanted, met)
    Console(width=100).print(table)
    return 0 if all(figure.met is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
