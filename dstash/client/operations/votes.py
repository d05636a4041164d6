"""Votes: the answers of the replicas to a write chunk, and which of its items they settle."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from dstash.client.refusals import Group, Refusals
from dstash.client.routing import WriteSet
from dstash.errors import DStashError
from dstash.types import Level

T = TypeVar("T")


class Votes:
    """Counts the answers to one chunk.

    Args:
        targets: the replicas of the chunk.
        level: how many of them must store an item.
        size: the number of items.
    """

    def __init__(self, targets: WriteSet, level: Level, size: int) -> None:
        #: The replicas that stored the chunk, except the items that they refused.
        self.acks: set[str] = set()
        #: The replicas that stored nothing of it, as far as is known.
        self.failed: dict[str, DStashError] = {}
        self.refusals = Refusals()
        #: The number of items that are not settled.
        self.left = size
        self._targets = targets
        self._level = level
        self._size = size
        self._settled: set[int] = set()
        #: By place, the replicas that stored an item and do not know whether its key existed.
        self._unsure: dict[int, set[str]] = {}

    def is_met(self, acks: Collection[str]) -> bool:
        """Whether these acks meet the level."""
        return self._targets.is_met(acks, self._level)

    def add_unsure(self, peer: str, places: Iterable[int]) -> None:
        """Record that a replica does not know whether the keys of some items existed."""
        for place in places:
            self._unsure.setdefault(place, set()).add(peer)

    def unsure(self, places: Sequence[int], acks: Collection[str]) -> list[int]:
        """Return the places for which too few of these acks know whether the key existed."""
        return [
            place
            for place in (places if self._unsure else ())
            if place in self._unsure and not self.is_met(set(acks) - self._unsure[place])
        ]

    def waiting(self) -> list[str]:
        """Return the replicas that have not answered."""
        known = self.acks | self.failed.keys()
        return [peer for peer in self._targets.peers if peer not in known]

    def groups(self) -> list[Group]:
        """Return the places of the items that are not settled, by the replicas that refused."""
        return self.refusals.groups(self._size, self._settled)

    def may_store_later(self, place: int) -> set[str]:
        """Return the replicas that refused an item, and may store it on a retry."""
        failed = {peer for peer, error in self.failed.items() if error.retryable}
        return failed | self.refusals.retryable(place)

    def has_retryable(self) -> bool:
        """Whether a replica may store an item on a retry."""
        return any(self.may_store_later(places[0]) for _, places in self.groups())

    def settle(self, places: Sequence[int]) -> None:
        """Take note that items are decided."""
        self.left -= len(places)
        if self.left:
            self._settled.update(places)

    def unsettled(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that are not settled, of all items of the chunk."""
        if not self._settled:
            return items
        return [item for place, item in enumerate(items) if place not in self._settled]
