"""The observer: the status of the other peers while the dashboard of this peer is open.

It asks each other member for its status once a second, one request at a time, and stops a few
seconds after the last request of a browser. An open dashboard costs two small messages per second
and peer, and no request waits for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Final

from dstash.cluster.replication.tasks import Effect, Scheduler
from dstash.cluster.replication.transfer import ask
from dstash.cluster.topology.view import View
from dstash.errors import DStashError, Unavailable
from dstash.peer.telemetry.history import KEPT, Sample, unpack_samples
from dstash.wire.messages import StatusReply, StatusRequest
from dstash.wire.replication import HistoryReply, HistoryRequest

_INTERVAL_MS: Final = 1000
#: How long after the last request of a browser the dashboard counts as open.
_OPEN_MS: Final = 4000


@dataclass(slots=True)
class Sight:
    """The last answers of another peer.

    ``heard`` is when it last answered (milliseconds since 1970, 0 for never). ``alert`` is the
    reason when it did not answer the last question; ``is_gone``: the reason was a lost connection.
    """

    status: dict[str, Any] = field(default_factory=dict)
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT))
    heard: int = 0
    alert: str = ""
    is_gone: bool = False


class Observer:
    """Asks the other members on behalf of one peer."""

    def __init__(self, me: str, scheduler: Scheduler) -> None:
        self._me = me
        self._scheduler = scheduler
        self._until = self._next = self._now = 0
        self.sights: dict[str, Sight] = {}

    def watch(self, now: int) -> None:
        """Take note that a browser requests the dashboard."""
        if now >= self._until:
            self.sights.clear()  # the state of the last visit is out of date
            self._next = now
        self._until = now + _OPEN_MS

    def tick(self, view: View | None, now: int) -> None:
        """Ask the members that are due while the dashboard is open."""
        self._now = now
        if now >= self._until or now < self._next or view is None:
            return
        self._next = now + _INTERVAL_MS
        for peer in self.sights.keys() - view.members.keys():
            del self.sights[peer]
        for peer in view.members:
            if peer != self._me:
                self._look(peer, now)

    def lost(self, peer: str) -> None:
        """Show a broken connection at once, without waiting for the next question."""
        sight = self.sights.get(peer)
        if sight is not None:
            sight.alert, sight.is_gone = f"{peer} is not connected", True

    def _look(self, peer: str, now: int) -> None:
        name = f"look:{peer}"
        sight = self.sights.setdefault(peer, Sight())

        def ended(result: Any, failure: DStashError | None) -> None:
            sight.alert = "" if failure is None else str(failure)
            sight.is_gone = isinstance(failure, Unavailable)

        if not self._scheduler.running(name):
            self._scheduler.spawn(name, self._ask(peer, sight), ended)

    def _ask(self, peer: str, sight: Sight) -> Generator[Effect, Any, None]:
        sight.status = (yield from ask(peer, StatusRequest(), StatusReply)).status
        sight.heard = self._now
        after = sight.samples[-1].at if sight.samples else 0
        answer = yield from ask(peer, HistoryRequest(after), HistoryReply)
        sight.samples.extend(unpack_samples(answer.samples))
