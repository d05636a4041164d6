"""Weighted, zone-aware rendezvous hashing: which members hold which partition.

Every member gets a score for every partition; the highest scores win. A member that leaves moves
only its own partitions, a member that joins takes only its fair share, and nobody has to remember
a ring (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996; weights after
Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005).

Golden vectors in the tests pin the result: it decides where data is, and may never change
silently.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import repeat
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from dstash.limits import PARTITIONS

#: A 64-bit hash of bytes under a seed.
Hash = Callable[[bytes, int], int]

#: ``table[partition]`` is the replica set: member ids in rank order.
Table = tuple[tuple[str, ...], ...]

_UNIT: Final = 1.0 / (1 << 53)
_PARTITION_NAMES: Final = tuple(number.to_bytes(2, "big") for number in range(PARTITIONS))


class Candidate(NamedTuple):
    """A member as placement sees it."""

    id: str
    zone: str
    weight: float = 1.0


def scores(member: Candidate, hash64: Hash = xxh3_64_intdigest) -> array[float]:
    """Return the member's score for each partition; comparable between members."""
    seed = hash64(member.id.encode(), 0)
    log, unit, minus = math.log, _UNIT, -member.weight
    hashes = map(hash64, _PARTITION_NAMES, repeat(seed))
    # The highest of all hashes rounds up to 1, and its logarithm to 0.
    return array("d", [minus / (log(((number >> 11) + 0.5) * unit) or -unit) for number in hashes])


@functools.lru_cache(maxsize=2048)
def _cached_scores(member: Candidate) -> array[float]:
    return scores(member)


def place(members: Iterable[Candidate], replicas: int) -> Table:
    """Return the replica set of every partition.

    Each set holds the ``replicas`` best members, passing over zones already used while unused
    zones remain; all members when there are fewer.
    """
    ordered = sorted(members)
    placement = _Placement(ordered, ((),) * PARTITIONS, replicas)
    for partition, ids in enumerate(_shortlists(ordered, replicas)):
        placement.choose(partition, ids)
    return placement.table()


def _shortlists(members: Sequence[Candidate], replicas: int) -> Iterator[list[str]]:
    """Yield for each partition the few members that its replica set is surely among."""
    zones: dict[str, list[Candidate]] = {}
    for member in members:
        zones.setdefault(member.zone, []).append(member)
    if len(zones) < replicas:
        best = [_best_of(zone, replicas) for zone in zones.values()]
        yield from map(_joined, zip(*best, strict=True))
        return
    # With enough zones, only the best member of each counts, and of those the best few.
    tops = [_tops(zone) for zone in zones.values()]
    groups = [[(one.id, _cached_scores(one)) for one in zone] for zone in zones.values()]
    for partition, marks in enumerate(zip(*tops, strict=True)):
        bar = nlargest(replicas, marks)[-1]
        yield [
            peer
            for mark, group in zip(marks, groups, strict=True)
            if mark >= bar
            for peer, column in group
            if column[partition] == mark
        ]


def _tops(zone: Sequence[Candidate]) -> Iterable[float]:
    columns = [_cached_scores(member) for member in zone]
    return columns[0] if len(columns) == 1 else map(max, zip(*columns, strict=True))


def _best_of(zone: Sequence[Candidate], count: int) -> Iterator[list[str]]:
    for marks in zip(*[_cached_scores(member) for member in zone], strict=True):
        bar = nlargest(count, marks)[-1]
        yield [member.id for member, mark in zip(zone, marks, strict=True) if mark >= bar]


def _joined(lists: Iterable[list[str]]) -> list[str]:
    return [peer for ids in lists for peer in ids]


def place_again(
    table: Table, before: Iterable[Candidate], after: Iterable[Candidate], replicas: int
) -> Table:
    """Return ``place(after, replicas)`` out of ``table``, which is ``place(before, replicas)``.

    It takes milliseconds for each member of difference, however many members there are.
    """
    old, new = set(before), set(after)
    placement = _Placement(old, table, replicas)
    for member in sorted(old - new):
        placement.remove(member)
    for member in sorted(new - old):
        placement.add(member)
    return placement.table()


class _Placement:
    """The replica sets of some members, kept right while members come and go.

    Who is in no replica set has no part in the choice, so one more member is weighed against
    each set alone, and one fewer concerns only the sets it was in. Why that is the same as
    choosing anew from all: a set holds either the best members of the best zones (when there
    are at least as many zones as copies), and only a better one of a zone in it, or one that
    beats the last, changes that; or the best of every zone and the best of the rest, and then
    only one that beats the last of all, or is the first of its zone, does.
    """

    def __init__(self, members: Iterable[Candidate], table: Table, replicas: int) -> None:
        self._members = {member.id: member for member in members}
        self._columns = {peer: _cached_scores(one) for peer, one in self._members.items()}
        self._rows = list(table)
        self._replicas = replicas
        self._bars = [self._bar(*entry) for entry in enumerate(self._rows)]
        self._zones = Counter(one.zone for one in self._members.values())

    def table(self) -> Table:
        """Return the replica sets."""
        return tuple(self._rows)

    def add(self, member: Candidate) -> None:
        """Take in one more member."""
        column = _cached_scores(member)
        self._members[member.id] = member
        self._columns[member.id] = column
        concerned: Iterable[int] = range(PARTITIONS)
        if member.zone in self._zones or len(self._zones) >= self._replicas:
            pairs = enumerate(zip(column, self._bars, strict=True))
            concerned = [partition for partition, (score, bar) in pairs if score >= bar]
        for partition in concerned:
            self.choose(partition, (*self._rows[partition], member.id))
        self._zones[member.zone] += 1

    def remove(self, member: Candidate) -> None:
        """Do without a member."""
        del self._members[member.id], self._columns[member.id]
        self._zones = +(self._zones - Counter([member.zone]))
        everybody = tuple(self._members)
        for partition, row in enumerate(self._rows):
            if member.id in row:
                self.choose(partition, everybody)

    def choose(self, partition: int, ids: Iterable[str]) -> None:
        """Choose the replica set of a partition from some of the members."""
        members, columns = self._members, self._columns
        # Members that score the same (they hardly ever do) are taken in their own order.
        ranked = sorted([(-columns[peer][partition], members[peer]) for peer in ids])
        chosen: list[str] = []
        passed_over: list[str] = []
        used: set[str] = set()
        for _, member in ranked:
            if len(chosen) == self._replicas:
                break
            if member.zone in used:
                passed_over.append(member.id)
            else:
                used.add(member.zone)
                chosen.append(member.id)
        row = (*chosen, *passed_over[: self._replicas - len(chosen)])
        self._rows[partition] = row
        self._bars[partition] = self._bar(partition, row)

    def _bar(self, partition: int, row: tuple[str, ...]) -> float:
        """Return the score below which a member changes nothing about a replica set."""
        if not row or len(row) < self._replicas:
            return 0.0
        return min([self._columns[peer][partition] for peer in row])
