"""The private memory of processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.stores.dstash_store import DStashCluster

MIB: Final = 1024 * 1024
#: Pages of LMDB's file belong to the page cache, which frees them when memory is needed.
_NOT_ITS_OWN: Final = "/data.mdb"


def private_bytes(pid: int) -> int:
    """Return the memory that a process shares with no other, without the pages of LMDB's file."""
    private = 0
    mapping = ""
    for name, rest in _lines(Path(f"/proc/{pid}/smaps")):
        if not name.endswith(":"):
            mapping = rest
        elif name in ("Private_Clean:", "Private_Dirty:") and not mapping.endswith(_NOT_ITS_OWN):
            private += int(rest.removesuffix(" kB")) * 1024
    return private


def largest(cluster: DStashCluster) -> float:
    """Return the largest private memory of a peer."""
    return max(private_bytes(peer.pid) for peer in cluster.peers.values())


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text().splitlines():
        name, _, rest = line.partition(" ")
        yield name, rest.strip()
