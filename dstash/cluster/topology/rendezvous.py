"""Weighted, zone-aware rendezvous hashing: the placement of partitions on members.

Every member has a score for every partition; the highest scores win. A leaving member moves only
its own partitions, a joining member takes only its fair share, and there is no ring to store
(Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996).

The weight of a member sets its share of all copies. With one copy weights scale the score
(Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005). With more copies, the
winner of the first copy cannot win the second, so heavy members would get less than their share.
Then weights scale the odds of being chosen (Rosén, "On Sampling with Probability Proportional to
Size", 1997). If weights differ, the shares of all members depend on the member list, so a little
more data moves than the new member takes.

Golden vectors in the tests fix the result, because it decides where data is and must never change
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

#: A 64-bit hash of bytes with a seed.
Hash = Callable[[bytes, int], int]

#: ``table[partition]`` is the replica set: member ids in rank order.
Table = tuple[tuple[str, ...], ...]

#: The score of a member for each partition.
Column = Sequence[float]

_UNIT: Final = 1.0 / (1 << 52)
_PARTITION_NAMES: Final = tuple(number.to_bytes(2, "big") for number in range(PARTITIONS))

#: The factor for members that are always chosen: no other score comes near.
_ALWAYS: Final = 1e30


class Candidate(NamedTuple):
    """A member as placement sees it."""

    id: str
    zone: str
    weight: float = 1.0


class Law(NamedTuple):
    """How the lots of a member become scores if weights differ.

    ``factor`` scales scores. ``power`` corrects for the number of members in a zone, so that their
    best lot is distributed like the lot of a single member. ``is_single``: whether the members
    compete for a single copy.
    """

    factor: float
    power: float
    is_single: bool


def lots(peer: str, hash64: Hash = xxh3_64_intdigest) -> Column:
    """Return a member's lot for each partition, uniform between 0 and 1 (both exclusive)."""
    seed = hash64(peer.encode(), 0)
    hashes = map(hash64, _PARTITION_NAMES, repeat(seed))
    return array("d", [((number >> 12) + 0.5) * _UNIT for number in hashes])


@functools.lru_cache(maxsize=2048)
def _cached_lots(peer: str) -> Column:
    return lots(peer)


@functools.lru_cache(maxsize=256)
def _weighted_lots(peer: str, law: Law) -> Column:
    factor, power, _ = law
    corrected = _cached_lots(peer) if power == 1 else [lot**power for lot in _cached_lots(peer)]
    if not law.is_single:
        return array("d", [factor * lot / (1 - lot) for lot in corrected])
    log, scale = math.log, -factor
    return array("d", [scale / log(lot) if lot else 0.0 for lot in corrected])


def scores(members: Iterable[Candidate], replicas: int) -> dict[str, Column]:
    """Return, by member, its score for each partition.

    With equal weights the lots are the scores; otherwise a score depends on all members.
    """
    candidates = list(members)
    if _have_equal_weights(candidates):
        return {member.id: _cached_lots(member.id) for member in candidates}
    laws = _laws(candidates, replicas)
    return {peer: _weighted_lots(peer, law) for peer, law in laws.items()}


def _have_equal_weights(members: Iterable[Candidate]) -> bool:
    return len({member.weight for member in members}) <= 1


def _laws(members: Sequence[Candidate], replicas: int) -> dict[str, Law]:
    weights: dict[str, float] = {}
    for member in members:
        weights[member.zone] = weights.get(member.zone, 0.0) + member.weight
    if len(weights) >= replicas:  # zones compete for copies, and members within their zone
        factors, is_single = _factors(weights, replicas)
        return {
            member.id: Law(factors[member.zone], weights[member.zone] / member.weight, is_single)
            for member in members
        }
    factors, is_single = _factors({member.id: member.weight for member in members}, replicas)
    return {peer: Law(factor, 1.0, is_single) for peer, factor in factors.items()}


def _factors(weights: Mapping[str, float], copies: int) -> tuple[dict[str, float], bool]:
    """Return the factor of each name, and whether the names compete for a single copy.

    No name can hold two copies. A name whose share is one copy or more always has one, and the
    other names share the remaining copies.
    """
    rest, left = dict(weights), copies
    total = math.fsum(rest.values())
    factors: dict[str, float] = {}
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        if left * weights[name] / total < 1:
            break
        factors[name] = _ALWAYS
        del rest[name]
        total = math.fsum(rest.values())  # subtraction would lose very small weights
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
    for member in ordered:
        zones.setdefault(member.zone, {})[member.id] = columns[member.id]
    for partition, ids in enumerate(_shortlists(list(zones.values()), replicas)):
        placement.choose(partition, ids)
    return placement.table()


def _shortlists(zones: Sequence[Mapping[str, Column]], replicas: int) -> Iterator[list[str]]:
    """Yield, for each partition, a few members that include its replica set.

    Args:
        zones: by zone, the scores of its members.
        replicas: the size of a replica set.
    """
    if len(zones) < replicas:
        best = [_best_of(zone, replicas) for zone in zones]
        yield from map(_joined, zip(*best, strict=True))
        return
    # With enough zones only the best member of each zone can win, and of these the best few.
    tops = [_tops(list(zone.values())) for zone in zones]
    groups = [list(zone.items()) for zone in zones]
    for partition, best_scores in enumerate(zip(*tops, strict=True)):
        threshold = nlargest(replicas, best_scores)[-1]
        yield [
            peer
            for best, group in zip(best_scores, groups, strict=True)
            if best >= threshold
            for peer, column in group
            if column[partition] == best
        ]


def _tops(columns: Sequence[Column]) -> Iterable[float]:
    return columns[0] if len(columns) == 1 else map(max, zip(*columns, strict=True))


def _best_of(zone: Mapping[str, Column], count: int) -> Iterator[list[str]]:
    for row in zip(*zone.values(), strict=True):
        threshold = nlargest(count, row)[-1]
        yield [peer for peer, score in zip(zone, row, strict=True) if score >= threshold]


def _joined(lists: Iterable[list[str]]) -> list[str]:
    return [peer for ids in lists for peer in ids]


def place_again(
    table: Table, before: Iterable[Candidate], after: Iterable[Candidate], replicas: int
) -> Table:
    """Return ``place(after, replicas)``, computed from ``table``, the ``place(before, replicas)``.

    This takes milliseconds for each member that differs, however many members there are. If weights
    differ, each member affects all scores, and the placement is computed from scratch.
    """
    old, new = set(before), set(after)
    if not _have_equal_weights(old | new):
        return place(new, replicas)
    placement = _Placement(old, scores(old, replicas), table, replicas)
    for member in sorted(old - new):
        placement.remove(member)
    for member in sorted(new - old):
        placement.add(member)
    return placement.table()


class _Placement:
    """The replica sets of some members, updated while members of equal weight come and go.

    A member in no replica set does not affect the choice. So an added member is compared with each
    set alone, and a removed member affects only the sets that it was in. The result equals a choice
    from all members: with at least as many zones as copies, a set has the best members of the best
    zones, and only a better member of one of its zones, or one that beats its last member, changes
    it. With fewer zones, a set has the best member of every zone and the best of the rest, and only
    a member that beats the last one, or is the first of its zone, changes it.
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
        self._thresholds = [self._threshold(*entry) for entry in enumerate(self._rows)]
        self._zones = Counter(member.zone for member in self._members.values())

    def table(self) -> Table:
        """Return the replica sets."""
        return tuple(self._rows)

    def add(self, member: Candidate) -> None:
        """Add a member."""
        column = _cached_lots(member.id)
        self._members[member.id] = member
        self._columns[member.id] = column
        affected: Iterable[int] = range(PARTITIONS)
        if member.zone in self._zones or len(self._zones) >= self._replicas:
            pairs = enumerate(zip(column, self._thresholds, strict=True))
            affected = [partition for partition, (score, lowest) in pairs if score >= lowest]
        for partition in affected:
            self.choose(partition, (*self._rows[partition], member.id))
        self._zones[member.zone] += 1

    def remove(self, member: Candidate) -> None:
        """Remove a member."""
        del self._members[member.id], self._columns[member.id]
        self._zones = +(self._zones - Counter([member.zone]))
        candidates = tuple(self._members)
        for partition, row in enumerate(self._rows):
            if member.id in row:
                self.choose(partition, candidates)

    def choose(self, partition: int, ids: Iterable[str]) -> None:
        """Choose the replica set of a partition from some of the members."""
        members, columns = self._members, self._columns
        # Members with equal scores, which are very rare, are taken in their own order.
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
        self._thresholds[partition] = self._threshold(partition, row)

    def _threshold(self, partition: int, row: tuple[str, ...]) -> float:
        """Return the score below which a member cannot enter a replica set."""
        if not row or len(row) < self._replicas:
            return 0.0
        return min([self._columns[peer][partition] for peer in row])
