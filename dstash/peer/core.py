"""The core of a peer, without I/O: it dispatches messages; time, store and view are handed in.

The shell calls ``receive`` for each message, takes a ``Commit`` with ``next_commit`` whenever the
committing thread is free, runs it there, and gives it back to ``committed``. Reads are answered
at once, from a snapshot; writes when their commit is done.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import SLICE, LocalPartitions
from dstash.cluster.replication.tasks import Outgoing
from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.view import View
from dstash.errors import (
    DeadlinePassed,
    DStashError,
    NotReady,
    ProtocolError,
    StoreError,
    StoreFailed,
)
from dstash.peer.admission.admin_requests import AdminRequests, OperatorRequest
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.checks import Admission
from dstash.peer.admission.questions import QUESTIONS, PeerQuestions
from dstash.peer.admission.requests import Reply, Request, Ticket
from dstash.peer.admission.topology_news import TopologyNews
from dstash.peer.admission.write_floor import WriteFloor
from dstash.peer.admission.writes import WaitingWrite
from dstash.peer.background import Background
from dstash.peer.commits.commit import Commit
from dstash.peer.commits.group import GroupCommit
from dstash.peer.commits.votes import VOTES
from dstash.peer.dispatch.control import ControlRequests
from dstash.peer.health import Health
from dstash.peer.keyspaces import Keyspaces
from dstash.peer.maintenance import Pace, Proposal
from dstash.peer.reads import Reader
from dstash.peer.registers.service import Registers
from dstash.peer.short.reads import ShortReads
from dstash.peer.telemetry.history import History
from dstash.peer.telemetry.meters import Meters
from dstash.peer.telemetry.tracing import Tracer
from dstash.store.interface import Store
from dstash.store.record import Keyspace, locate
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
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
from dstash.wire.replication import Hint, Push, SeenRequest
from dstash.wire.shapes import Message, weight_of


class Settings(NamedTuple):
    """The part of the configuration that the core uses."""

    peer: str
    cluster: str
    max_clock_skew_ms: int = 500
    hint_limit: int = 100_000
    hint_max_age_ms: int = 3 * 3600 * 1000
    pace: Pace = Pace()
    disk_reserve: int = 0
    #: Bytes of writes that may wait for the disk before new writes are rejected as busy.
    max_waiting_bytes: int = 64 * 1024 * 1024
    #: Requests that may wait for the disk, or for an answer that a task prepares.
    max_requests: int = 1024
    #: Records that a task walks before the scheduler runs the next task.
    slice_records: int = SLICE
    #: Whether each commit is synced, which votes on registers need.
    is_durable: bool = True


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
        peer = settings.peer
        self.settings = settings
        self.store = store
        self.tracer = tracer
        self.view: View | None = None
        #: Set when the disk failed permanently: the peer must stop.
        self.failure: DStashError | None = None
        self.keyspaces = Keyspaces(peer)
        self.local_partitions = LocalPartitions(store, settings.slice_records, now)
        self.clock = ClusterClock(
            peer, settings.max_clock_skew_ms, lambda: self.local_partitions.present, now
        )
        floor = WriteFloor(peer, self.local_partitions, self.clock)
        self.hints = Hints(settings.hint_limit, settings.hint_max_age_ms)
        self._backlog = Backlog(settings.max_waiting_bytes, settings.max_requests)
        self.group_commit = GroupCommit(
            self._backlog,
            self.local_partitions,
            self.keyspaces,
            self.clock,
            max_clock_skew_ms=settings.max_clock_skew_ms,
            disk_reserve=settings.disk_reserve,
        )
        self._background = Background(
            peer,
            self.local_partitions,
            self.clock,
            floor,
            hints=self.hints,
            backlog=self._backlog,
            commit=self.group_commit.add,
            pace=settings.pace,
            now=now,
        )
        self.scheduler = self._background.scheduler
        self.maintenance = self._background.maintenance
        self.observer = self._background.observer
        self.meters = Meters()
        self.history = History(self.meters, now)
        self.health = Health(
            self._background.replica,
            self.maintenance,
            self._backlog,
            self.meters,
            settings.disk_reserve,
            now,
        )
        self.admission = Admission(
            peer, self.health, self._backlog, floor, settings.max_waiting_bytes
        )
        self._control = ControlRequests(
            peer,
            settings.cluster,
            settings.max_clock_skew_ms,
            admission=self.admission,
            health=self.health,
            maintenance=self.maintenance,
            local_partitions=self.local_partitions,
            history=self.history,
        )
        self.registers = Registers(
            peer,
            self.clock,
            self.local_partitions,
            backlog=self._backlog,
            hints=self.hints,
            propose=self.maintenance.propose,
            steady_time=self._background.steady_time,
            preempted=self.group_commit.preempted,
            is_durable=settings.is_durable,
            max_clock_skew_ms=settings.max_clock_skew_ms,
        )
        self.health.describe_registers = self.registers.describe
        self._reader = Reader(self.local_partitions, self.meters)
        self._short_reads = ShortReads(
            peer,
            self.local_partitions,
            self.keyspaces,
            admission=self.admission,
            health=self.health,
            backlog=self._backlog,
            meters=self.meters,
        )
        self._questions = PeerQuestions(self.local_partitions, self.scheduler, self._backlog)
        self.admin_requests = AdminRequests(peer, self.clock, self._backlog, self._reply)
        self.topology_news = TopologyNews(
            peer,
            store.store_id,
            self.admission.trusted,
            self.health.counts,
            self.maintenance.ask_topology,
        )

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
        try:
            envelope = decode(parts)
        except ProtocolError as error:
            self.health.counts["malformed"] += 1
            self.health.refusals.note(sender, user, error, now)
            correlation = error.details.pop("correlation", None)
            if correlation is None:
                return []
            return [self._reply(Ticket(sender, correlation), Error.of(error), now)]
        self._background.set_time(now)
        size = sum(map(len, parts))
        notes = None
        if self.tracer is not None and envelope.trace:
            notes = self.tracer.begin(envelope)
        return self._handle(Request(sender, user, envelope, now, size, notes), now)

    def reject_as_busy(self, sender: bytes, parts: list[bytes], now: int, why: str) -> list[Reply]:
        """Ask the sender of a message, of any kind, to retry later."""
        try:
            envelope = decode(parts)
        except ProtocolError:
            return []
        self.health.counts["rejected_as_busy"] += 1
        ticket = Ticket(sender, envelope.correlation, envelope.protocol)
        error = self._backlog.busy(why)
        self.health.refusals.note(sender, None, error, now)
        return [self._reply(ticket, Error.of(error), now)]

    def receive_answer(self, peer: str, parts: list[bytes], now: int) -> None:
        """Handle a message from another peer, on a connection that this peer opened."""
        self._background.set_time(now)
        try:
            envelope = decode(parts)
        except ProtocolError:
            self.health.counts["malformed"] += 1
            return
        self.topology_news.hear(peer, envelope)
        if not self.registers.answered(peer, envelope):
            self._background.answered(peer, envelope)

    def lost(self, peer: str) -> None:
        """Take note that the connection to another peer broke."""
        self._background.lost(peer)
        self.registers.lost(peer)

    def unsent(self, outgoing: Outgoing) -> None:
        """Take note that a message to another peer could not be sent."""
        if not self.registers.unsent(outgoing):
            self._background.unsent(outgoing)

    def tick(self, now: int) -> tuple[list[Reply], list[Outgoing]]:
        """Run a little of the background work; returns replies, and messages for other peers."""
        self._background.set_time(now)
        outgoing = self._background.tick(stopping=self.health.stopping) + self.registers.tick()
        if self._background.has_looked:
            self.health.watch()
        self.history.note(now)
        ready = self._questions.take() if self._questions.ready else []
        ready += self.registers.take(now)
        replies = [self._reply(ticket, message, now) for ticket, message in ready]
        for request, error in self.admission.expired(now):
            replies.append(self._reply(request.ticket, Error.of(error), now))
        if (broken := self.store.check_writable()) is not None:
            self.failure = self.failure or StoreFailed(broken)
        return replies, outgoing

    def is_idle_at(self, now: int) -> bool:
        """Whether ``tick`` has nothing to do: it has run in the same millisecond, and no news."""
        return (
            self._background.is_idle_at(now)
            and not self._questions.ready
            and not self.registers.has_work
            and not self.health.stopping
            and self.failure is None
        )

    def wakeup(self, now: int) -> int:
        """Return how many milliseconds may pass before ``tick`` is due."""
        waits, due = self._background.wakeup(now), self.registers.wakeup(now)
        return waits if due is None else min(waits, due)

    def take_proposals(self) -> list[Proposal]:
        """Return the topology steps that became due since the last call."""
        proposals, self.maintenance.proposals = self.maintenance.proposals, []
        return proposals

    def install(self, view: View, now: int) -> list[Reply]:
        """Take a view, unless it is older than the current view; answer requests that waited."""
        if self.view is not None and view.epoch < self.view.epoch:
            return []
        self.view = view
        self.keyspaces.install(view)
        waited = self.admission.install(view)
        self.health.install(view)
        self._control.install(view)
        self._short_reads.install(view)
        self.topology_news.install(view)
        self._background.install(view, now)
        self.registers.install(view)
        return [reply for request in waited for reply in self._handle(request, now)]

    def next_commit(self, now: int) -> Commit | None:
        """Return the waiting writes as one commit; None if no write waits."""
        if not self._backlog.has_waiting:
            return None
        self._background.set_time(now)
        return self.group_commit.begin(now)

    def committed(self, commit: Commit, now: int) -> list[Reply]:
        """Take back a commit that has run; returns its replies."""
        self.failure = self.failure or commit.fatal
        self.health.counts["commits"] += 1
        self.group_commit.end(commit, now)
        ready = [reply for reply in commit.replies if not self.registers.refused(reply[0])]
        voted = [self.registers.voted(write, answer) for write, answer in commit.votes]
        ready += [reply for reply in voted if reply is not None]
        return [self._reply(ticket, message, now) for ticket, message in ready]

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
        if deadline and deadline < now:
            return self._refuse_late(request, now)
        level = ""
        if type(message) is Lookup:
            level = "quorum" if message.want & _DIGEST else "one"
        try:
            answer = self._answer(request, now)
            outcome = _ACCEPTED if answer is None else _ANSWERED
        except StoreError as error:
            # The disk or the file failed: this peer must stop, and another replica must answer.
            self.failure = self.failure or error
            answer, outcome = Error.of(NotReady(f"{self.settings.peer}: {error}")), "NotReady"
        except DStashError as error:
            outcome = type(error).__name__
            self.health.counts[f"refused:{outcome}"] += 1
            self.health.refusals.note(request.sender, request.user, error, now)
            answer = Error.of(error)
        self.meters.requests[type(message).__name__, level, outcome] += 1
        return [] if answer is None else [self._reply(request.ticket, answer, now)]

    def _refuse_late(self, request: Request, now: int) -> list[Reply]:
        self.health.counts["late"] += 1
        if request.notes is not None:
            request.notes.late()
        if isinstance(request.envelope.message, Hint):  # it has no answer
            return []
        # The time in the reply lets a client with a wrong clock correct it and retry.
        late = now - request.envelope.moment
        error = DeadlinePassed(f"the request came {late} ms after its deadline")
        return [self._reply(request.ticket._replace(notes=None), Error.of(error), now)]

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
        if type(message) not in _DATA and type(message) not in QUESTIONS:
            raise ProtocolError(f"a {type(message).__name__} is not a request")
        if admission.is_future_epoch(envelope):
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
        self._begin(request, now)
        return None

    def _begin(self, request: Request, now: int) -> None:
        """Begin a request that is answered later, or never."""
        ticket, message = request.ticket, request.envelope.message
        if isinstance(message, _WRITES):
            self.admission.check_index(message)
            self.admission.check_freshness()
            if not isinstance(message, Apply):
                self.admission.check_floor(message, now)
            settings = self.view.index_settings.get(message.index) if self.view else None
            self._enqueue(ticket, message, self.keyspaces.find(message.index), settings)
        elif isinstance(message, Push):
            if not message.compared:  # else the other partitions would count as busy meanwhile
                self.local_partitions.pushed(now)
            self._enqueue(ticket, message, None)
        elif isinstance(message, Hint):
            self._take_hint(message, now)
        elif isinstance(message, Change | Settle):
            self.admission.check_freshness()
            self.registers.begin(request, self.keyspaces.find(message.index), now)
        elif isinstance(message, VOTES):
            self.admission.check_freshness()
            self.registers.begin_vote(request)
        else:
            if not isinstance(message, SeenRequest):  # by which other peers confirm their stores
                self.admission.check_freshness()
            self.admission.check_room(request)
            self._questions.begin(request, now)

    def _enqueue(
        self,
        ticket: Ticket,
        message: Put | Delete | Apply | Push,
        space: Keyspace | None,
        settings: IndexSettings | None = None,
    ) -> None:
        self._backlog.admit(WaitingWrite.of(ticket, message, space, settings=settings))
        if ticket.notes is not None:
            ticket.notes.waits()

    def _take_hint(self, hint: Hint, now: int) -> None:
        self.admission.check_index(hint)
        if self.view is not None and hint.peer in self.view.members:
            keys = codec.unpack_keys(hint.keys)
            space = self.keyspaces.find(hint.index)
            self.hints.add(hint.peer, locate(space, keys), self._background.steady_time())
            self._background.look_soon()

    def _reply(self, ticket: Ticket, message: Message, now: int) -> Reply:
        sender, correlation, protocol, notes = ticket
        if notes is not None:
            notes.answered(message)
        envelope = Envelope(correlation, self._background.epoch, now, message, protocol)
        return Reply(sender, encode(envelope))


#: An answer of up to this many bytes is sent however many wait to be read.
_SMALL_ANSWER: Final = 128 * 1024

#: Requests about keys: they need a formed cluster, a current epoch and an index.
_READS: Final = (Lookup, Fetch, Scan, ScanKeys, Count)
_WRITES: Final = (Put, Delete, Apply)
_DATA: Final = {*_READS, *_WRITES, Push, Hint, Change, Settle, *VOTES}

#: Outcomes of requests that were not refused. An accepted request is answered later.
_ANSWERED: Final = "Answered"
_ACCEPTED: Final = "Accepted"

#: A plain number: arithmetic with flags takes longer than all the rest of counting.
_DIGEST: Final = Want.DIGEST.value
