"""Repair of corrupt records from other replicas.

A record that fails its checksum is a lost vote for its key: this replica no longer knows what it
acked. So the record stays in place, is not used to answer reads, and is not overwritten by older
writes, until N - W + 1 other replicas have replied with their record. An acked write is on W of N
replicas, so any N - W + 1 others include a replica that has it. The newest record among the replies
replaces the corrupt record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any, Final

from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge
from dstash.cluster.replication.transfer import sound_records
from dstash.errors import Unavailable
from dstash.store.record import highest
from dstash.store.register.ballot import is_register_key
from dstash.types import Level

CorruptRepair = Generator[Effect, Any, None]

#: Keys repaired with one request to each replica.
_MAX_BATCH: Final = 500


def repair_corrupt_records(replica: Replica) -> CorruptRepair:
    """Repair every tracked corrupt record.

    Raises:
        Unavailable: too few other replicas replied for some of the records.
    """
    left = 0
    for partition, keys in replica.local_partitions.corruption.by_partition().items():
        for begin in range(0, len(keys), _MAX_BATCH):
            left += yield from _repair_corrupt(replica, partition, keys[begin : begin + _MAX_BATCH])
    if left:
        raise Unavailable(f"{left} corrupt records not repaired: too few replicas replied")


def _repair_corrupt(
    replica: Replica, partition: int, keys: list[bytes]
) -> Generator[Effect, Any, int]:
    """Repair records of one partition; returns how many could not be repaired.

    A register is concluded instead, see ``peer/registers``, except while it rests: no voter votes
    on it meanwhile, so no round can rely on the vote that was lost.
    """
    view = replica.view()
    if not view.is_resting(partition):
        keys = [key for key in keys if not is_register_key(key)]
    voters, needed = voters_for(replica, partition)
    votes = _Votes(keys)
    for peer in voters:
        undecided = votes.undecided(needed)
        if undecided:
            yield from votes.collect(peer, undecided)
    decided = [key for key in keys if needed and votes.count[key] >= needed]
    if replica.view().epoch != view.epoch:
        decided = [key for key in decided if not is_register_key(key)]
    if decided:
        yield Merge(replacements=[(key, votes.newest.get(key)) for key in decided])
        replica.local_partitions.corruption.forget(decided)
    return len(keys) - len(decided)


def voters_for(replica: Replica, partition: int) -> tuple[list[str], int]:
    """Return the replicas that can vote on a corrupt record, and how many votes are needed.

    A replica whose store was lost cannot vote and is not waited for. A replica that is down is.
    """
    view = replica.view()
    owners = view.readers[partition]
    synced = [peer for peer in owners if peer != replica.me and view.members[peer].synced]
    needed = min(len(synced), len(owners) - Level.QUORUM.needed(len(owners)) + 1)
    return [peer for peer in synced if peer in view.alive], needed


class _Votes:
    """The records of other replicas, by key, and how many replicas replied."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys
        self.count: Counter[bytes] = Counter()
        self.newest: dict[bytes, bytes] = {}

    def undecided(self, needed: int) -> list[bytes]:
        """Return the keys with fewer than ``needed`` votes."""
        return [key for key in self._keys if self.count[key] < needed]

    def collect(self, peer: str, keys: list[bytes]) -> CorruptRepair:
        """Ask one replica. No reply, or a corrupt record in the reply, is no vote."""
        for key, record in (yield from sound_records(peer, keys)):
            self._note(key, record)

    def _note(self, key: bytes, record: bytes | None) -> None:
        self.count[key] += 1
        newest = highest((self.newest.get(key), record))
        if newest is not None:
            self.newest[key] = newest
