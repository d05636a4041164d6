"""Removal of dropped records from the disk, and the end of drops that all members have passed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from dstash.cluster.replication.drops import Entries
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge, Pause, Settle
from dstash.cluster.replication.transfer import ask
from dstash.cluster.topology.drops import Drop
from dstash.store.record import identity_of, is_sound
from dstash.wire.messages import StatusReply, StatusRequest

Removing = Generator[Effect, Any, None]

#: Records removed in one transaction.
_MAX_REMOVED: Final = 1000
#: Ranges without records that are looked at in one scheduler step.
_MAX_EMPTY: Final = 16
#: After a transaction, removal rests as long as it took, up to this (milliseconds).
_MAX_REST_MS: Final = 200


def remove_dropped(replica: Replica) -> Removing:
    """Remove the records that drops cover, partition by partition, in small commits.

    A peer that is restarted begins again with the first partition. Corrupt records stay until they
    are repaired, and so does the mark of their partition.
    """
    drops = replica.local_partitions.drops
    generation = drops.generation
    yield Settle()  # of commits that began before the drop was known here
    removal = _Removal(replica)
    for partition in sorted(drops.unswept):
        yield from removal.sweep(partition)
        if drops.generation != generation:
            return  # another drop: all partitions have to be walked again
    yield from removal.commit()


class _Removal:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._local_partitions = replica.local_partitions
        self._drops = replica.local_partitions.drops
        self._generation = self._drops.generation
        self._found: list[tuple[bytes, bytes]] = []
        self._walked: set[int] = set()
        self._steps = 0

    def sweep(self, partition: int) -> Removing:
        """Find the dropped records of a partition; remove them when enough are found."""
        is_whole = True
        for begin, end in self._ranges(partition):
            after = begin
            while after:
                entries = self._read(after, end)
                is_whole = self._take(entries) and is_whole
                is_last = len(entries) < self._local_partitions.slice_records
                after = b"" if is_last else entries[-1][0] + b"\0"
                if len(self._found) >= _MAX_REMOVED:
                    yield from self.commit()
                self._steps += 1
                if not is_last or self._steps % _MAX_EMPTY == 0:
                    yield Pause()
        if is_whole:
            self._walked.add(partition)

    def _ranges(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        for prefix in self._drops.floors.prefixes():
            begin = partition.to_bytes(2, "big") + prefix
            stem = begin.rstrip(b"\xff")
            yield begin, stem[:-1] + bytes((stem[-1] + 1,))

    def _read(self, begin: bytes, end: bytes) -> Entries:
        with self._local_partitions.store.snapshot() as snapshot:
            return list(islice(snapshot.walk(begin, end), self._local_partitions.slice_records))

    def _take(self, entries: Entries) -> bool:
        """Note the dropped records; returns whether no record is corrupt."""
        corrupt = [key for key, record in entries if not is_sound(key, record)]
        self._local_partitions.corruption.report(corrupt)
        covers = self._drops.floors.covers
        self._found += [
            (key, identity_of(record)) for key, record in entries if covers(key, record)
        ]
        return not corrupt

    def commit(self) -> Removing:
        """Remove what was found; then the partitions that were walked are swept."""
        found, self._found = self._found, []
        walked, self._walked = self._walked, set()
        if found:
            began = self._replica.now()
            yield Merge(drops=found)
            self._drops.removed += len(found)
            yield Pause(min(_MAX_REST_MS, self._replica.now() - began))
        if self._drops.generation == self._generation:
            self._drops.unswept -= walked


def collect_progress(
    replica: Replica,
) -> Generator[Effect, Any, tuple[frozenset[str], list[Drop], list[Drop]]]:
    """Ask all members how far they are with the drops.

    Returns:
        the members, the drops whose records all of them have removed, and those that none of them
        needs any more.

    Raises:
        DStashError: a member does not answer.
    """
    view = replica.view()
    swept = passed = view.topology.drops
    for peer in sorted(view.members):
        if peer == replica.me:
            own = describe_drops(replica)
        else:
            reply = yield from ask(peer, StatusRequest(), StatusReply)
            own = reply.status.get("drops", {})
        swept = _named_in(own.get("swept", ()), swept)
        passed = _named_in(own.get("passed", ()), passed)
    return frozenset(view.members), [*swept], [*passed]


def _named_in(identities: Sequence[Any], drops: Sequence[Drop]) -> tuple[Drop, ...]:
    """Return the drops that a member has named.

    A member may know another history, with other drops of the same numbers.
    """
    return tuple(drop for drop in drops if [*drop.identity] in identities)


def describe_drops(replica: Replica) -> dict[str, Any]:
    """Return the progress of this peer with the drops as plain data.

    ``swept`` are the identities of the drops whose records it has removed, ``passed`` of those that
    its horizons have passed.
    """
    local_partitions = replica.local_partitions
    drops = local_partitions.drops
    owned = replica.view().owned_by(replica.me) if drops.known else ()
    swept = () if drops.unswept else drops.known
    passed = drops.passed(local_partitions.horizons, owned)
    return {
        "swept": [[*drop.identity] for drop in swept],
        "passed": [[*drop.identity] for drop in passed],
    }
