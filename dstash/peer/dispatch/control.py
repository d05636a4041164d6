"""Control requests, which a peer answers in any state of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.view import View
from dstash.errors import WrongCluster
from dstash.limits import CLOCK_SKEW_LIMIT
from dstash.peer.admission.checks import Admission
from dstash.peer.admission.requests import LIMITS
from dstash.peer.background.maintenance import Maintenance
from dstash.peer.health import Health
from dstash.peer.sharing.serving import Serving
from dstash.peer.telemetry.history import History, pack_samples
from dstash.wire.messages import (
    Compact,
    Hello,
    Ping,
    Pong,
    Repair,
    StatusReply,
    StatusRequest,
    TopologyReply,
    TopologyRequest,
    Welcome,
)
from dstash.wire.protocol import HIGHEST_PROTOCOL, LOWEST_PROTOCOL, common_protocol, mismatch
from dstash.wire.replication import ClockReply, ClockRequest, HistoryReply, HistoryRequest
from dstash.wire.shapes import Message


class ControlRequests:
    """Answers the control requests of one peer.

    Args:
        peer: its id.
        cluster: the name of the cluster.
        max_clock_skew_ms: announced to clients with the other limits.
    """

    def __init__(
        self,
        peer: str,
        cluster: str,
        max_clock_skew_ms: int,
        *,
        admission: Admission,
        health: Health,
        maintenance: Maintenance,
        local_partitions: LocalPartitions,
        history: History,
        serving: Serving,
    ) -> None:
        self._peer = peer
        self._cluster = cluster
        self._limits = LIMITS | {CLOCK_SKEW_LIMIT: max_clock_skew_ms}
        self._admission = admission
        self._health = health
        self._maintenance = maintenance
        self._local_partitions = local_partitions
        self._history = history
        self._serving = serving
        self._view: View | None = None

    def install(self, view: View) -> None:
        """Take a new view."""
        self._view = view

    def answer(self, message: Message, now: int) -> Message | None:
        """Return the answer; None when the message is no control request.

        Raises:
            Busy: a compaction runs already.
            NotReady: the peer has no view yet, or may not vote.
            VersionMismatch: the sender shares no protocol version.
            WrongCluster: the sender looks for another cluster.
        """
        answer = _ANSWERS.get(type(message))
        return None if answer is None else answer(self, message, now)

    def _hello(self, hello: Hello, now: int) -> Message:
        if common_protocol(hello.lowest, hello.highest) is None:
            raise mismatch(f"{hello.lowest} to {hello.highest}")
        if hello.cluster not in ("", self._cluster):
            raise WrongCluster(f"this is cluster {self._cluster!r}, not {hello.cluster!r}")
        self._maintenance.freshness.hear_client(hello.seen)
        return Welcome(
            self._cluster,
            self._peer,
            LOWEST_PROTOCOL,
            HIGHEST_PROTOCOL,
            self._limits,
            self._admission.topology_bytes,
            sorted(self._current_view().alive),
            self._maintenance.freshness.describe_store(),
            self._serving.place,
        )

    def _topology(self, message: TopologyRequest, now: int) -> Message:
        view = self._current_view()
        return TopologyReply(self._admission.topology_bytes, sorted(view.alive), view.is_kept)

    def _ping(self, message: Ping, now: int) -> Message:
        return Pong()

    def _clock(self, message: ClockRequest, now: int) -> Message:
        if self._view is None or not self._maintenance.freshness_confirmed:
            raise self._health.refusal()
        return ClockReply(now, self._local_partitions.present)

    def _status(self, message: StatusRequest, now: int) -> Message:
        return StatusReply(self._health.status())

    def _repair(self, message: Repair, now: int) -> Message:
        if self._view is None or self._health.not_ready:
            raise self._health.refusal()
        self._maintenance.repair()
        return StatusReply(self._health.status())

    def _compact(self, message: Compact, now: int) -> Message:
        if self._health.stopping:
            raise self._health.refusal()
        self._health.order_compaction()
        return StatusReply(self._health.status())

    def _samples(self, message: HistoryRequest, now: int) -> Message:
        return HistoryReply(pack_samples(self._history.since(message.after)))

    def _current_view(self) -> View:
        if self._view is None:
            raise self._health.refusal()
        return self._view


_ANSWERS: Final[dict[type, Callable[[ControlRequests, Any, int], Message]]] = {
    Hello: ControlRequests._hello,
    Ping: ControlRequests._ping,
    TopologyRequest: ControlRequests._topology,
    StatusRequest: ControlRequests._status,
    Repair: ControlRequests._repair,
    Compact: ControlRequests._compact,
    HistoryRequest: ControlRequests._samples,
    ClockRequest: ControlRequests._clock,
}
