"""Quorums of registers: which members vote on a partition, and which sets of them are enough."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from dstash.cluster.topology.view import View


class Voters(NamedTuple):
    """The members that vote on a partition in one epoch.

    ``members`` are all of them, in rank order. ``sides`` are the replica sets of the partition: the
    old and the new during a topology change, else one. ``counted`` are the members whose votes
    count: those that have all their data (T4).
    """

    members: tuple[str, ...]
    sides: tuple[frozenset[str], ...]
    counted: frozenset[str]

    @property
    def is_moving(self) -> bool:
        """Whether a topology change gives the partition other replicas."""
        return len(self.sides) > 1

    def is_quorum(self, names: Collection[str]) -> bool:
        """Whether the counted members among ``names`` are a majority of each side: a Q(E)."""
        votes = self.counted.intersection(names)
        return all(2 * len(side & votes) > len(side) for side in self.sides)

    def have_all(self, names: Collection[str]) -> bool:
        """Whether the counted members among ``names`` hold all that a quorum agrees on.

        They are N - W + 1 of the N members of each side, where W is a majority.
        """
        held = self.counted.intersection(names)
        return all(2 * len(side & held) >= len(side) for side in self.sides)


def voters_of(view: View, partition: int) -> Voters:
    """Return the voters of a partition."""
    before, after = view.before[partition], view.writers[partition]
    members = tuple(dict.fromkeys((*before, *after)))
    sides = tuple(dict.fromkeys((frozenset(before), frozenset(after))))
    counted = frozenset(name for name in members if view.members[name].synced)
    return Voters(members, sides, counted)
