"""Quorums of registers: which members vote on a partition, and which sets of them are enough."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from functools import cached_property

from dstash.cluster.topology.view import View


@dataclass(frozen=True)
class Voters:
    """The members that vote on a partition in one epoch.

    ``members`` are all of them, in rank order. ``sides`` are the replica sets of the partition: the
    old and the new during a topology change, else one. ``counted`` are the members whose votes
    count: those that have all their data (T4).
    """

    members: tuple[str, ...]
    sides: tuple[frozenset[str], ...]
    counted: frozenset[str]
    #: The answers of both questions by set of names: there are few sets, and many registers ask.
    _quorums: dict[frozenset[str], bool] = field(default_factory=dict, compare=False, repr=False)
    _holders: dict[frozenset[str], bool] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def names(self) -> Hashable:
        """What is equal for voters that differ in their ranks only."""
        return self.sides, self.counted

    @property
    def is_moving(self) -> bool:
        """Whether registers rest, because a topology change gives the partition other replicas."""
        return len(self.sides) > 1

    def is_quorum(self, names: Collection[str]) -> bool:
        """Whether the counted members among ``names`` are a majority of each side: a Q(E)."""
        asked = frozenset(names)
        answer = self._quorums.get(asked)
        if answer is None:
            votes = self.counted & asked
            answer = all(2 * len(side & votes) > len(side) for side in self.sides)
            self._quorums[asked] = answer
        return answer

    def have_all(self, names: Collection[str]) -> bool:
        """Whether the counted members among ``names`` hold all that a quorum agrees on.

        They are N - W + 1 of the N members of each side, where W is a majority.
        """
        asked = frozenset(names)
        answer = self._holders.get(asked)
        if answer is None:
            held = self.counted & asked
            answer = all(2 * len(side & held) >= len(side) for side in self.sides)
            self._holders[asked] = answer
        return answer


def voters_of(view: View, partition: int) -> Voters:
    """Return the voters of a partition."""
    before, after = view.before[partition], view.writers[partition]
    if not view.is_resting(partition):
        after = before  # the replicas that serve registers
    members = tuple(dict.fromkeys((*before, *after)))
    sides = tuple(dict.fromkeys((frozenset(before), frozenset(after))))
    counted = frozenset(name for name in members if view.members[name].synced)
    return Voters(members, sides, counted)
