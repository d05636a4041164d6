"""Part ``upkeep``: what a peer costs that does nothing, and what a record takes on the disk."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Final

from bench.compaction import compact, fill
from bench.lab import Lab
from bench.stores.dstash_store import DStashCluster
from bench.stores.servers import processor_seconds
from bench.work import Case, Unit, Work, known
from tests.harness.peers import Peers

IDLE: Final = Work("processor time of an idle peer")
DISK: Final = Work("a record on the disk", value_bytes=100)
#: The states of a file in ``DISK``.
LOADED: Final = "loaded in random order"
COMPACTED: Final = "compacted"
PEER: Final = "dstash N=3"

_RECORDS: Final = 300_000
#: A peer polls the membership less often if nothing has changed for ten seconds.
_SETTLE_SECONDS: Final = 15.0
_IDLE_SECONDS: Final = 10.0


def measure(lab: Lab, rounds: int) -> list[Case]:
    """Measure peers without clients, then the file of a peer before and after a compaction."""
    return [_idle(lab, rounds), *_disk(lab)]


def _idle(lab: Lab, rounds: int) -> Case:
    with DStashCluster(lab.folder / "dstash-idle", 3) as cluster:
        time.sleep(_SETTLE_SECONDS)
        shares = []
        for number in range(rounds):
            lab.note(f"idle peers, round {number + 1} of {rounds}")
            worked = processor_seconds(cluster.servers)
            time.sleep(_IDLE_SECONDS)
            spent = processor_seconds(cluster.servers) - worked
            shares.append(spent / len(cluster.servers) / _IDLE_SECONDS)
    return known(IDLE, PEER, Unit.SHARE, shares)


def _disk(lab: Lab) -> list[Case]:
    folder = lab.folder / "dstash-disk"
    folder.mkdir()
    records = Namespace(records=_RECORDS, value_bytes=DISK.value_bytes)
    with Peers.local(folder, "--replicas", "1") as peers:
        peers.form("a")
        fill(peers.client(timeout=120.0), records, lab.note)
        done = compact(peers["a"], peers.client())
    return [
        known(DISK, state, Unit.BYTES, [size / _RECORDS])
        for state, size in ((LOADED, done["before"]), (COMPACTED, done["after"]))
    ]
