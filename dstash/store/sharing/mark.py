"""The serving mark: what a peer lets other processes read from its store, stored in the store.

A reader of the store sees the mark and the records in one snapshot. So it cannot take a record for
current that belongs to an epoch that has ended, or miss one that was removed after that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from xxhash import xxh3_64_digest

from dstash.errors import CorruptStore
from dstash.limits import PARTITIONS

#: The name of the mark in the store.
SERVING_MARK: Final = b"serving"

_FORMAT: Final = b"\x01"
_CHECKSUM_BYTES: Final = 8
_NUMBER_BYTES: Final = 8
_BITMAP_BYTES: Final = PARTITIONS // 8
_FIXED_BYTES: Final = _CHECKSUM_BYTES + len(_FORMAT) + 2 * _NUMBER_BYTES + _BITMAP_BYTES


class Generation(NamedTuple):
    """The data file of a store: a compaction replaces it by another one."""

    device: int
    inode: int


class ServingMark(NamedTuple):
    """What other processes may read.

    Attributes:
        ticket: a random number of this mark, which the heartbeat shows as long as the mark holds;
            0 while no client may read.
        epoch: of the topology that the peer serves.
        cluster_id: of that topology, because two histories of a cluster may use one epoch.
        partitions: the partitions that the peer holds for readers in that epoch.
    """

    ticket: int
    epoch: int = 0
    cluster_id: str = ""
    partitions: frozenset[int] = frozenset()

    def encode(self) -> bytes:
        """Return the content of the mark, with a checksum."""
        body = b"".join(
            (
                _FORMAT,
                self.ticket.to_bytes(_NUMBER_BYTES, "big"),
                self.epoch.to_bytes(_NUMBER_BYTES, "big"),
                _bitmap(self.partitions),
                self.cluster_id.encode(),
            )
        )
        return xxh3_64_digest(body) + body

    @classmethod
    def decode(cls, content: bytes | None) -> ServingMark:
        """Return the mark with that content; without content, one that lets no client read.

        Raises:
            CorruptStore: the content is corrupt, or of a later version.
        """
        if not content:
            return cls(0)
        checksum, body = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if len(content) < _FIXED_BYTES or xxh3_64_digest(body) != checksum:
            raise CorruptStore("the serving mark of the store is corrupt")
        if not body.startswith(_FORMAT):
            raise CorruptStore("the serving mark of the store is of another version of dstash")
        begin = len(_FORMAT)
        ticket, epoch = (
            int.from_bytes(body[place : place + _NUMBER_BYTES], "big")
            for place in (begin, begin + _NUMBER_BYTES)
        )
        begin += 2 * _NUMBER_BYTES
        bits = int.from_bytes(body[begin : begin + _BITMAP_BYTES], "little")
        held = frozenset(number for number in range(PARTITIONS) if bits >> number & 1)
        return cls(ticket, epoch, body[begin + _BITMAP_BYTES :].decode(), held)


def _bitmap(partitions: Iterable[int]) -> bytes:
    bits = bytearray(_BITMAP_BYTES)
    for partition in partitions:
        bits[partition // 8] |= 1 << partition % 8
    return bytes(bits)
