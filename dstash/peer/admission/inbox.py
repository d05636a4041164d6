"""Messages that wait for the core, and whom to serve when there are too many.

A queue that is longer than clients wait makes all work vain: each request is answered when its
client has given up. So all that waits is taken off the socket, where its age can be known. A peer
that falls behind serves the newest first, for their clients are still there, and sends the oldest
away (adaptive LIFO and controlled delay: Maurer, "Fail at Scale", ACM Queue 2015; Nichols and
Jacobson, "Controlling Queue Delay", ACM Queue 2012).
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")

#: A line whose oldest message has waited longer (seconds) is behind.
_OVERDUE: Final = 0.1
#: What has been behind for so long (seconds) is overloaded, not only interrupted.
_OVERLOADED: Final = 0.3
#: What has waited for so long (seconds) is sent away then: its client is about to look elsewhere.
_STALE: Final = 0.25
#: Messages that wait, at most: the rest waits in the connections.
_MOST: Final = 50_000


class _Waiting(NamedTuple, Generic[T]):
    message: T
    size: int
    came: float


class _Line(Generic[T]):
    """What one sender has sent, oldest first, and since when it has been behind."""

    def __init__(self) -> None:
        self.waiting: deque[_Waiting[T]] = deque()
        self.overdue_since: float | None = None


class Inbox(Generic[T]):
    """Holds messages; times are seconds of any steady clock.

    Senders take turns, so that one that floods the peer harms itself alone.

    Args:
        most_bytes: what may wait; a single message may be larger.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._count = 0
        self._lines: dict[bytes, _Line[T]] = {}
        self._turns: deque[bytes] = deque()
        self._overdue_since: float | None = None
        self._surplus: list[T] = []
        #: When the message that was taken last had come.
        self.came = 0.0

    def __len__(self) -> int:
        return self._count

    @property
    def has_room(self) -> bool:
        """Whether another message may be put in."""
        return self._bytes < self._most_bytes and self._count < _MOST

    def put(self, sender: bytes, message: T, size: int, now: float) -> None:
        """Take a message in."""
        line = self._lines.get(sender)
        if line is None:
            line = self._lines[sender] = _Line()
            self._turns.append(sender)
        line.waiting.append(_Waiting(message, size, now))
        self._bytes += size
        self._count += 1

    def take(self, now: float) -> T | None:
        """Return the message to be served next, None when there is none."""
        while self._turns:
            sender = self._turns.popleft()
            line = self._lines[sender]
            one = self._choose(line, now)
            if line.waiting:
                self._turns.append(sender)
            else:
                del self._lines[sender]
            if one is not None:
                self.came = one.came
                return one.message
        self._overdue_since = None
        return None

    def surplus(self) -> list[T]:
        """Return those that were passed over for good since the last call, oldest first."""
        surplus, self._surplus = self._surplus, []
        return surplus

    def _choose(self, line: _Line[T], now: float) -> _Waiting[T] | None:
        is_overdue = now - line.waiting[0].came > _OVERDUE
        if len(line.waiting) == 1:  # if it came late to its turn, then because of the others
            self._overdue_since = (self._overdue_since or now) if is_overdue else None
            is_hopeless = self._is_overloaded(self._overdue_since, now)
            if is_hopeless and now - line.waiting[0].came > _STALE:
                self._surplus.append(self._pop(line).message)
                return None
            return self._pop(line)
        line.overdue_since = (line.overdue_since or now) if is_overdue else None
        chosen = self._pop(line, newest=is_overdue)
        if self._is_overloaded(line.overdue_since, now):
            while line.waiting and now - line.waiting[0].came > _STALE:
                self._surplus.append(self._pop(line).message)
        return chosen

    def _is_overloaded(self, since: float | None, now: float) -> bool:
        return since is not None and now - since >= _OVERLOADED

    def _pop(self, line: _Line[T], *, newest: bool = False) -> _Waiting[T]:
        one = line.waiting.pop() if newest else line.waiting.popleft()
        self._bytes -= one.size
        self._count -= 1
        return one


class Patience:
    """How long those who are sent away are asked to stay away (milliseconds).

    It grows with each that is sent away and shrinks with each that is served, so that in the end
    about as many come to be sent away as come to be served, however many there are.
    """

    _LEAST: Final = 50.0
    _MOST: Final = 2000.0
    _STEP: Final = 1.02

    def __init__(self) -> None:
        self._now = self._LEAST

    def served(self) -> None:
        """Take note that a request was accepted."""
        self._now = max(self._LEAST, self._now / self._STEP)

    def sent_away(self) -> int:
        """Return when one that is refused should come back."""
        self._now = min(self._MOST, self._now * self._STEP)
        return round(self._now)
