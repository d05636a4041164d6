"""What a peer has in hand: writes that wait for the disk, and questions that take time.

Both are bounded, in number and in bytes, so that memory is; and by the time that a new write would
wait, so that nobody is served whose client has given up. Who is refused is told when to come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from dstash.errors import Busy
from dstash.peer.admission.inbox import Patience
from dstash.peer.admission.writes import COMMIT_BYTES, WaitingWrite

#: A write that would wait longer (milliseconds) is told to come back; unless only few wait.
_LONG_MS: Final = 300
_FEW: Final = 64


class Backlog:
    """Counts what is in hand, and keeps the writes in the order in which they came.

    Args:
        most_bytes: of writes that may wait, and of questions; a single one may be larger.
        most_requests: writes and questions together.
    """

    def __init__(self, most_bytes: int, most_requests: int) -> None:
        self.most_bytes = most_bytes
        self.waiting_bytes = 0
        self._most_requests = most_requests
        self._waiting: deque[WaitingWrite] = deque()
        self._in_commit = 0
        self._accepted = 0
        self._settled = 0
        self._settling: deque[tuple[int, Callable[[], None]]] = deque()
        self._asked = self._asked_bytes = 0
        self._patience = Patience()
        self._write_ms = 0.0  # what a write takes, as a running mean
        self._commit_began = 0

    @property
    def has_work(self) -> bool:
        """Whether writes wait for a commit, or are in one."""
        return bool(self._waiting or self._in_commit)

    # -- refusing

    def busy(self, text: str) -> Busy:
        """Return the error for one that is sent away: it says when to come back."""
        return Busy(text, retry_after_ms=self._patience.sent_away())

    def served(self) -> None:
        """Take note that a request was served: others may come back sooner."""
        self._patience.served()

    def _check_room(self) -> None:
        in_hand = self._accepted - self._settled + self._asked
        delay = round(in_hand * self._write_ms)
        if in_hand >= self._most_requests or (in_hand > _FEW and delay > _LONG_MS):
            raise self.busy("too many requests are in hand")

    # -- writes

    def admit(self, write: WaitingWrite) -> None:
        """Take a write in.

        Raises:
            Busy: there is too much in hand.
        """
        if self.waiting_bytes + write.weight > max(self.most_bytes, write.weight):
            raise self.busy("too many writes wait for the disk")
        self._check_room()
        self.served()
        self.add(write)

    def add(self, write: WaitingWrite) -> None:
        """Take a write in, whatever is in hand: one of this peer's own."""
        self.waiting_bytes += write.weight
        self._accepted += 1
        self._waiting.append(write)

    def take(self, now: int) -> list[WaitingWrite]:
        """Return the writes of the next commit, none if none waits."""
        group: list[WaitingWrite] = []
        weight = 0
        while self._waiting and weight < COMMIT_BYTES:
            group.append(self._waiting.popleft())
            weight += group[-1].weight
        self._in_commit += weight
        self._commit_began = now
        return group

    def committed(self, group: Sequence[WaitingWrite], now: int) -> None:
        """Take note that a commit has ended, and tell those who waited for it."""
        weight = sum(one.weight for one in group)
        self._in_commit -= weight
        self.waiting_bytes -= weight
        mean = max(0, now - self._commit_began) / max(1, len(group))
        self._write_ms += (mean - self._write_ms) / 4
        self._settled += len(group)
        while self._settling and self._settling[0][0] <= self._settled:
            self._settling.popleft()[1]()

    def settle(self, done: Callable[[], None]) -> None:
        """Call ``done`` when every write accepted so far is on disk."""
        if self._settled == self._accepted:
            done()
        else:
            self._settling.append((self._accepted, done))

    # -- questions

    def hold(self, weight: int) -> Callable[[], None]:
        """Count a request that is answered later; returns what is to be called then.

        Raises:
            Busy: there is too much in hand.
        """
        self._check_room()
        if self._asked and self._asked_bytes + weight > self.most_bytes:
            raise self.busy("too many questions are in hand")
        self._asked += 1
        self._asked_bytes += weight

        def let_go() -> None:
            self._asked -= 1
            self._asked_bytes -= weight

        return let_go
