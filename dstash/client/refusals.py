"""Items of a write that replicas refused, and the error for each outcome.

A replica may store most items of a request and refuse some. If the reason concerns this replica
only (a full disk, a corrupt record), it must not count as an ack for the item. If every replica
would refuse it (a key that is too long), the item is settled.
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
    """The refused items of one chunk, by replica. Nearly always empty."""

    def __init__(self) -> None:
        self._by_place: dict[int, dict[str, DStashError]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_place)

    def add(self, place: int, peer: str, error: DStashError) -> None:
        """Record that a replica did not store the item at ``place``."""
        self._by_place.setdefault(place, {})[peer] = error

    def groups(self, size: int, settled: Collection[int]) -> list[Group]:
        """Return the unsettled places of a chunk of ``size`` items, by refusing replicas."""
        if not self._by_place and not settled:
            return [(frozenset(), range(size))]
        groups: dict[Any, list[int]] = defaultdict(list)
        for place in range(size):
            if place not in settled:
                kinds = frozenset((peer, type(why)) for peer, why in self.of(place).items())
                groups[kinds].append(place)
        return [(frozenset(peer for peer, _ in kinds), places) for kinds, places in groups.items()]

    def of(self, place: int) -> Mapping[str, DStashError]:
        """Return the error of each replica that refused the item at ``place``."""
        return self._by_place.get(place, {})

    def retryable(self, place: int) -> set[str]:
        """Return the replicas that refused an item and may store it later."""
        return {peer for peer, error in self.of(place).items() if not is_final(error)}

    def shared(self, place: int) -> bool:
        """Whether every replica would refuse an item for the same reason."""
        return any(map(is_for_all, self.of(place).values()))


def is_final(error: DStashError) -> bool:
    """Whether a replica would refuse the same request again."""
    return not error.retryable or isinstance(error, BelowFloor)


def is_for_all(error: DStashError) -> bool:
    """Whether an error concerns the item itself, so that every replica returns it."""
    return isinstance(error, UsageError | ProtocolError)


def by_peer(errors: Mapping[str, DStashError]) -> str:
    """Return errors as one text that names the peers: ``a, b: the disk is full; c: no answer``."""
    peers: dict[str, list[str]] = {}
    for peer, error in sorted(errors.items()):
        peers.setdefault(str(error).removeprefix(f"{peer}: "), []).append(peer)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in peers.items())


def error_for(outcome: Outcome, why: DStashError, text: str = "") -> DStashError:
    """Return the error to raise for an outcome; its class alone distinguishes the outcomes.

    UNKNOWN is always a ``TimedOut``, whose detail ``because`` is the code of the reason. FAILED is
    ``Unavailable`` or the error of a replica, never a ``TimedOut``.

    Args:
        outcome: of a write.
        why: the reason, as far as it is known.
        text: a longer description of the reason; empty for that of ``why``.
    """
    if outcome is Outcome.UNKNOWN:
        if isinstance(why, TimedOut) and "because" in why.details:
            return why
        return TimedOut(f"the write may or may not be stored: {text or why}", because=why.code)
    if isinstance(why, TimedOut):
        return Unavailable(f"the write is not stored: {text or why}")
    return _with_text(why, text) if text else why


def _with_text(error: DStashError, text: str) -> DStashError:
    """Return an error of the same class, with another text."""
    longer = type(error)(text)
    longer.details = error.details
    return longer


def is_because(error: DStashError, kind: type[DStashError]) -> bool:
    """Whether an error is of a kind, or has an error of that kind as its reason."""
    return isinstance(error, kind) or error.details.get("because") == kind.code


@contextmanager
def nothing_written() -> Iterator[None]:
    """Turn the ``TimedOut`` of a read into ``Unavailable``.

    For a read that is the first step of a write: ``TimedOut`` would mean that the write may be
    stored.
    """
    try:
        yield
    except TimedOut as error:
        raise Unavailable(f"nothing was written: {error}") from None
