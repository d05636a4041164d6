"""The indexes of a peer and their sizes, estimated from a sample of its partitions.

An index has no list of its keys: it is a range of storage keys in every partition. The names are
found by seeking from range to range. Records are counted in a sample of the partitions only; keys
are spread over partitions by their hash, so a sample represents all of them.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.limits import PARTITIONS
from dstash.store.record import HEAD_BYTES, VERSION_END, is_live_head, partition_range
from dstash.wire.messages import IndexesReply, IndexesRequest
from dstash.wire.packing import unpack_partitions

#: Records that are counted for one request, about.
_MAX_COUNTED: Final = 100_000
#: Names that fit into one answer.
_MAX_NAMES: Final = 10_000
#: Seeks in one scheduler step.
_MAX_SEEKS: Final = 64
#: An odd number: multiplying by it permutes the partitions.
_SPREAD: Final = 2_654_435_761


class _Size:
    """What was found of one index."""

    def __init__(self) -> None:
        self.partitions = 0
        self.records = 0
        self.bytes = 0


def index_sizes(
    local_partitions: LocalPartitions, request: IndexesRequest, now: int
) -> Generator[Effect, Any, IndexesReply]:
    """Reply with the names of the indexes in some partitions, and their sizes in a sample."""
    partitions = sorted(unpack_partitions(request.partitions), key=_shuffled)
    sizes: dict[bytes, _Size] = {}
    counted = records = 0
    for partition in partitions:
        if records < _MAX_COUNTED:
            records += yield from _count(local_partitions, partition, now, sizes)
            counted += 1
        else:
            yield from _find(local_partitions, partition, sizes)
    named = sorted(sizes.items())[:_MAX_NAMES]
    rows = [
        [name.decode(errors="replace"), size.records, size.bytes, size.partitions]
        for name, size in named
    ]
    return IndexesReply(len(partitions), counted, rows)


def _shuffled(partition: int) -> int:
    """Return a number that orders partitions as if at random: neighbours may be alike."""
    return partition * _SPREAD % PARTITIONS


def _count(
    local_partitions: LocalPartitions, partition: int, now: int, sizes: dict[bytes, _Size]
) -> Generator[Effect, Any, int]:
    """Count the live records of each index in a partition; returns how many were read."""
    found: set[bytes] = set()
    read = 0
    for entries in local_partitions.slices(partition):
        read += len(entries)
        for storage_key, record in local_partitions.drops.present(entries):
            if not is_live_head(record[VERSION_END:HEAD_BYTES], now):
                continue
            name = storage_key[3 : 3 + storage_key[2]]
            size = sizes.setdefault(name, _Size())
            size.records += 1
            size.bytes += len(storage_key) + len(record)
            found.add(name)
        yield Pause()
    for name in found:
        sizes[name].partitions += 1
    return read


def _find(
    local_partitions: LocalPartitions, partition: int, sizes: dict[bytes, _Size]
) -> Generator[Effect, Any, None]:
    """Find the indexes of a partition by seeking from each one to the next."""
    begin, end = partition_range(partition)
    while begin:
        with local_partitions.store.snapshot() as snapshot:
            for _ in range(_MAX_SEEKS):
                first = next(snapshot.walk(begin, end), None)
                if first is None:
                    begin = b""
                    break
                storage_key, _ = first
                name = storage_key[3 : 3 + storage_key[2]]
                sizes.setdefault(name, _Size()).partitions += 1
                begin = _after(storage_key[: 3 + storage_key[2]])
        yield Pause()


def _after(prefix: bytes) -> bytes:
    """Return the first storage key after all keys that begin with ``prefix``."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b"\xff" * 512
