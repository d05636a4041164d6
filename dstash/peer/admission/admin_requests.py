"""Requests that change the topology, until the membership agent has answered them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.errors import NotReady
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Reply, Request, Ticket
from dstash.version import MAX_STAMP, Stamp, stamp_at
from dstash.wire.messages import AdminRequest, DropRequest, IndexSettingsRequest
from dstash.wire.shapes import Message

#: The action that lowers floors to the present time of the cluster.
_LOWER_FLOORS: Final = "lower-floors"


#: Requests that change the topology.
OperatorRequest = AdminRequest | DropRequest | IndexSettingsRequest


class PendingAdminRequest(NamedTuple):
    """A request that changes the topology, and the function that turns its answer into replies."""

    request: OperatorRequest
    answer: Callable[[Message, int], list[Reply]]


class AdminRequests:
    """Keeps the admin requests of one peer until its membership agent takes them.

    Args:
        peer: its id.
        clock: the cluster clock, as this peer knows it.
        backlog: bounds the requests that are answered later.
        reply: makes a reply from its ticket, the message and the time.
    """

    def __init__(
        self,
        peer: str,
        clock: ClusterClock,
        backlog: Backlog,
        reply: Callable[[Ticket, Message, int], Reply],
    ) -> None:
        self._peer = peer
        self._clock = clock
        self._backlog = backlog
        self._reply = reply
        self._waiting: list[PendingAdminRequest] = []

    def accept(self, request: Request, message: OperatorRequest) -> None:
        """Keep a request until ``take``; it is answered later.

        Raises:
            Busy: too many requests wait already.
            NotReady: it needs the time of the cluster, which is not known yet.
        """
        if isinstance(message, DropRequest):
            message = replace(message, stamp=self._highest_acked())
        elif isinstance(message, IndexSettingsRequest):
            self._check_clock()
            # Later touches are above it, even those of a client whose clock is a little behind.
            message = replace(message, stamp=self._clock.earliest())
        elif message.action == _LOWER_FLOORS:
            self._check_clock()
            message = replace(message, stamp=stamp_at(self._clock.time()))
        release = self._backlog.hold(request.size)

        def answer(answer: Message, now: int) -> list[Reply]:
            release()
            return [self._reply(request.ticket, answer, now)]

        self._waiting.append(PendingAdminRequest(message, answer))

    def _check_clock(self) -> None:
        """Refuse a request that needs the time of the cluster while it is not known.

        Raises:
            NotReady: it is not known yet.
        """
        if not self._clock.knows_majority:
            raise NotReady(f"{self._peer}: the clocks of a majority are not known yet")

    def _highest_acked(self) -> Stamp:
        """Return the stamp above which no write quorum holds a record.

        Raises:
            NotReady: it is not known, because other members have not answered yet.
        """
        stamp = self._clock.highest_acked()
        if not self._clock.knows_majority or stamp == MAX_STAMP:
            raise NotReady(f"{self._peer}: the clocks of the members are not known yet")
        return stamp

    def take(self) -> list[PendingAdminRequest]:
        """Return the admin requests that arrived since the last call."""
        waiting, self._waiting = self._waiting, []
        return waiting
