"""Weighted, zone-aware rendezvous hashing: which members hold which partition.

Every member gets a score for every partition; the highest scores win. A member that leaves moves
only its own partitions, a member that joins takes only its fair share, and nobody has to remember
a ring (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996).

Weights say how large a share a member should have of all copies. With one copy they scale the
score (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005). With more, who wins
the first copy cannot win the second, so heavy members would stay below their share: then what is
scaled is the odds of being chosen (Rosén, "On Sampling with Probability Proportional to Size",
1997). Where weights differ the shares of all depend on who is a member, so a little more moves than
the newcomer takes.

Golden vectors in the tests pin the result: it decides where data is, and may never change
silently.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nlargest
from itertools import repeat
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from dstash.limits import PARTITIONS

#: A 64-bit hash of bytes under a seed.
Hash = Callable[[bytes, int], int]

#: ``table[partition]`` is the replica set: member ids in rank order.
Table = tuple[tuple[str, ...], ...]

#: For each partition the score of a member.
Column = Sequence[float]

_UNIT: Final = 1.0 / (1 << 52)
_PARTITION_NAMES: Final = tuple(number.to_bytes(2, "big") for number in range(PARTITIONS))

#: What scales the scores of those that are chosen always: no other score comes near.
_SURELY: Final = 1e30


class Candidate(NamedTuple):
    """A member as placement sees it."""

    id: str
    zone: str
    weight: float = 1.0


class Law(NamedTuple):
    """How the lots of a member become scores, where weights differ.

    ``power`` makes the best lot of a zone's members as even as that of a single one, however many
    they are. ``factor`` scales scores. ``is_single``: whether one copy is left to be won.
    """

    factor: float
    power: float
    is_single: bool


def lots(peer: str, hash64: Hash = xxh3_64_intdigest) -> Column:
    """Return the lot that a member draws for each partition: even between 0 and 1, and neither."""
    seed = hash64(peer.encode(), 0)
    hashes = map(hash64, _PARTITION_NAMES, repeat(seed))
    return array("d", [((number >> 12) + 0.5) * _UNIT for number in hashes])


@functools.lru_cache(maxsize=2048)
def _cached_lots(peer: str) -> Column:
    return lots(peer)


@functools.lru_cache(maxsize=256)
def _weighed_lots(peer: str, law: Law) -> Column:
    factor, power, _ = law
    evened = _cached_lots(peer) if power == 1 else [lot**power for lot in _cached_lots(peer)]
    if not law.is_single:
        return array("d", [factor * lot / (1 - lot) for lot in evened])
    log, scale = math.log, -factor
    return array("d", [scale / log(lot) if lot else 0.0 for lot in evened])


def scores(members: Iterable[Candidate], replicas: int) -> dict[str, Column]:
    """Return by member its score for each partition.

    Where all weigh the same, lots are the scores; else a member's score depends on all of them.
    """
    everybody = list(members)
    if _are_equal(everybody):
        return {one.id: _cached_lots(one.id) for one in everybody}
    laws = _laws(everybody, replicas)
    return {peer: _weighed_lots(peer, law) for peer, law in laws.items()}


def _are_equal(members: Iterable[Candidate]) -> bool:
    return len({one.weight for one in members}) <= 1


def _laws(members: Sequence[Candidate], replicas: int) -> dict[str, Law]:
    weights: dict[str, float] = {}
    for one in members:
        weights[one.zone] = weights.get(one.zone, 0.0) + one.weight
    if len(weights) >= replicas:  # zones compete for copies, and members within their zone
        factors, is_single = _factors(weights, replicas)
        return {
            one.id: Law(factors[one.zone], weights[one.zone] / one.weight, is_single)
            for one in members
        }
    factors, is_single = _factors({one.id: one.weight for one in members}, replicas)
    return {peer: Law(factor, 1.0, is_single) for peer, factor in factors.items()}


def _factors(weights: Mapping[str, float], copies: int) -> tuple[dict[str, float], bool]:
    """Return what scales the scores of each, and whether they compete for a single copy.

    Nobody holds two copies. Who should have one and more has one always, and the others share
    what is left.
    """
    rest, left = dict(weights), copies
    total = math.fsum(rest.values())
    factors: dict[str, float] = {}
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        if left * weights[name] / total < 1:
            break
        factors[name] = _SURELY
        del rest[name]
        total = math.fsum(rest.values())  # to subtract would leave nothing of very small ones
        left -= 1
    if left == 1:
        return factors | rest, True
    odds = {name: left * weight / (total - left * weight) for name, weight in rest.items()}
    return factors | odds, False


def place(members: Iterable[Candidate], replicas: int) -> Table:
    """Return the replica set of every partition.

    Each set holds the ``replicas`` best members, passing over zones already used while unused
    zones remain; all members when there are fewer.
    """
    ordered = sorted(members)
    columns = scores(ordered, replicas)
    placement = _Placement(ordered, columns, ((),) * PARTITIONS, replicas)
    zones: dict[str, dict[str, Column]] = {}
    for one in ordered:
        zones.setdefault(one.zone, {})[one.id] = columns[one.id]
    for partition, ids in enumerate(_shortlists(list(zones.values()), replicas)):
        placement.choose(partition, ids)
    return placement.table()


def _shortlists(zones: Sequence[Mapping[str, Column]], replicas: int) -> Iterator[list[str]]:
    """Yield for each partition the few members that its replica set is surely among.

    Args:
        zones: each with the scores of its members.
    """
    if len(zones) < replicas:
        best = [_best_of(zone, replicas) for zone in zones]
        yield from map(_joined, zip(*best, strict=True))
        return
    # With enough zones, only the best member of each counts, and of those the best few.
    tops = [_tops(list(zone.values())) for zone in zones]
    groups = [list(zone.items()) for zone in zones]
    for partition, marks in enumerate(zip(*tops, strict=True)):
        bar = nlargest(replicas, marks)[-1]
        yield [
            peer
            for mark, group in zip(marks, groups, strict=True)
            if mark >= bar
            for peer, column in group
            if column[partition] == mark
        ]


def _tops(columns: Sequence[Column]) -> Iterable[float]:
    return columns[0] if len(columns) == 1 else map(max, zip(*columns, strict=True))


def _best_of(zone: Mapping[str, Column], count: int) -> Iterator[list[str]]:
    for marks in zip(*zone.values(), strict=True):
        bar = nlargest(count, marks)[-1]
        yield [peer for peer, mark in zip(zone, marks, strict=True) if mark >= bar]


def _joined(lists: Iterable[list[str]]) -> list[str]:
    return [peer for ids in lists for peer in ids]


def place_again(
    table: Table, before: Iterable[Candidate], after: Iterable[Candidate], replicas: int
) -> Table:
    """Return ``place(after, replicas)`` out of ``table``, which is ``place(before, replicas)``.

    It takes milliseconds for each member of difference, however many members there are. Where
    weights differ, each member concerns the scores of all, and all is chosen anew.
    """
    old, new = set(before), set(after)
    if not _are_equal(old | new):
        return place(new, replicas)
    placement = _Placement(old, scores(old, replicas), table, replicas)
    for member in sorted(old - new):
        placement.remove(member)
    for member in sorted(new - old):
        placement.add(member)
    return placement.table()


class _Placement:
    """The replica sets of some members, kept right while members of equal weight come and go.

    Who is in no replica set has no part in the choice, so one more member is weighed against
    each set alone, and one fewer concerns only the sets it was in. Why that is the same as
    choosing anew from all: a set holds either the best members of the best zones (when there
    are at least as many zones as copies), and only a better one of a zone in it, or one that
    beats the last, changes that; or the best of every zone and the best of the rest, and then
    only one that beats the last of all, or is the first of its zone, does.
    """

    def __init__(
        self,
        members: Iterable[Candidate],
        columns: Mapping[str, Column],
        table: Table,
        replicas: int,
    ) -> None:
        self._members = {member.id: member for member in members}
        self._columns = dict(columns)
        self._rows = list(table)
        self._replicas = replicas
        self._bars = [self._bar(*entry) for entry in enumerate(self._rows)]
        self._zones = Counter(one.zone for one in self._members.values())

    def table(self) -> Table:
        """Return the replica sets."""
        return tuple(self._rows)

    def add(self, member: Candidate) -> None:
        """Take in one more member."""
        column = _cached_lots(member.id)
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
