"""What a peer costs: memory when idle, memory when it holds much, and time to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from dstash import Client
from tests.bench.dstash_store import INDEX, DStashCluster
from tests.bench.runner import Note, Shape, data

MIB = 1024 * 1024
#: Pages of LMDB's file are the page cache's, which takes them back when it needs room.
_NOT_OURS = "/data.mdb"
_BATCH = 100_000


class Memory(NamedTuple):
    """Bytes of one process: what is its own, and what is resident in all."""

    private: int
    resident: int


class Footprint(NamedTuple):
    """The figures of one peer: the largest of three, or the median for times."""

    keys: int
    idle: Memory
    loaded: Memory
    restarted: Memory
    first_start: float
    restart: float


def memory_of(pid: int) -> Memory:
    """Return the memory of a process, LMDB's file not counted as its own."""
    private = resident = 0
    mapping = ""
    for name, rest in _lines(Path(f"/proc/{pid}/smaps")):
        if not name.endswith(":"):
            mapping = rest
        elif name == "Rss:":
            resident += _bytes(rest)
        elif name in ("Private_Clean:", "Private_Dirty:") and not mapping.endswith(_NOT_OURS):
            private += _bytes(rest)
    return Memory(private, resident)


def measure(folder: Path, keys: int, note: Note) -> Footprint:
    """Start peers, look at them, store ``keys`` keys, look again, restart them, look again."""
    with DStashCluster(folder, 3) as cluster:
        assert isinstance(cluster, DStashCluster)
        first_start = median(
            cluster.restart_seconds(number) for number in range(len(cluster.peers))
        )
        idle = _largest(cluster)
        note(f"storing {keys:,} keys")
        _load(cluster, keys)
        loaded = _largest(cluster)
        restart = median(cluster.restart_seconds(number) for number in range(len(cluster.peers)))
        return Footprint(keys, idle, loaded, _largest(cluster), first_start, restart)


def _load(cluster: DStashCluster, keys: int) -> None:
    with Client(*cluster.addresses, write="all", timeout=120) as client:
        for series in range(keys // _BATCH):
            pairs = data(Shape(_BATCH), series)
            client.batch_put(INDEX, pairs.items()).raise_for_failures()
            assert len(client.batch_lookup(INDEX, list(pairs))) == len(pairs)


def _largest(cluster: DStashCluster) -> Memory:
    return max(memory_of(peer.pid) for peer in cluster.peers.values())


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text().splitlines():
        name, _, rest = line.partition(" ")
        yield name, rest.strip()


def _bytes(text: str) -> int:
    return int(text.removesuffix(" kB")) * 1024
