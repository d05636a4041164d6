"""The backlog of a peer: writes that wait for the disk, and questions that tasks answer.

Both are bounded in number and in bytes, to bound memory. They are also bounded by the time that a
new write would wait, because a client that has given up needs no answer. A request that is
rejected as busy carries the time after which the client may retry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from dstash.errors import Busy
from dstash.peer.admission.inbox import RetryDelay
from dstash.peer.admission.writes import COMMIT_BYTES, WaitingWrite

#: A write that would wait longer than this is rejected as busy, unless only a few wait.
_MAX_WAIT_MS: Final = 300
_FEW_REQUESTS: Final = 64


class Backlog:
    """Counts accepted requests, and keeps the writes in the order of their arrival.

    Args:
        max_bytes: of writes that may wait, and of questions; a single request may be larger.
        max_requests: writes and questions together.
    """

    def __init__(self, max_bytes: int, max_requests: int) -> None:
        self.max_bytes = max_bytes
        self.waiting_bytes = 0
        self._max_requests = max_requests
        self._waiting: deque[WaitingWrite] = deque()
        self._in_commit = 0
        self._accepted = 0
        self._settled = 0
        self._settling: deque[tuple[int, Callable[[], None]]] = deque()
        self._questions = self._question_bytes = 0
        self._retry_delay = RetryDelay()
        self._write_ms = 0.0  # the running mean for one write
        self._commit_began = 0

    @property
    def has_work(self) -> bool:
        """Whether writes wait for a commit or are being committed."""
        return bool(self._waiting or self._in_commit)

    @property
    def has_waiting(self) -> bool:
        """Whether writes wait for a commit."""
        return bool(self._waiting)

    # -- refusing

    def busy(self, text: str) -> Busy:
        """Return the error for a request that is rejected; it carries the time to retry after."""
        return Busy(text, retry_after_ms=self._retry_delay.rejected())

    def served(self) -> None:
        """Take note that a request was served: rejected clients may retry sooner."""
        self._retry_delay.served()

    @property
    def _has_too_many(self) -> bool:
        accepted = self._accepted - self._settled + self._questions
        delay = round(accepted * self._write_ms)
        is_long = accepted > _FEW_REQUESTS and delay > _MAX_WAIT_MS
        return is_long or accepted >= self._max_requests

    def _check_room(self) -> None:
        if self._has_too_many:
            raise self.busy("too many requests are waiting")

    def has_room(self, weight: int) -> bool:
        """Whether ``admit`` accepts a write of that many bytes now."""
        is_too_large = self.waiting_bytes + weight > max(self.max_bytes, weight)
        return not (is_too_large or self._has_too_many)

    # -- writes

    def admit(self, write: WaitingWrite) -> None:
        """Accept a write.

        Raises:
            Busy: the backlog is full.
        """
        if self.waiting_bytes + write.weight > max(self.max_bytes, write.weight):
            raise self.busy("too many writes wait for the disk")
        self._check_room()
        self.served()
        self.add(write)

    def add(self, write: WaitingWrite) -> None:
        """Accept an internal write, however long the backlog is."""
        self.waiting_bytes += write.weight
        self._accepted += 1
        self._waiting.append(write)

    def take(self, now: int) -> list[WaitingWrite]:
        """Return the writes of the next commit; an empty list when none waits."""
        group: list[WaitingWrite] = []
        weight = 0
        while self._waiting and weight < COMMIT_BYTES:
            group.append(self._waiting.popleft())
            weight += group[-1].weight
        self._in_commit += weight
        self._commit_began = now
        return group

    def committed(self, group: Sequence[WaitingWrite], now: int) -> bool:
        """Take note that a commit has ended, and call the functions that waited for it.

        Returns:
            whether there were any.
        """
        weight = sum(write.weight for write in group)
        self._in_commit -= weight
        self.waiting_bytes -= weight
        mean = max(0, now - self._commit_began) / max(1, len(group))
        self._write_ms += (mean - self._write_ms) / 4
        self._settled += len(group)
        waited = bool(self._settling)
        while self._settling and self._settling[0][0] <= self._settled:
            self._settling.popleft()[1]()
        return waited

    def begin(self, weight: int, now: int) -> None:
        """Accept a write of that many bytes whose commit begins now."""
        self.waiting_bytes += weight
        self._accepted += 1
        self._in_commit += weight
        self._commit_began = now

    def put_back(self, write: WaitingWrite) -> None:
        """Let a write wait first of all whose commit has begun, and has stored nothing."""
        self._in_commit -= write.weight
        self._waiting.appendleft(write)

    def settle(self, done: Callable[[], None]) -> None:
        """Call ``done`` once every write accepted so far is on disk."""
        if self._settled == self._accepted:
            done()
        else:
            self._settling.append((self._accepted, done))

    # -- questions

    def hold(self, weight: int) -> Callable[[], None]:
        """Count a request that is answered later; returns the function to call when it is.

        Raises:
            Busy: the backlog is full.
        """
        self._check_room()
        if self._questions and self._question_bytes + weight > self.max_bytes:
            raise self.busy("too many peer requests are waiting")
        self._questions += 1
        self._question_bytes += weight

        def release() -> None:
            self._questions -= 1
            self._question_bytes -= weight

        return release
