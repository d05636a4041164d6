"""Routing: tables from partition to peers, and the grouping of keys by them.

Routing one key takes a hash, a mask and a list look-up. The tables are computed once per view.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from xxhash import xxh3_64_intdigest

from dstash.cluster.topology.view import View
from dstash.limits import PARTITIONS
from dstash.types import Level

Peers = tuple[str, ...]

T = TypeVar("T")

_MASK = PARTITIONS - 1


class WriteSet(NamedTuple):
    """The peers that get a write; ``old`` and ``new`` differ only during a topology change.

    ``counted`` are the members whose acks count: a member that has lost its data gets writes, but
    its ack proves nothing.
    """

    peers: Peers
    old: Peers
    new: Peers
    counted: frozenset[str]

    def is_met(self, acks: Collection[str], level: Level) -> bool:
        """Whether these acks meet the level in both replica sets."""
        return all(
            len([peer for peer in side if peer in acks and peer in self.counted])
            >= level.needed(len(side))
            for side in (self.old, self.new)
        )


def read_table(
    view: View, level: Level, zone: str, suspect: Collection[str], lagging: Collection[str] = ()
) -> list[Peers]:
    """Return the peers to read from, by partition: the first sends values, the others digests.

    The order is: members in the client's own zone, other members, ``lagging`` members, members
    without their lock, ``suspect`` members. Members that have lost their data are left out. If too
    few are left for the level, the row is empty: fewer cannot distinguish a key that does not exist
    from a key that they missed.
    """
    members, alive = view.members, view.alive

    def reluctance(peer: str) -> tuple[bool, ...]:
        elsewhere = bool(zone) and members[peer].zone != zone
        return peer in suspect, peer not in alive, peer in lagging, elsewhere

    cost = {peer: reluctance(peer) for peer in members}
    synced = {peer for peer, member in members.items() if member.synced}

    def choose(replicas: Peers) -> Peers:
        able = sorted((peer for peer in replicas if peer in synced), key=cost.__getitem__)
        enough = len(able) >= _least(view, level, replicas)
        return tuple(able[: level.needed(len(replicas))]) if enough else ()

    return _per_set(view.readers, choose)


def _least(view: View, level: Level, replicas: Peers) -> int:
    """Return how many replicas must have their data for a read at a level."""
    if level is Level.QUORUM:
        return max(1, view.votes_needed(replicas))
    return max(1, level.needed(len(replicas)))


def home_table(view: View, suspect: Collection[str]) -> list[Peers]:
    """Return the replicas of each partition in the order in which they are asked for registers.

    The first is the home of its registers: the first replica in rank order, so that all clients ask
    the same peer. Suspect members, members without their lock, and members that have lost their
    data come last.
    """
    members, alive = view.members, view.alive

    def reluctance(peer: str) -> tuple[bool, ...]:
        return not members[peer].synced, peer in suspect, peer not in alive

    return _per_set(view.readers, lambda replicas: tuple(sorted(replicas, key=reluctance)))


def all_table(view: View) -> list[Peers]:
    """Return all replicas of each partition that have their data."""
    synced = {peer for peer, member in view.members.items() if member.synced}
    return _per_set(view.readers, lambda row: tuple(peer for peer in row if peer in synced))


def write_table(view: View) -> list[WriteSet]:
    """Return the peers to write to, by partition."""
    synced = frozenset(peer for peer, member in view.members.items() if member.synced)

    def union(sides: tuple[Peers, Peers]) -> WriteSet:
        old, new = (tuple(sorted(side)) for side in sides)
        return WriteSet(tuple(sorted({*old, *new})), old, new, synced)

    return _per_set(zip(view.before, view.writers, strict=True), union)


def _per_set(keys: Iterable[Any], make: Callable[[Any], T]) -> list[T]:
    """Map ``make`` over the partitions; call it once per distinct replica set."""
    made: dict[Any, T] = {}
    return [made[key] if key in made else made.setdefault(key, make(key)) for key in keys]


def group(
    encoded: Sequence[bytes], items: Iterable[T], table: Sequence[Any], band: int = 1
) -> dict[Any, list[T]]:
    """Group ``items`` (one per encoded key) by the entry of ``table`` for their key.

    The lists of a large batch are in the order of partitions, which is the order on disk: a chunk
    of such a list touches few pages of a peer's tree, while random keys would touch most of it.

    Args:
        band: how many neighbouring partitions count as one. For look-ups a wider band is as good,
            and faster to sort; writes gain more from the exact order.
    """
    groups: dict[Any, list[T]] = {}
    digests = map(xxh3_64_intdigest, encoded)
    if len(encoded) < len(table):  # too few keys to visit every partition
        for digest, item in zip(digests, items, strict=True):
            groups.setdefault(table[digest & _MASK], []).append(item)
        return groups
    lanes: Iterable[tuple[Any, list[T]]]
    lanes, by_partition = _lanes(table, band)
    for digest, item in zip(digests, items, strict=True):
        by_partition[digest & _MASK].append(item)
    for target, members in lanes:
        if members:
            groups.setdefault(target, []).extend(members)
    return groups


def _lanes(table: Sequence[Any], band: int) -> tuple[Iterable[tuple[Any, list[T]]], list[list[T]]]:
    """Return (target, empty list) pairs in order, and the list of each partition."""
    if band == 1:
        alone: list[list[T]] = [[] for _ in table]
        return zip(table, alone, strict=True), alone
    lanes: list[tuple[Any, list[T]]] = []
    shared: list[list[T]] = []
    for begin in range(0, len(table), band):
        targets = table[begin : begin + band]
        lists: dict[Any, list[T]] = {target: [] for target in targets}
        lanes += lists.items()
        shared += [lists[target] for target in targets]
    return lanes, shared
