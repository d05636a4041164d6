"""The view: topology and liveness as one process knows them; immutable.

Liveness decides the order in which replicas are asked, never which replicas a partition has.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.cluster.topology.rendezvous import Candidate, Table, place, place_again
from dstash.cluster.topology.topology import Member, Topology
from dstash.types import Level


class _Placed(NamedTuple):
    members: frozenset[Candidate]
    replicas: int
    table: Table


#: The last placements. A topology change affects few members, so the next placement is similar.
_placed: deque[_Placed] = deque(maxlen=16)

#: Up to this many different members, updating a placement is cheaper than computing it.
_MAX_DIFFERENCE: Final = 8


def placement(members: list[Member], replicas: int) -> Table:
    """Return the replica set of each partition (cached: it changes only with the placement)."""
    wanted = frozenset(member.candidate for member in members)
    known = [placed for placed in tuple(_placed) if placed.replicas == replicas]
    near = min(known, key=lambda placed: len(placed.members ^ wanted), default=None)
    if near is not None and near.members == wanted:
        return near.table
    if near is not None and len(near.members ^ wanted) <= min(_MAX_DIFFERENCE, len(wanted) // 2):
        table = place_again(near.table, near.members, wanted, replicas)
    else:
        table = place(wanted, replicas)
    _placed.append(_Placed(wanted, replicas, table))
    return table


def survivors_lack_quorum(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether the remaining replicas must stream too, because too few may have every write.

    Reads and later changes rely on an acked write being on a quorum of its replicas. A quorum of
    the old replicas may include leaving members; a replica that has streamed has every write. With
    as many replicas as before, this gives a quorum of the new replicas; with fewer replicas it may
    not.
    """
    leaving, gaining = set(old).difference(new), set(new).difference(old)
    holders = Level.QUORUM.needed(len(old)) - len(leaving) + len(gaining)
    return holders < Level.QUORUM.needed(len(new))


@dataclass(frozen=True, eq=False)
class View:
    """The topology and liveness that a process uses.

    ``alive`` has the ids of the members that hold their session lock. A write needs its acks both
    in ``before`` and in ``writers`` of the partition; they are the same without a topology change.
    ``is_kept`` says whether a peer has this topology on its disk.
    """

    topology: Topology
    alive: frozenset[str] = frozenset()
    is_kept: bool = True

    @property
    def epoch(self) -> int:
        """The epoch of the topology."""
        return self.topology.epoch

    @functools.cached_property
    def before(self) -> Table:
        """The replica set of each partition before the topology change."""
        return placement(self.topology.before(), self.topology.replicas)

    @property
    def readers(self) -> Table:
        """The replica sets for reads: those of the old placement until the change switches."""
        change = self.topology.change
        return self.writers if change is not None and change.switched else self.before

    @functools.cached_property
    def writers(self) -> Table:
        """The replica set of each partition after the topology change."""
        return placement(self.topology.after(), self.topology.replicas)

    @functools.cached_property
    def members(self) -> dict[str, Member]:
        """The members by id."""
        return {member.id: member for member in self.topology.members}

    @functools.cached_property
    def index_settings(self) -> dict[str, IndexSettings]:
        """The settings of indexes, by name; most have none."""
        return {settings.name: settings for settings in self.topology.indexes}

    def is_moving(self, partition: int) -> bool:
        """Whether the topology change gives a partition other replicas."""
        if self.topology.change is None:
            return False
        return set(self.before[partition]) != set(self.writers[partition])

    def is_resting(self, partition: int) -> bool:
        """Whether no replica serves the registers of a partition, because it moves (T1)."""
        change = self.topology.change
        return change is not None and not change.serves_registers and self.is_moving(partition)

    @functools.cached_property
    def resting(self) -> frozenset[int]:
        """The partitions whose registers no replica serves."""
        return frozenset(filter(self.is_resting, range(len(self.before))))

    def is_replicated(self, peer: str) -> bool:
        """Whether a member can stream its data from others again.

        A new replica does not count: nothing is streamed from it before the topology change
        switches. A member that is a new replica itself streams from the others.
        """
        held = [row for row in set(self.readers) if peer in row]
        return not held or any(len(row) > 1 for row in held)

    def votes_needed(self, owners: Sequence[str]) -> int:
        """Return how many replicas of a partition together have every acked write.

        A write is on a quorum W of N replicas, so any N - W + 1 include a replica that has it.
        Members whose loss an operator has accepted are not needed.
        """
        able = sum(not self.members[peer].is_waived for peer in owners)
        return min(able, len(owners) - Level.QUORUM.needed(len(owners)) + 1)

    def may_read_without(self, owners: Sequence[str], passed: Collection[str]) -> bool:
        """Whether replicas that are not in ``passed`` may be enough for a read at quorum.

        While some replicas lack their data, those that have every acked write are enough, and this
        may still be so in the topology by which the others serve. With an even number of replicas
        these are fewer than a quorum.
        """
        rest = [peer for peer in owners if peer not in passed]
        return len(rest) >= max(1, self.votes_needed(owners))

    def is_read(self, peer: str) -> bool:
        """Whether reads go to a peer."""
        return any(peer in readers for readers in self.readers)

    def owned_by(self, peer: str) -> frozenset[int]:
        """Return the partitions that a peer holds, before or after the topology change."""
        both = zip(self.before, self.writers, strict=True)
        return frozenset(
            number for number, (old, new) in enumerate(both) if peer in old or peer in new
        )


def can_read(view: View, passed: frozenset[str]) -> bool:
    """Whether peers of an old replica set that are not in ``passed`` may serve reads at quorum."""
    return any(view.may_read_without(peers, passed) for peers in set(view.before))
