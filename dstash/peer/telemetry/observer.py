"""What a peer knows of the others while somebody watches its dashboard.

Each other member is asked how it does once a second, with one question under way at a time, and
only until some seconds after the last look: whoever watches costs the cluster two small messages
a second and peer, and nobody's request waits for them.
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

_EVERY_MS: Final = 1000
#: So long after the last look (milliseconds) nobody is watching any more.
_WATCHED_MS: Final = 4000


@dataclass(slots=True)
class Sight:
    """What was last heard of another peer.

    ``heard`` is when it last answered (milliseconds since 1970, 0 for never). ``alert`` says
    why it did not answer last; ``is_gone`` when that was for want of a connection.
    """

    status: dict[str, Any] = field(default_factory=dict)
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT))
    heard: int = 0
    alert: str = ""
    is_gone: bool = False


class Observer:
    """Asks the other members, for one peer."""

    def __init__(self, me: str, scheduler: Scheduler) -> None:
        self._me = me
        self._scheduler = scheduler
        self._until = self._next = self._now = 0
        self.sights: dict[str, Sight] = {}

    def watch(self, now: int) -> None:
        """Take note that somebody is looking."""
        if now >= self._until:
            self.sights.clear()  # what was seen the last time is no longer so
            self._next = now
        self._until = now + _WATCHED_MS

    def tick(self, view: View | None, now: int) -> None:
        """Ask those that are due, if anybody is looking."""
        self._now = now
        if now >= self._until or now < self._next or view is None:
            return
        self._next = now + _EVERY_MS
        for peer in self.sights.keys() - view.members.keys():
            del self.sights[peer]
        for peer in view.members:
            if peer != self._me:
                self._look(peer, now)

    def lost(self, peer: str) -> None:
        """Take note that the connection to a peer broke: no need to wait for the next question."""
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
