"""Requests of writes that are still unanswered when the call returns.

A call returns once enough replicas have acked. Another replica may reject the write afterwards,
lose its connection, or never answer. It then missed the write, and a replica that has the write
gets a hint (hinted handoff), although the call is over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from dstash.client.routing import Peers
from dstash.limits import MAX_KEY_BYTES
from dstash.wire import codec
from dstash.wire.messages import Stored
from dstash.wire.shapes import Frame, Message

#: A replica that has not answered after this time has missed the write.
_ANSWER_TIMEOUT_MS: Final = 3000
#: Bounds on the requests that are remembered, and on the bytes of their keys.
_MAX_REQUESTS: Final = 1024
_MAX_BYTES: Final = 4 * 1024 * 1024


class Missed(NamedTuple):
    """Keys of a write that a replica missed, and the replicas that have it."""

    peer: str
    index_name: str
    keys: Frame
    holders: Peers


class _Waiting(NamedTuple):
    missed: Missed
    since: int


class OutstandingWrites:
    """Unanswered requests of calls that have returned, by correlation id."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self, requests: Iterable[tuple[int, str]], index: str, keys: Frame, holders: Peers, now: int
    ) -> list[Missed]:
        """Remember requests; return the oldest as missed if there are too many.

        Args:
            requests: correlation id and peer of each unanswered request.
            index: of the keys.
            keys: that were written.
            holders: the replicas that acked.
            now: milliseconds, by the clock of this machine.
        """
        for correlation, peer in requests:
            self._waiting[correlation] = _Waiting(Missed(peer, index, keys, holders), now)
            self._bytes += len(keys)
        missed = []
        while len(self._waiting) > _MAX_REQUESTS or self._bytes > _MAX_BYTES:
            missed += self._take(list(self._waiting)[:1])
        return missed

    def answered(self, correlation: int, message: Message) -> list[Missed]:
        """Process a late answer; return the keys that the replica rejected."""
        found = self._take([correlation])
        if not found or not isinstance(message, Stored):
            return found
        [missed] = found
        rejected = {place for place, code, _ in message.rejected if code}
        if not rejected:
            return []
        keys = codec.unpack_blobs(missed.keys)
        # Every peer rejects an invalid key, and would reject a hint about it, too.
        valid = [
            key
            for place, key in enumerate(keys)
            if place in rejected and 1 <= len(key) <= MAX_KEY_BYTES
        ]
        return [missed._replace(keys=Frame(codec.pack_blobs(valid)))] if valid else []

    def acked(self, correlation: int) -> bool:
        """Process a late ack of all keys; return whether the request was remembered."""
        return bool(self._waiting) and bool(self._take((correlation,)))

    def lost(self, peer: str) -> list[Missed]:
        """Record that the connection to a replica broke; return the writes it may have missed."""
        waiting = list(self._waiting.items())
        return self._take([number for number, request in waiting if request.missed.peer == peer])

    def is_overdue(self, now: int) -> bool:
        """Whether replicas have left a write unanswered for too long."""
        oldest = list(self._waiting.values())[:1]  # other threads may change it meanwhile
        return bool(oldest) and now - oldest[0].since > _ANSWER_TIMEOUT_MS

    def overdue(self, now: int) -> list[Missed]:
        """Return the writes that replicas have not answered in time."""
        due = []
        for number, waiting in list(self._waiting.items()):  # oldest first
            if now - waiting.since <= _ANSWER_TIMEOUT_MS:
                break
            due.append(number)
        return self._take(due)

    def _take(self, numbers: Collection[int]) -> list[Missed]:
        taken = [self._waiting.pop(number, None) for number in numbers]
        missed = [waiting.missed for waiting in taken if waiting is not None]
        self._bytes -= sum(len(write.keys) for write in missed)
        return missed
