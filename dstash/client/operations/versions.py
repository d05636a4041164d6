"""Versions of a write: which version its next attempt has when clocks disagree.

A retry keeps its version, because it is the same write. It gets another one when the replicas do
not accept this one: their floor is above it, or their clocks say that it is from the future.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from dstash.client.routing import WriteSet
from dstash.client.session import Session
from dstash.errors import BelowFloor, ClockSkew, DeadlinePassed, DStashError
from dstash.limits import MOST_REPLACED
from dstash.types import Level
from dstash.version import VERSION_BYTES, Stamp, Version, newest_stamp


class Earlier(NamedTuple):
    """The versions of earlier attempts at a write.

    ``refused`` are the versions that some replica rejected as future, packed, and all earlier
    versions of a delete: another replica may hold them. ``passed`` is the highest future stamp that
    the write was stamped past, and ``is_repeated`` whether that version was sent twice.
    """

    refused: bytes = b""
    passed: Stamp = 0
    is_repeated: bool = False

    def with_refused(self, version: Version) -> Earlier:
        """Return a copy with one more version; the oldest are dropped if there are too many."""
        kept = self.refused[-(MOST_REPLACED - 1) * VERSION_BYTES :]
        return self._replace(refused=kept + version)


FIRST_ATTEMPT: Final = Earlier()


class WriteVersions:
    """Chooses the version of the next attempt at a chunk.

    Args:
        session: has the clock, and what is known of the clocks of peers.
        targets: the replicas of the chunk.
        level: how many of them must store it.
        version: of this attempt.
        earlier: the versions of earlier attempts.
        keeps_all: whether to remember each version that is replaced, as a delete does. A replica
            that stored it, and whose answer was lost, has recorded whether the key existed.
    """

    def __init__(
        self,
        session: Session,
        targets: WriteSet,
        level: Level,
        version: Version,
        earlier: Earlier,
        *,
        keeps_all: bool,
    ) -> None:
        self.earlier = earlier
        self._session = session
        self._targets = targets
        self._level = level
        self._version = version
        self._keeps_all = keeps_all
        #: The highest future stamp that a replica holds, or its future floor, by replica.
        self._ahead: dict[str, Stamp] = {}

    def note_ahead(self, peer: str, stamp: Stamp) -> None:
        """Record that a replica holds a future stamp, or has a floor there."""
        self._ahead[peer] = max(stamp, self._ahead.get(peer, 0))

    def rises_above(self, peer: str, error: BelowFloor) -> bool:
        """Move the clock past a floor; return False if the floor is a future stamp."""
        floor = error.details.get("floor")
        stamp = floor if isinstance(floor, int) else 0
        self._session.observe(stamp)
        is_ahead = self._session.is_from_the_future(stamp)
        if is_ahead:
            self.note_ahead(peer, stamp)
        return not is_ahead

    def keep(self) -> None:
        """Remember this version if the write needs that, because its next attempt gets another."""
        if self._keeps_all:
            self.earlier = self.earlier.with_refused(self._version)

    def next(self, errors: Collection[DStashError], now: int, *, is_acked: bool) -> Version | None:
        """Return the version of the next attempt; it differs if clocks disagree.

        If so many replicas hold a stamp (or a floor) ahead of every known clock that this write
        cannot be acked below it, that stamp may be correct, and the write is stamped past it. If
        the remaining replicas reject this twice (they compare clocks after the first time), the
        stamp is wrong. Then the write is stamped by the clock again (None), and replaces the
        version that it got from a wrong clock.

        Args:
            errors: of the replicas that did not store this attempt.
            now: milliseconds, by the clock of this machine.
            is_acked: whether a replica has stored an item of this attempt.
        """
        is_past = newest_stamp(self._version) > self.earlier.passed > 0
        ahead = self._least_ahead()
        if ahead > (self.earlier.passed if is_past else 0):
            self.earlier = self.earlier._replace(passed=ahead, is_repeated=False)
            return self._session.version_past(ahead)
        if not is_acked and any(isinstance(error, DeadlinePassed) for error in errors):
            self.keep()
            return None  # the clocks that this client had read were set since
        if not any(isinstance(error, ClockSkew) for error in errors):
            return self._version
        if is_past and not self.earlier.is_repeated:
            self.earlier = self.earlier._replace(is_repeated=True)
            return self._version
        if not is_past:  # else this version may have replaced a correct version
            self.earlier = self.earlier.with_refused(self._version)
        self._session.distrust_old_clocks(now)
        return None

    def _least_ahead(self) -> Stamp:
        """Return the lowest stamp above which enough replicas accept this write; 0 for any.

        Higher stamps are held by a minority only, so the write need not be stamped past them.
        """
        for stamp in sorted({0, *self._ahead.values()}):
            able = [peer for peer in self._targets.peers if self._ahead.get(peer, 0) <= stamp]
            if self._targets.is_met(able, self._level):
                return stamp
        return max(self._ahead.values(), default=0)
