"""The inbox of a peer: messages that wait for the core, and their order under overload.

If messages wait longer than clients do, all work is wasted: each answer arrives after its client
has given up. Therefore the peer takes all messages off the socket, to know their age. An
overloaded peer serves the newest first, because their clients still wait, and rejects the oldest
(adaptive LIFO and controlled delay: Maurer, "Fail at Scale", ACM Queue 2015; Nichols and
Jacobson, "Controlling Queue Delay", ACM Queue 2012).
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")

#: A queue whose oldest message has waited longer than this (seconds) is overdue.
_OVERDUE_S: Final = 0.1
#: A queue that has been overdue for this long (seconds) is overloaded, not only interrupted.
_OVERLOADED_S: Final = 0.3
#: Then a message that has waited longer than this (seconds) is rejected: its client is about to
#: ask another replica.
_STALE_S: Final = 0.25
#: The most messages that wait here; further messages wait in the connections.
_MAX_MESSAGES: Final = 50_000


class _Waiting(NamedTuple, Generic[T]):
    message: T
    size: int
    came: float


class _Queue(Generic[T]):
    """The messages of one sender, oldest first, and the time since which it is overdue."""

    def __init__(self) -> None:
        self.waiting: deque[_Waiting[T]] = deque()
        self.overdue_since: float | None = None


class Inbox(Generic[T]):
    """Messages that wait; times are seconds of any steady clock.

    Senders are served in rotation, so that a sender that floods the peer delays only itself.

    Args:
        max_bytes: of messages that may wait; a single message may be larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._count = 0
        self._queues: dict[bytes, _Queue[T]] = {}
        self._rotation: deque[bytes] = deque()
        self._overdue_since: float | None = None
        self._surplus: list[T] = []
        #: When the message that was taken last arrived.
        self.came = 0.0

    def __len__(self) -> int:
        return self._count

    @property
    def has_room(self) -> bool:
        """Whether another message may be put in."""
        return self._bytes < self._max_bytes and self._count < _MAX_MESSAGES

    def put(self, sender: bytes, message: T, size: int, now: float) -> None:
        """Add a message."""
        queue = self._queues.get(sender)
        if queue is None:
            queue = self._queues[sender] = _Queue()
            self._rotation.append(sender)
        queue.waiting.append(_Waiting(message, size, now))
        self._bytes += size
        self._count += 1

    def take(self, now: float) -> T | None:
        """Return the message to serve next; None when there is none."""
        while self._rotation:
            sender = self._rotation.popleft()
            queue = self._queues[sender]
            chosen = self._choose(queue, now)
            if queue.waiting:
                self._rotation.append(sender)
            else:
                del self._queues[sender]
            if chosen is not None:
                self.came = chosen.came
                return chosen.message
        self._overdue_since = None
        return None

    def surplus(self) -> list[T]:
        """Return the messages that were given up since the last call, oldest first."""
        surplus, self._surplus = self._surplus, []
        return surplus

    def _choose(self, queue: _Queue[T], now: float) -> _Waiting[T] | None:
        is_overdue = now - queue.waiting[0].came > _OVERDUE_S
        if len(queue.waiting) == 1:  # if it is late, other senders are the cause
            self._overdue_since = (self._overdue_since or now) if is_overdue else None
            is_hopeless = self._is_overloaded(self._overdue_since, now)
            if is_hopeless and now - queue.waiting[0].came > _STALE_S:
                self._surplus.append(self._pop(queue).message)
                return None
            return self._pop(queue)
        queue.overdue_since = (queue.overdue_since or now) if is_overdue else None
        chosen = self._pop(queue, newest=is_overdue)
        if self._is_overloaded(queue.overdue_since, now):
            while queue.waiting and now - queue.waiting[0].came > _STALE_S:
                self._surplus.append(self._pop(queue).message)
        return chosen

    def _is_overloaded(self, since: float | None, now: float) -> bool:
        return since is not None and now - since >= _OVERLOADED_S

    def _pop(self, queue: _Queue[T], *, newest: bool = False) -> _Waiting[T]:
        waiting = queue.waiting.pop() if newest else queue.waiting.popleft()
        self._bytes -= waiting.size
        self._count -= 1
        return waiting


class RetryDelay:
    """The time (milliseconds) after which a client that was rejected as busy may retry.

    It grows with each rejected request and shrinks with each served request, so that in the long
    run about as many requests are rejected as are served, however many clients there are.
    """

    _MIN_MS: Final = 50.0
    _MAX_MS: Final = 2000.0
    _FACTOR: Final = 1.02

    def __init__(self) -> None:
        self._delay_ms = self._MIN_MS

    def served(self) -> None:
        """Take note that a request was accepted."""
        self._delay_ms = max(self._MIN_MS, self._delay_ms / self._FACTOR)

    def rejected(self) -> int:
        """Take note of a rejected request; returns after how many milliseconds to retry."""
        self._delay_ms = min(self._MAX_MS, self._delay_ms * self._FACTOR)
        return round(self._delay_ms)
