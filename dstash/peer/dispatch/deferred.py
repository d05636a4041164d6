"""Deferred requests: a commit, a task or a majority of votes answers them; hints have no answer.

A handler checks its request and queues it. An error that it raises is the answer. The core handles
the writes of clients itself (``PeerCore._write``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.view import View
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.checks import Admission
from dstash.peer.admission.questions import QUESTIONS, PeerQuestions
from dstash.peer.admission.requests import Request
from dstash.peer.admission.writes import WaitingWrite
from dstash.peer.background.background import Background
from dstash.peer.commits.votes import VOTES
from dstash.peer.keyspaces import Keyspaces
from dstash.peer.registers.service import Registers
from dstash.store.sealing import locate
from dstash.wire import codec
from dstash.wire.registers import Change, Settle
from dstash.wire.replication import Hint, Push, SeenRequest
from dstash.wire.shapes import Message


class DeferredRequests:
    """The handlers of one peer; ``DEFERRED`` has them by the kind of request.

    Args:
        local_partitions: the records.
        keyspaces: by index.
        admission: the checks that depend on the kind of request.
        backlog: the writes that wait for the disk.
        hints: what other replicas have missed.
        background: keeps the time of hints, and replays them.
        registers: begins what concerns registers.
        questions: begins what tasks answer.
    """

    def __init__(
        self,
        local_partitions: LocalPartitions,
        keyspaces: Keyspaces,
        *,
        admission: Admission,
        backlog: Backlog,
        hints: Hints,
        background: Background,
        registers: Registers,
        questions: PeerQuestions,
    ) -> None:
        self._local_partitions = local_partitions
        self._keyspaces = keyspaces
        self._admission = admission
        self._backlog = backlog
        self._hints = hints
        self._background = background
        self._registers = registers
        self._questions = questions
        self._view: View | None = None

    def install(self, view: View) -> None:
        """Take a new view."""
        self._view = view

    def push(self, request: Request, message: Push, now: int) -> None:
        """Queue the records that another replica sends for the next commit, which answers it."""
        if not message.compared:  # else the other partitions would count as busy meanwhile
            self._local_partitions.pushed(now)
        self._backlog.admit(WaitingWrite.of(request.ticket, message, None))
        if request.notes is not None:
            request.notes.waits()

    def hint(self, request: Request, message: Hint, now: int) -> None:
        """Keep what another member has missed; there is no answer."""
        self._admission.check_index(message)
        if self._view is not None and message.peer in self._view.members:
            keys = codec.unpack_keys(message.keys)
            space = self._keyspaces.find(message.index)
            steady = self._background.steady_time()
            self._hints.add(message.peer, locate(space, keys), steady)
            self._background.look_soon()

    def change(self, request: Request, message: Change | Settle, now: int) -> None:
        """Begin a change or a read of registers; a majority of votes answers it."""
        self._admission.check_freshness()
        self._registers.begin(request, self._keyspaces.find(message.index), now)

    def vote(self, request: Request, message: Message, now: int) -> None:
        """Queue a request for votes for the next commit, which answers it."""
        self._admission.check_freshness()
        self._registers.begin_vote(request)

    def question(self, request: Request, message: Message, now: int) -> None:
        """Begin the task that answers a question, most of them of other peers."""
        if not isinstance(message, SeenRequest):  # by which other peers confirm their stores
            self._admission.check_freshness()
        self._admission.check_room(request)
        self._questions.begin(request, now)


#: The handler of each kind of deferred request.
DEFERRED: Final[dict[type, Callable[[DeferredRequests, Request, Any, int], None]]] = {
    Push: DeferredRequests.push,
    Hint: DeferredRequests.hint,
    Change: DeferredRequests.change,
    Settle: DeferredRequests.change,
    **dict.fromkeys(VOTES, DeferredRequests.vote),
    **dict.fromkeys(QUESTIONS, DeferredRequests.question),
}
