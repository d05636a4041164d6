"""Questions, most of them of other peers, each answered by a task, because it may take long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dstash.cluster.replication import handlers
from dstash.cluster.replication.future.lowering import register_floors
from dstash.cluster.replication.handlers import Answering
from dstash.cluster.replication.index_sizes import index_sizes
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.tasks import Scheduler
from dstash.errors import DStashError
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Request, Ticket
from dstash.wire.messages import Error, IndexesRequest
from dstash.wire.packing import PAGE_BYTES
from dstash.wire.registers.consensus import PromisesRequest, RegisterFloorsRequest
from dstash.wire.replication import (
    BucketsRequest,
    CopyRequest,
    DigestsRequest,
    FloorRequest,
    Pull,
    ReleaseFloor,
    SeenRequest,
    SetHorizon,
    VersionsRequest,
)
from dstash.wire.shapes import Message

#: The task that answers each question.
QUESTIONS: Final[dict[type, Callable[..., Answering]]] = {
    DigestsRequest: handlers.digests,
    BucketsRequest: handlers.buckets,
    VersionsRequest: handlers.versions,
    CopyRequest: handlers.copy,
    Pull: handlers.pull,
    FloorRequest: handlers.floor,
    SeenRequest: handlers.seen,
    SetHorizon: handlers.horizon,
    ReleaseFloor: handlers.release,
    IndexesRequest: index_sizes,
    PromisesRequest: handlers.promises,
    RegisterFloorsRequest: register_floors,
}


class PeerQuestions:
    """Starts the tasks that answer the questions of other peers, and keeps their answers.

    Args:
        local_partitions: the records.
        scheduler: runs the tasks.
        backlog: bounds the questions that wait for their answers.
    """

    def __init__(
        self, local_partitions: LocalPartitions, scheduler: Scheduler, backlog: Backlog
    ) -> None:
        self._local_partitions = local_partitions
        self._scheduler = scheduler
        self._backlog = backlog
        #: Answers that are ready. Tasks end in a tick of the scheduler only.
        self.ready: list[tuple[Ticket, Message]] = []

    def begin(self, request: Request, now: int) -> None:
        """Start the task that answers a question.

        Args:
            now: this peer's own clock, in milliseconds since 1970.

        Raises:
            Busy: too many questions wait already.
        """
        ticket, question = request.ticket, request.envelope.message
        # The question and a page of the answer stay in memory until the answer is sent.
        release = self._backlog.hold(request.size + PAGE_BYTES)

        def ended(result: Message, failure: DStashError | None) -> None:
            release()
            self.ready.append((ticket, result if failure is None else Error.of(failure)))

        task = QUESTIONS[type(question)](self._local_partitions, question, now)
        self._scheduler.spawn(f"answer:{type(question).__name__}", task, ended)

    def take(self) -> list[tuple[Ticket, Message]]:
        """Return the answers that became ready since the last call, each with its ticket."""
        ready, self.ready = self.ready, []
        return ready
