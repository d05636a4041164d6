"""How much memory a process has for itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.stores.dstash_store import DStashCluster

MIB: Final = 1024 * 1024
#: Pages of LMDB's file are the page cache's, which takes them back when it needs room.
_NOT_ITS_OWN: Final = "/data.mdb"


def private_bytes(pid: int) -> int:
    """Return what a process shares with no other, the pages of LMDB's file not counted."""
    private = 0
    mapping = ""
    for name, rest in _lines(Path(f"/proc/{pid}/smaps")):
        if not name.endswith(":"):
            mapping = rest
        elif name in ("Private_Clean:", "Private_Dirty:") and not mapping.endswith(_NOT_ITS_OWN):
            private += int(rest.removesuffix(" kB")) * 1024
    return private


def largest(cluster: DStashCluster) -> float:
    """Return the private memory of the peer that has most."""
    return max(private_bytes(peer.pid) for peer in cluster.peers.values())


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text().splitlines():
        name, _, rest = line.partition(" ")
        yield name, rest.strip()
