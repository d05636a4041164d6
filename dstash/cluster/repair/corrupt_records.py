"""Mending damaged records from what other replicas hold.

A record that fails its checksum is a lost vote for its key: this replica cannot tell any more what
it acked. So it stays where it is, and neither answers nor takes older writes, until N - W + 1 other
replicas have told what they hold. An acked write is on W of N replicas, so any so many of the
others include one that has it. The newest of what they hold then takes its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any, Final

from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge
from dstash.cluster.replication.transfer import ask
from dstash.errors import DStashError, Unavailable
from dstash.store.record import highest, is_sound
from dstash.types import Level
from dstash.wire import codec
from dstash.wire.messages import Records
from dstash.wire.replication import Pull
from dstash.wire.shapes import Frame

CorruptRepair = Generator[Effect, Any, None]

#: Keys that are mended with one question to each replica.
_AT_ONCE: Final = 500


def repair_corrupt_records(replica: Replica) -> CorruptRepair:
    """Mend every damaged record that is known.

    Raises:
        Unavailable: too few other replicas answered for some.
    """
    left = 0
    for partition, keys in replica.local_partitions.corruption.by_partition().items():
        for begin in range(0, len(keys), _AT_ONCE):
            left += yield from _repair_corrupt(replica, partition, keys[begin : begin + _AT_ONCE])
    if left:
        raise Unavailable(f"too few replicas can tell what {left} damaged records were")


def _repair_corrupt(
    replica: Replica, partition: int, keys: list[bytes]
) -> Generator[Effect, Any, int]:
    """Mend records of one partition; returns how many could not be."""
    others, needed = witnesses(replica, partition)
    votes = _Votes(keys)
    for peer in others:
        silent = votes.lacking(needed)
        if silent:
            yield from votes.hear(peer, silent)
    told = [key for key in keys if needed and votes.count[key] >= needed]
    if told:
        yield Merge(replacements=[(key, votes.newest.get(key)) for key in told])
        replica.local_partitions.corruption.forget(told)
    return len(keys) - len(told)


def witnesses(replica: Replica, partition: int) -> tuple[list[str], int]:
    """Return who can tell what a damaged record was, and how many of them must.

    A replica whose store was lost can never tell, so it is not waited for; one that is down is.
    """
    view = replica.view()
    owners = view.readers[partition]
    synced = [peer for peer in owners if peer != replica.me and view.members[peer].synced]
    needed = min(len(synced), len(owners) - Level.QUORUM.needed(len(owners)) + 1)
    return [peer for peer in synced if peer in view.alive], needed


class _Votes:
    """What other replicas said they hold."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys
        self.count: Counter[bytes] = Counter()
        self.newest: dict[bytes, bytes] = {}

    def lacking(self, needed: int) -> list[bytes]:
        """Return the keys of which fewer than ``needed`` replicas have told."""
        return [key for key in self._keys if self.count[key] < needed]

    def hear(self, peer: str, keys: list[bytes]) -> CorruptRepair:
        """Ask one replica; one that does not answer, or has damage of its own, has not told."""
        while keys:
            try:
                answer = yield from ask(peer, Pull(Frame(codec.pack_blobs(keys))), Records)
            except DStashError:
                return
            records = codec.unpack_optional_blobs(answer.records)
            corrupt = set(answer.corrupt)
            for place, (key, record) in enumerate(zip(keys, records, strict=False)):
                if place not in corrupt and (record is None or is_sound(key, record)):
                    self._note(key, record)
            if not records:
                return
            keys = keys[len(records) :]

    def _note(self, key: bytes, record: bytes | None) -> None:
        self.count[key] += 1
        newest = highest((self.newest.get(key), record))
        if newest is not None:
            self.newest[key] = newest
