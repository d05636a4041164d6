"""Segments: ranges of a partition whose hashes are known, so that a write costs one range.

The digest of a partition is the sum of those of its segments. After a write, only the segments with
its keys are read again; after a horizon has advanced, only those with records that it covers. They
are what the leaves of a Merkle tree are elsewhere (Dynamo, Cassandra), but each follows the order
of keys on the disk, so that reading one is reading one range.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from dstash.store.digest import Contents, DigestKind, Sum
from dstash.version import Stamp

#: The most segments of one partition, to bound the memory: each takes some 400 bytes.
MAX_SEGMENTS: Final = 16

#: By kind, the sums of a segment of which none is known.
_NO_SUMS: Final[tuple[int | None, ...]] = (None,) * len(DigestKind)


class Segment:
    """The records of a partition from a storage key to the begin of the next segment.

    ``changes`` counts the writes to it, so that a walk notices one. ``contents`` is None if they
    are not known.
    """

    __slots__ = ("begin", "changes", "contents", "sums")

    def __init__(self, begin: bytes, contents: Contents | None = None) -> None:
        self.begin = begin
        self.changes = 0
        self.contents = contents
        #: By kind; None for those that are not known.
        self.sums = _NO_SUMS

    def touch(self) -> None:
        """Record that a record may have changed."""
        self.changes += 1
        self.contents = None
        self.sums = _NO_SUMS

    def sum_at(self, horizon: Stamp, until: Stamp | None, kind: DigestKind) -> int | None:
        """Return the sum of hashes as ``Sum`` would compute it; None if it is not known."""
        contents = self.contents
        if contents is None or not contents.valid_from <= horizon < contents.valid_until:
            return None
        if until is not None and contents.newest > until:
            return None
        return self.sums[kind]

    def note(self, found: Sum) -> None:
        """Take the result of a walk; what other walks have found is kept if it is still valid."""
        contents = self.contents
        if contents is None or not contents.valid_from <= found.horizon < contents.valid_until:
            self.sums = _NO_SUMS
            self.contents = found.contents
        sums = list(self.sums)
        sums[found.kind] = found.value
        self.sums = tuple(sums)

    def joined(self, after: Segment) -> Segment:
        """Return this segment and the next one as one; what only one of them knows is lost."""
        if self.contents is None or after.contents is None:
            return Segment(self.begin)
        segment = Segment(self.begin, self.contents.joined(after.contents))
        segment.sums = tuple(
            None if first is None or last is None else first + last
            for first, last in zip(self.sums, after.sums, strict=True)
        )
        return segment


class Segments:
    """The segments of one partition, without gaps.

    Args:
        begin: the lowest storage key of the partition.
        end: the key after the highest.
    """

    __slots__ = ("_begins", "_segments", "end")

    def __init__(self, begin: bytes, end: bytes) -> None:
        self.end = end
        self._begins = [begin]
        self._segments = [Segment(begin)]

    def __iter__(self) -> Iterator[tuple[Segment, bytes]]:
        """Yield each segment, with its end, as they are at the first step."""
        return iter(list(zip(self._segments, [*self._begins[1:], self.end], strict=True)))

    def touch(self, storage_key: bytes) -> None:
        """Record that a record may have changed."""
        self._segments[bisect_right(self._begins, storage_key) - 1].touch()

    def split(self, segment: Segment, found: Sequence[tuple[bytes, Sum]]) -> None:
        """Replace a segment by what a walk of it has found.

        Args:
            segment: ignored if it was replaced since.
            found: the begin of each part, and its sum.
        """
        place = bisect_right(self._begins, segment.begin) - 1
        if self._segments[place] is not segment:
            return
        if len(found) == 1:
            segment.note(found[0][1])
            return
        self._segments[place : place + 1] = [_noted(begin, total) for begin, total in found]
        while len(self._segments) > MAX_SEGMENTS:
            self._segments = list(_in_pairs(self._segments))
        self._begins = [part.begin for part in self._segments]

    def ranges(self, horizon: Stamp) -> list[tuple[bytes, bytes]]:
        """Return the ranges (begin, end) that may have records that ``horizon`` lets drop."""
        found: list[tuple[bytes, bytes]] = []
        for segment, end in self:
            if segment.contents is not None and segment.contents.reapable > horizon:
                continue
            if found and found[-1][1] == segment.begin:
                found[-1] = (found[-1][0], end)
            else:
                found.append((segment.begin, end))
        return found


def _noted(begin: bytes, found: Sum) -> Segment:
    segment = Segment(begin)
    segment.note(found)
    return segment


def _in_pairs(segments: Sequence[Segment]) -> Iterable[Segment]:
    for first, after in zip(segments[::2], segments[1::2], strict=False):
        yield first.joined(after)
    if len(segments) % 2:
        yield segments[-1]
