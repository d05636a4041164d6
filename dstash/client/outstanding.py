"""Writes that returned before every replica had answered.

A call returns when enough replicas have acked. Another replica may refuse the write afterwards,
lose it with its connection, or never answer. It then missed the write, and a replica that has it is
told so (hinted handoff), although the call is over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from dstash.client.routing import Peers
from dstash.limits import MAX_KEY_BYTES
from dstash.wire import codec
from dstash.wire.messages import Stored
from dstash.wire.shapes import Frame, Message

#: How long (milliseconds) a replica may take for its answer.
_PATIENCE_MS: Final = 3000
#: Requests, and bytes of their keys, that are remembered at most.
_MAX_REQUESTS: Final = 1024
_MAX_BYTES: Final = 4 * 1024 * 1024


class Missed(NamedTuple):
    """Keys that a replica missed, and the replicas that have them."""

    peer: str
    keyspace: str
    keys: Frame
    holders: Peers


class _Waiting(NamedTuple):
    missed: Missed
    since: int


class OutstandingWrites:
    """Requests to replicas that had not answered when their call was done, by correlation id."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self, requests: Iterable[tuple[int, str]], index: str, keys: Frame, holders: Peers, now: int
    ) -> list[Missed]:
        """Remember requests (correlation id, peer); returns those that must make room.

        Args:
            requests: what is still to be answered.
            index: of the keys.
            keys: that were written.
            holders: the replicas that have acked.
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
        """Take a late answer; returns what the replica refused."""
        found = self._take([correlation])
        if not found or not isinstance(message, Stored):
            return found
        [missed] = found
        refused = {place for place, code, _ in message.rejected if code}
        if not refused:
            return []
        keys = codec.unpack_blobs(missed.keys)
        # A key that no peer accepts was refused by all: a hint for it would be refused, too.
        some = [
            key
            for place, key in enumerate(keys)
            if place in refused and 1 <= len(key) <= MAX_KEY_BYTES
        ]
        return [missed._replace(keys=Frame(codec.pack_blobs(some)))] if some else []

    def lost(self, peer: str) -> list[Missed]:
        """Take note that the connection to a replica broke; returns what it may have missed."""
        waiting = list(self._waiting.items())
        return self._take([number for number, one in waiting if one.missed.peer == peer])

    def overdue(self, now: int) -> list[Missed]:
        """Return what replicas have not answered for too long."""
        due = []
        for number, waiting in list(self._waiting.items()):  # in the order of time
            if now - waiting.since <= _PATIENCE_MS:
                break
            due.append(number)
        return self._take(due)

    def _take(self, numbers: Collection[int]) -> list[Missed]:
        taken = [self._waiting.pop(number, None) for number in numbers]
        missed = [waiting.missed for waiting in taken if waiting is not None]
        self._bytes -= sum(len(one.keys) for one in missed)
        return missed
