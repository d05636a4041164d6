"""Why a write was not acked, item by item, and the error that belongs to each outcome.

A replica may store most items of a request and refuse some. A refusal that concerns that replica
alone (a full disk, a damaged record) must not count as its ack for the item. One that every replica
must repeat (a key that is too long) settles the item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dstash.errors import (
    BelowFloor,
    DStashError,
    ProtocolError,
    TimedOut,
    Unavailable,
    UsageError,
)
from dstash.types import Outcome

#: Places of a chunk whose items the same replicas refused, for the same kinds of reasons.
Group = tuple[frozenset[str], Sequence[int]]


class Refusals:
    """Which replicas refused which items of one chunk. Nearly always empty."""

    def __init__(self) -> None:
        self._by_place: dict[int, dict[str, DStashError]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_place)

    def add(self, place: int, peer: str, error: DStashError) -> None:
        """Note that a replica did not store the item at ``place``."""
        self._by_place.setdefault(place, {})[peer] = error

    def groups(self, size: int, settled: Collection[int]) -> list[Group]:
        """Return the places of a chunk of ``size`` items, less the settled ones, by who refused."""
        if not self._by_place and not settled:
            return [(frozenset(), range(size))]
        groups: dict[Any, list[int]] = defaultdict(list)
        for place in range(size):
            if place not in settled:
                kinds = frozenset((peer, type(why)) for peer, why in self.of(place).items())
                groups[kinds].append(place)
        return [(frozenset(peer for peer, _ in kinds), them) for kinds, them in groups.items()]

    def of(self, place: int) -> Mapping[str, DStashError]:
        """Return who refused the item at ``place``, and why."""
        return self._by_place.get(place, {})

    def retryable(self, place: int) -> set[str]:
        """Return the replicas that refused an item and may store it later."""
        return {peer for peer, error in self.of(place).items() if not is_final(error)}

    def shared(self, place: int) -> bool:
        """Whether an item was refused for a reason that holds on every replica."""
        return any(map(is_for_all, self.of(place).values()))


def is_final(error: DStashError) -> bool:
    """Whether a replica repeats its refusal when it is asked again: what is past stays past."""
    return not error.retryable or isinstance(error, BelowFloor)


def is_for_all(error: DStashError) -> bool:
    """Whether a refusal concerns the item itself, and so is the same on every replica."""
    return isinstance(error, UsageError | ProtocolError)


def error_for(outcome: Outcome, why: DStashError, text: str = "") -> DStashError:
    """Return what is raised for an outcome: programs may go by the class alone.

    UNKNOWN is always a ``TimedOut``, whose fact ``because`` is the code of the reason. FAILED is
    ``Unavailable`` or the refusal itself, never a ``TimedOut``.

    Args:
        outcome: of a write.
        why: the reason, as far as it is known.
        text: the reason for people, if it is longer than that of the error.
    """
    if outcome is Outcome.UNKNOWN:
        if isinstance(why, TimedOut) and "because" in why.details:
            return why
        return TimedOut(f"the write may or may not be stored: {text or why}", because=why.code)
    if isinstance(why, TimedOut):
        return Unavailable(f"the write is not stored: {text or why}")
    return why


def is_because(error: DStashError, kind: type[DStashError]) -> bool:
    """Whether an error is of a kind, or tells of an unknown outcome for such a reason."""
    return isinstance(error, kind) or error.details.get("because") == kind.code


@contextmanager
def nothing_written() -> Iterator[None]:
    """Raise what a read raises as the error of a write that did not begin.

    The read is the first step of a write, and ``TimedOut`` would say that the write may be stored.
    """
    try:
        yield
    except TimedOut as error:
        raise Unavailable(f"nothing was written: {error}") from None
