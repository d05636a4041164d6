"""The core of a peer, without I/O: it dispatches messages; time, store and view are handed in.

The shell calls ``receive`` for each message, takes a ``Commit`` with ``next_commit`` whenever none
runs, runs it, usually on another thread, and gives it back to ``committed``. Reads are answered
at once, from a snapshot; writes when their commit is done.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dstash.cluster.replication.tasks import Outgoing
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.transitions import Proposal
from dstash.cluster.topology.view import View
from dstash.errors import DStashError, NotReady, ProtocolError, StoreError, StoreFailed
from dstash.peer.admission.admin_requests import OperatorRequest
from dstash.peer.admission.requests import Reply, Request
from dstash.peer.admission.writes import WaitingWrite
from dstash.peer.assembly import Handlers, Services, Settings, SharedState
from dstash.peer.commits.commit import Commit
from dstash.peer.commits.votes import VOTES
from dstash.peer.dispatch.deferred import DEFERRED
from dstash.peer.short.writes import ShortPut
from dstash.peer.telemetry.tracing import Tracer
from dstash.store.interface import Store
from dstash.wire.envelope import decode
from dstash.wire.messages import (
    Apply,
    Count,
    Delete,
    Error,
    Fetch,
    Lookup,
    Put,
    Scan,
    ScanKeys,
    Want,
)
from dstash.wire.registers import Change, Settle
from dstash.wire.shapes import Message, weight_of

#: A commit of one put, or of any writes.
AnyCommit = ShortPut | Commit


class _Rest(NamedTuple):
    """A time in which there is nothing to do, unless something happens (``begin`` to ``end``)."""

    begin: int
    end: int

    def covers(self, now: int) -> bool:
        """Whether it contains a time. One before it means that the clock was set back."""
        return self.begin <= now < self.end


_NO_REST: Final = _Rest(0, 0)


class PeerCore:
    """Dispatch of one peer: takes messages, hands them to their handlers, returns replies.

    ``view`` is None until the peer has joined.

    Args:
        now: the start, in milliseconds since 1970.
        tracer: notes the times of requests that are part of a trace; None when tracing is off.
    """

    def __init__(
        self, settings: Settings, store: Store, now: int, tracer: Tracer | None = None
    ) -> None:
        self.settings = settings
        self.store = store
        self.tracer = tracer
        self.view: View | None = None
        #: Whether, at the last look, nothing was soon due that ``wakeup`` does not know of.
        self.is_calm = False
        #: When the background and the registers have nothing to do, unless something happens.
        self._rest = self._rest_of_registers = _NO_REST
        #: Set when the disk failed permanently: the peer must stop.
        self.failure: DStashError | None = None
        state = SharedState(settings, store, now)
        self.local_partitions = state.local_partitions
        self.clock = state.clock
        self.keyspaces = state.keyspaces
        self.hints = state.hints
        self.meters = state.meters
        self._backlog = state.backlog
        services = Services(settings, state, now)
        self.group_commit = services.group_commit
        self._background = services.background
        self.scheduler = services.background.scheduler
        self.maintenance = services.background.maintenance
        self.observer = services.background.observer
        self.history = services.history
        self.health = services.health
        self.admission = services.admission
        self.registers = services.registers
        self.serving = services.serving
        handlers = Handlers(settings, state, services)
        self.replies = handlers.replies
        self.rejections = handlers.rejections
        self._control = handlers.control
        self._reader = handlers.reader
        self._short_checks = handlers.short_checks
        self._short_reads = handlers.short_reads
        self._short_writes = handlers.short_writes
        self._questions = handlers.questions
        self._deferred = handlers.deferred
        self.admin_requests = handlers.admin_requests
        self.topology_news = handlers.topology_news
        self.outgoing = handlers.outgoing

    # -- called by the server

    def receive(
        self, sender: bytes, parts: list[bytes], now: int, user: str | None = None
    ) -> list[Reply]:
        """Handle a message; returns the replies that are ready.

        Args:
            sender: the routing id of the connection.
            now: this peer's own clock, in milliseconds since 1970.
            user: the public key that the sender has proved to own; None without CURVE.
        """
        try:
            short = self._short_reads.answer(sender, parts, now)
        except StoreError as error:
            self.failure = self.failure or error
            short = None  # the dispatch reports the failure
        if short is not None:
            return [Reply(sender, short)]
        if self._short_writes.accept(sender, parts, now):
            return []
        try:
            envelope = decode(parts)
        except ProtocolError as error:
            self.disturb()
            return self.rejections.malformed(sender, user, error, now)
        if type(envelope.message) in _CHANGES:
            self._rest_of_registers = _NO_REST
        elif type(envelope.message) not in VOTES:  # which only wait for the disk
            self.disturb()
        self._background.set_time(now)
        size = sum(map(len, parts))
        notes = None
        if self.tracer is not None and envelope.trace:
            notes = self.tracer.begin(envelope)
        return self._handle(Request(sender, user, envelope, now, size, notes), now)

    def answered(self, peer: str, parts: list[bytes], now: int) -> None:
        """Handle a message from another peer, on a connection that this peer opened.

        Args:
            peer: its id.
            parts: the frames.
            now: this peer's own clock, in milliseconds since 1970.
        """
        if self.outgoing.answered(peer, parts, now):
            self._rest_of_registers = _NO_REST
        else:
            self.disturb()

    def tick(self, now: int) -> tuple[list[Reply], list[Outgoing]]:
        """Run a little of the background work; returns replies, and messages for other peers.

        If nothing but registers was disturbed since the last tick, they are all that is run.
        """
        self._background.set_time(now)
        replies: list[Reply] = []
        outgoing: list[Outgoing] = []
        if not self._rest.covers(now) or self._rest_of_registers.covers(now):
            replies, outgoing = self._tick_background(now)
        outgoing += self.registers.tick()
        for ticket, message in self.registers.take(now):
            replies.append(self.replies.encode(ticket, message, now))
        if self.hints.marks.has_unsaved:  # of a replica that has missed the write of a register
            self.disturb()
        self._rest_of_registers = _Rest(now, now + self._wait_for_registers(now))
        return replies, outgoing

    def _tick_background(self, now: int) -> tuple[list[Reply], list[Outgoing]]:
        outgoing = self._background.tick(stopping=self.health.stopping)
        self.serving.watch()
        if self._background.has_looked:
            self.health.watch()
            is_free = not (self.admission.has_waiting or self.health.stopping)
            self.is_calm = is_free and self._background.is_calm
        self.history.note(now)
        ready = self._questions.take() if self._questions.ready else []
        replies = [self.replies.encode(ticket, message, now) for ticket, message in ready]
        if late := self.admission.expired(now):
            for request, error in late:
                answer = self.rejections.refused(request, error, now)
                if answer is not None:
                    replies.append(self.replies.encode(request.ticket, answer, now))
            envelopes = [request.envelope for request, _ in late]
            self.maintenance.pass_epochs(
                envelope.epoch
                for envelope in envelopes
                if isinstance(envelope.message, _NOT_FOR_READERS)
            )
        if (broken := self.store.check_writable()) is not None:
            self.failure = self.failure or StoreFailed(broken)
        may_rest = self._background.has_looked_once and not self._questions.ready
        may_rest = may_rest and not self.health.stopping and self.failure is None
        self._rest = _Rest(now, now + self._wait_for_background(now)) if may_rest else _NO_REST
        return replies, outgoing

    def is_idle_at(self, now: int) -> bool:
        """Whether ``tick`` has nothing to do, because nothing has happened since the last one."""
        return self._rest.covers(now) and self._rest_of_registers.covers(now)

    def be_busy(self, is_busy: bool) -> None:
        """Take note whether other messages wait, so that their writes share a commit."""
        self._short_writes.is_busy = is_busy

    def disturb(self) -> None:
        """Take note that something has happened, so that ``tick`` may have something to do."""
        self._rest = _NO_REST

    def idle_time(self, now: int) -> int:
        """Return how many milliseconds to wait for an event before the next tick."""
        # To ask all again would take longer than to answer a look-up.
        rest, of_registers = self._rest, self._rest_of_registers
        waits = rest.end - now if rest.covers(now) else self._wait_for_background(now)
        if of_registers.covers(now):
            return min(waits, of_registers.end - now)
        return min(waits, self._wait_for_registers(now))

    def _wait_for_background(self, now: int) -> int:
        waits = _MAX_WAIT_MS
        if self.is_calm:  # the history has a sample of each second
            waits = max(1, min(_CALM_WAIT_MS, self.history.due - now))
        return min(waits, self._background.wakeup(now))

    def _wait_for_registers(self, now: int) -> int:
        waits = self.registers.wakeup(now)
        if waits is None and not self.registers.has_work:
            return _CALM_WAIT_MS
        return _MAX_WAIT_MS if waits is None else min(waits, _MAX_WAIT_MS)

    def take_proposals(self) -> list[Proposal]:
        """Return the topology steps that became due since the last call."""
        proposals, self.maintenance.proposals = self.maintenance.proposals, []
        return proposals

    def install(self, view: View, now: int) -> list[Reply]:
        """Take a view, unless it is older than the current view; answer requests that waited."""
        if self.view is not None and view.epoch < self.view.epoch:
            return []
        self.view = view
        self.serving.install(view)  # first: what follows may answer by the new epoch
        self.keyspaces.install(view)
        waited = self.admission.install(view)
        self.health.install(view)
        self.replies.install(view)
        self._control.install(view)
        self._short_checks.install(view)
        self._short_writes.install()
        self._deferred.install(view)
        self.topology_news.install(view)
        self._background.install(view, now)
        self.registers.install(view)
        self.disturb()
        return [reply for request in waited for reply in self._handle(request, now)]

    def next_commit(self, now: int) -> AnyCommit | None:
        """Return the waiting writes as one commit; None if no write waits."""
        short = self._short_writes.take()
        if short is not None:
            return short
        if not self._backlog.has_waiting:
            return None
        self._background.set_time(now)
        return self.group_commit.begin(now)

    def committed(self, commit: AnyCommit, now: int) -> list[Reply]:
        """Take back a commit that has run; returns its replies."""
        self.failure = self.failure or commit.fatal
        if isinstance(commit, ShortPut):
            if self._short_writes.ended(commit, now) or self.failure:
                self.disturb()
            if not commit.is_stored:
                return []
            self.health.counts["commits"] += 1
            return [self.replies.stored(commit.write.ticket, now)]
        self.health.counts["commits"] += 1
        if self.group_commit.end(commit, now) or self.failure:
            self.disturb()
        if commit.is_plain:
            return [self.replies.stored(write.ticket, now) for write in commit.waiting]
        ready = [reply for reply in commit.replies if not self.registers.refused(reply[0])]
        voted = [self.registers.voted(write, answer) for write, answer in commit.votes]
        ready += [reply for reply in voted if reply is not None]
        if len(ready) < len(commit.replies) + len(voted):  # the others were for this peer itself
            self._rest_of_registers = _NO_REST
        return [self.replies.encode(ticket, message, now) for ticket, message in ready]

    @property
    def has_work(self) -> bool:
        """Whether writes wait for a commit, are in one, or other peers wait for a last report."""
        if self._backlog.has_work or self.registers.has_work:
            return True
        return self.health.stopping and self._background.awaits_last_report()

    def newest_lives(self) -> dict[str, Life]:
        """Return the newest life seen of each store, for the topology. Any thread may call this."""
        return self.maintenance.freshness.newest_lives()

    # -- dispatch

    def _handle(self, request: Request, now: int) -> list[Reply]:
        deadline, message = request.envelope.moment, request.envelope.message
        if deadline and (deadline < now or self.clock.is_from_before_step(deadline)):
            return self.rejections.late(request, now)
        level = ""
        if type(message) is Lookup:
            level = "quorum" if message.want & _DIGEST else "one"
        try:
            answer = self._answer(request, now)
            outcome = _ACCEPTED if answer is None else _ANSWERED
        except StoreError as error:
            # The disk or the file failed: this peer must stop, and another replica must answer.
            self.failure = self.failure or error
            self.disturb()
            answer, outcome = Error.of(NotReady(f"{self.settings.peer}: {error}")), "NotReady"
        except DStashError as error:
            self.disturb()
            answer, outcome = self.rejections.refused(request, error, now), type(error).__name__
        self.meters.requests[type(message).__name__, level, outcome] += 1
        return [] if answer is None else [self.replies.encode(request.ticket, answer, now)]

    def _answer(self, request: Request, now: int) -> Message | None:
        """Return the answer; None when it comes later, or when the message has none."""
        envelope, admission = request.envelope, self.admission
        message = envelope.message
        admission.check_permission(request.user, message)
        if isinstance(message, OperatorRequest):
            self.admin_requests.accept(request, message)
            return None
        answer = self._control.answer(message, now)
        if answer is not None:
            return answer
        if type(message) not in _DATA:
            raise ProtocolError(f"a {type(message).__name__} is not a request")
        if admission.is_future_epoch(envelope):
            self.disturb()
            if admission.wait_for_topology(request):
                self.topology_news.refresh()
            return None
        admission.check(request)
        if isinstance(message, _READS):
            admission.check_read(request)
            admission.check_readable(message)
            answer = self._reader.read(message, self.keyspaces.find(message.index), now)
            if weight_of(answer) > _SMALL_ANSWER:
                admission.check_room(request)
            return answer
        if isinstance(message, _WRITES):
            self._write(request, message, now)
        else:
            DEFERRED[type(message)](self._deferred, request, message, now)
        return None

    def _write(self, request: Request, message: Put | Delete | Apply, now: int) -> None:
        """Queue a write for the next commit, which answers it."""
        admission, ticket = self.admission, request.ticket
        admission.check_index(message)
        admission.check_freshness()
        if not isinstance(message, Apply):
            admission.check_floor(message, now)
        settings = self.view.index_settings.get(message.index) if self.view else None
        space = self.keyspaces.find(message.index)
        self._backlog.admit(WaitingWrite.of(ticket, message, space, settings=settings))
        if ticket.notes is not None:
            ticket.notes.waits()


#: The longest wait for events, and while nothing is soon due that ``wakeup`` does not know of.
_MAX_WAIT_MS: Final = 200
_CALM_WAIT_MS: Final = 1000

#: An answer of up to this many bytes is sent however many wait to be read.
_SMALL_ANSWER: Final = 128 * 1024

#: Requests about keys: they need a formed cluster, a current epoch and an index.
_READS: Final = (Lookup, Fetch, Scan, ScanKeys, Count)
_WRITES: Final = (Put, Delete, Apply)
_CHANGES: Final = frozenset((Change, Settle))
#: A client that may only read cannot send these.
_NOT_FOR_READERS: Final = (*_WRITES, Change)
_DATA: Final = {*_READS, *_WRITES, *DEFERRED}

#: Outcomes of requests that were not refused. An accepted request is answered later.
_ANSWERED: Final = "Answered"
_ACCEPTED: Final = "Accepted"

#: A plain number: arithmetic with flags takes longer than all the rest of counting.
_DIGEST: Final = Want.DIGEST.value
