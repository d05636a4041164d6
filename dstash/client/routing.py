"""Routing: tables from partition to peers, and the grouping of keys by them.

Routing one key takes a hash, a mask and a list look-up. The tables are computed once per view.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from xxhash import xxh3_64_intdigest

from dstash import loops
from dstash.cluster.topology.view import View
from dstash.limits import PARTITIONS
from dstash.loops.pure import as_bytes
from dstash.types import Level

Peers = tuple[str, ...]

T = TypeVar("T")

_MASK = PARTITIONS - 1
#: With fewer keys, to visit every lane takes longer than the sort saves.
_FEW_KEYS: Final = 256


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
) -> Table[Peers]:
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

    return _per_set(view, view.readers, choose)


def _least(view: View, level: Level, replicas: Peers) -> int:
    """Return how many replicas must have their data for a read at a level."""
    if level is Level.QUORUM:
        return max(1, view.votes_needed(replicas))
    return max(1, level.needed(len(replicas)))


def home_table(view: View, suspect: Collection[str]) -> Table[Peers]:
    """Return the replicas of each partition in the order in which they are asked for registers.

    The first is the home of its registers: the first replica in rank order, so that all clients ask
    the same peer. Suspect members, members without their lock, and members that have lost their
    data come last.
    """
    members, alive = view.members, view.alive

    def reluctance(peer: str) -> tuple[bool, ...]:
        return not members[peer].synced, peer in suspect, peer not in alive

    return _per_set(view, view.readers, lambda replicas: tuple(sorted(replicas, key=reluctance)))


def all_table(view: View) -> Table[Peers]:
    """Return all replicas of each partition that have their data."""
    synced = {peer for peer, member in view.members.items() if member.synced}
    return _per_set(view, view.readers, lambda row: tuple(peer for peer in row if peer in synced))


def write_table(view: View) -> Table[WriteSet]:
    """Return the peers to write to, by partition."""
    synced = frozenset(peer for peer, member in view.members.items() if member.synced)

    def union(sides: tuple[Peers, Peers]) -> WriteSet:
        old, new = (tuple(sorted(side)) for side in sides)
        return WriteSet(tuple(sorted({*old, *new})), old, new, synced)

    return _per_set(view, zip(view.before, view.writers, strict=True), union)


def _per_set(view: View, keys: Iterable[Any], make: Callable[[Any], T]) -> Table[T]:
    """Map ``make`` over the partitions; call it once per distinct replica set."""
    made: dict[Any, T] = {}
    targets = (made[key] if key in made else made.setdefault(key, make(key)) for key in keys)
    return Table(targets, view.epoch)


class Lanes(NamedTuple):
    """How the keys of a large batch are sorted: by target, and for each target by band.

    Attributes:
        numbers: the lane of each partition, as 16-bit numbers.
        total: the number of lanes.
        last: the last lane of each target; those of a target are neighbours.
    """

    numbers: bytes
    total: int
    last: dict[Any, int]


class Table(list[T]):
    """A routing table: the target of each partition. It must not be changed.

    ``epoch`` is that of the view it was made from. Requests that are routed by the table carry it,
    because another thread may install a later view meanwhile.
    """

    def __init__(self, targets: Iterable[T], epoch: int = 0) -> None:
        super().__init__(targets)
        self.epoch = epoch
        self._known: dict[int, Lanes] = {}

    def lanes(self, band: int) -> Lanes:
        """Return the lanes for bands of so many neighbouring partitions, computed once."""
        return self._known.get(band) or self._known.setdefault(band, self._lanes(band))

    def _lanes(self, band: int) -> Lanes:
        bands: dict[T, dict[int, None]] = {}
        for partition, target in enumerate(self):
            bands.setdefault(target, {})[partition // band] = None
        pairs = [(target, number) for target, numbers in bands.items() for number in numbers]
        lanes = {pair: lane for lane, pair in enumerate(pairs)}
        numbers = array("H", [lanes[target, number // band] for number, target in enumerate(self)])
        return Lanes(
            numbers.tobytes(),
            len(lanes),
            {target: lanes[target, number] for target, number in pairs},
        )


def sort_places(keys: Sequence[Any], table: Table[Any], band: int = 1) -> dict[Any, memoryview]:
    """Return the places of keys by the entry of ``table`` for them.

    The places of a large batch are in the order of partitions, which is the order on disk: a chunk
    of them touches few pages of a peer's tree, while random keys would touch most of it.

    Args:
        keys: encoded or plain; see ``loops.are_plain``.
        table: the target of each partition.
        band: how many neighbouring partitions count as one. For look-ups a wider band is as good,
            and faster to sort; writes gain more from the exact order.
    """
    if len(keys) < _FEW_KEYS:
        groups: dict[Any, list[int]] = {}
        for place, digest in enumerate(map(xxh3_64_intdigest, as_bytes(keys))):
            groups.setdefault(table[digest & _MASK], []).append(place)
        return {target: memoryview(array("I", places)) for target, places in groups.items()}
    lanes = table.lanes(band)
    packed, ends = loops.sort_places(keys, lanes.numbers, lanes.total)
    places, found, begin = memoryview(packed).cast("I"), {}, 0
    for target, lane in lanes.last.items():
        if ends[lane] > begin:
            found[target] = places[begin : ends[lane]]
        begin = ends[lane]
    return found


def few_targets(groups: dict[Peers, memoryview]) -> dict[Peers, memoryview]:
    """Return the places of a small batch with one entry for the same peers in any order.

    A batch of few keys takes about as long as its requests, and any of the peers may send the
    values. The first key decides which, so that each of them sends some.
    """
    united: dict[frozenset[str], tuple[Peers, array[int]]] = {}
    for targets, places in groups.items():
        _, all_places = united.setdefault(frozenset(targets), (targets, array("I")))
        all_places.frombytes(places.tobytes())
    return {targets: memoryview(places) for targets, places in united.values()}


def group(
    encoded: Sequence[bytes], items: Sequence[T], table: Table[Any], band: int = 1
) -> dict[Any, list[T]]:
    """Group ``items`` (one per encoded key) by the entry of ``table``; see ``sort_places``."""
    return {
        target: loops.pick(items, places)
        for target, places in sort_places(encoded, table, band).items()
    }
