"""The core of a peer, without I/O: it dispatches messages; time, store and view are handed in.

The shell calls ``receive`` for each message, takes a ``Commit`` with ``next_commit`` whenever the
committing thread is free, runs it there, and gives it back to ``committed``. Reads are answered
at once, from a snapshot; writes when their commit is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Final, NamedTuple

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication import handlers
from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.handlers import PAGE_BYTES, Answering
from dstash.cluster.replication.partitions import PROMISE_MS, SLICE, LocalPartitions
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Merge, Outgoing, Scheduler
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.errors import (
    DeadlinePassed,
    DStashError,
    NotReady,
    ProtocolError,
    StaleEpoch,
    StoreError,
    StoreFailed,
)
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.checks import Admission
from dstash.peer.admission.requests import PendingAdminRequest, Reply, Request, Ticket
from dstash.peer.admission.write_floor import WriteFloor
from dstash.peer.admission.writes import Internal, WaitingWrite
from dstash.peer.commits.commit import Commit, Rules
from dstash.peer.control import ControlRequests
from dstash.peer.health import Health
from dstash.peer.keyspaces import Keyspaces
from dstash.peer.maintenance import Maintenance, Pace, Proposal
from dstash.peer.reads import Reader
from dstash.peer.commits.recent_deletes import RecentDeletes
from dstash.peer.telemetry.history import History
from dstash.peer.telemetry.meters import Meters
from dstash.peer.telemetry.observer import Observer
from dstash.peer.telemetry.tracing import Tracer
from dstash.store.interface import Store
from dstash.store.record import Keyspace, locate
from dstash.types import Level
from dstash.version import Steady, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import (
    AdminRequest,
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
from dstash.wire.replication import (
    BucketsRequest,
    CopyRequest,
    DigestsRequest,
    FloorRequest,
    Hint,
    Pull,
    Push,
    ReleaseFloor,
    SeenRequest,
    SetHorizon,
    VersionsRequest,
)
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


class PeerCore:
    """Dispatch of one peer: takes messages, hands them to their handlers, returns replies.

    ``view`` is None until the peer has joined. ``wants_refresh`` is set when a message came from a
    newer epoch: the shell must read the membership and ``install`` what it finds.

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
        self.now = now
        self.view: View | None = None
        self.wants_refresh = False
        #: A later topology that another member uses, in case the membership is out of reach.
        self.heard_topology: Topology | None = None
        #: Set when the disk failed for good: the peer must stop.
        self.failure: DStashError | None = None
        self.keyspaces = Keyspaces()
        self.local_partitions = LocalPartitions(store, settings.slice_records, now)
        self.clock = ClusterClock(
            settings.peer, settings.max_clock_skew_ms, lambda: self.local_partitions.present, now
        )
        self._floor = WriteFloor(settings.peer, self.local_partitions, self.clock)
        self.local_partitions.latest_promise = lambda: self._floor.latest_promise(self.now)
        self.local_partitions.promise_ms = min(PROMISE_MS, settings.pace.gc_interval_ms // 2)
        self.hints = Hints(settings.hint_limit, settings.hint_max_age_ms)
        self._backlog = Backlog(settings.max_waiting_bytes, settings.max_requests)
        self.scheduler = Scheduler(self._commit_internal, self._backlog.settle, self._epoch)
        self._steady = Steady(now)
        replica = Replica(
            settings.peer,
            self.local_partitions,
            self._current_view,
            self._steady_time,
            lambda: self.now,
            self.clock,
        )
        self.maintenance = Maintenance(replica, self.scheduler, self.hints, settings.pace, now)
        self.meters = Meters()
        self.history = History(self.meters, now)
        self.observer = Observer(settings.peer, self.scheduler)
        self.health = Health(
            replica, self.maintenance, self._backlog, self.meters, settings.disk_reserve, now
        )
        self.admission = Admission(
            settings.peer, self.health, self._backlog, self._floor, settings.max_waiting_bytes
        )
        self._control = ControlRequests(
            settings.peer,
            settings.cluster,
            settings.max_clock_skew_ms,
            admission=self.admission,
            health=self.health,
            maintenance=self.maintenance,
            local_partitions=self.local_partitions,
            history=self.history,
        )
        self._reader = Reader(self.local_partitions, self.meters)
        self._recent_deletes = RecentDeletes()
        self._answers: list[Reply] = []
        self._admin_requests: list[PendingAdminRequest] = []

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
            envelope = decode(parts)
        except ProtocolError as error:
            self.health.counts["malformed"] += 1
            self.health.refusals.note(sender, user, error, now)
            correlation = error.details.pop("correlation", None)
            if correlation is None:
                return []
            return [self._reply(Ticket(sender, correlation), Error.of(error), now)]
        self._set_time(now)
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
        self._set_time(now)
        try:
            envelope = decode(parts)
        except ProtocolError:
            self.health.counts["malformed"] += 1
            return
        self.clock.answered(peer, envelope.correlation, envelope.moment)
        if self.view is not None and envelope.epoch > self.view.epoch:
            self.wants_refresh = True
            if isinstance(envelope.message, Error):
                self._hear_topology(peer, envelope.message.error(), self.view)
        self.scheduler.answered(peer, envelope)

    def _hear_topology(self, peer: str, error: DStashError, view: View) -> None:
        """Keep the topology of a member with a later epoch, if this peer may use it."""
        encoded = error.details.get("topology")
        if not isinstance(error, StaleEpoch) or not isinstance(encoded, bytes):
            return
        try:
            found = Topology.decode(encoded)
        except ProtocolError:
            self.health.counts["malformed"] += 1
            return
        known = self.heard_topology or view.topology
        member = found.member(self.settings.peer)
        is_ours = member is not None and member.store_id == self.store.store_id
        is_usable = found.formed and found.restored is None
        is_successor = found.cluster_id == view.topology.cluster_id and found.epoch > known.epoch
        if peer in view.members and is_ours and is_usable and is_successor:
            self.heard_topology = self.admission.trusted(found)

    def lost(self, peer: str) -> None:
        """Take note that the connection to another peer broke."""
        self.scheduler.lost(peer)
        self.observer.lost(peer)

    def unsent(self, outgoing: Outgoing) -> None:
        """Take note that a message to another peer could not be sent."""
        self.clock.unanswered(outgoing.correlation)
        self.scheduler.unsent(outgoing.peer, outgoing.correlation)

    def tick(self, now: int) -> tuple[list[Reply], list[Outgoing]]:
        """Run a little of the background work; returns replies, and messages for other peers."""
        self._set_time(now)
        if self.clock.knows_majority:
            self._floor.correct()
        self.health.watch()
        steady = self._steady.at(now)
        if not self.health.stopping:
            self.maintenance.tick(steady)
            self.observer.tick(self.view, now)
        elif not self._backlog.has_work:
            self.maintenance.freshness.send_last_report(steady)
        self.history.note(now)
        outgoing = self.scheduler.tick(steady)
        for message in outgoing:
            self.clock.sent(message.correlation)
        expired = [
            self._reply(request.ticket, Error.of(error), now)
            for request, error in self.admission.expired(now)
        ]
        answers, self._answers = self._answers + expired, []
        if (broken := self.store.check_writable()) is not None:
            self.failure = self.failure or StoreFailed(broken)
        return answers, outgoing

    def wakeup(self, now: int) -> int:
        """Return how many milliseconds may pass before ``tick`` is due."""
        if self.scheduler.has_ready or self._answers:
            return 0
        due = self.scheduler.wakeup()
        return 1000 if due is None else max(0, min(1000, due - self._steady.at(now)))

    def take_admin_requests(self) -> list[PendingAdminRequest]:
        """Return the admin requests that arrived since the last call."""
        requests, self._admin_requests = self._admin_requests, []
        return requests

    def take_proposals(self) -> list[Proposal]:
        """Return the topology steps that became due since the last call."""
        proposals, self.maintenance.proposals = self.maintenance.proposals, []
        return proposals

    def install(self, view: View, now: int) -> list[Reply]:
        """Take a view, unless it is older than the current view; answer requests that waited."""
        before = self.view
        if before is not None and view.epoch < before.epoch:
            return []
        if before is None or view.epoch != before.epoch:
            self.keyspaces.install(view.owned_by(self.settings.peer))
        self.view = view
        waited = self.admission.install(view)
        self.health.install(view)
        self._control.install(view)
        self._set_time(now)
        topology = view.topology
        voters = {member.id for member in topology.before() if member.synced}
        if topology.replicas == 1:  # a peer alone is the quorum of its own partitions
            voters = {self.settings.peer}
        quorum = Level.QUORUM.needed(view.topology.replicas)
        self.clock.install(view.members.keys(), voters, view.alive, quorum)
        self._floor.install(before, view)
        self.wants_refresh = False
        if self.heard_topology is not None and self.heard_topology.epoch <= view.epoch:
            self.heard_topology = None
        self.maintenance.install(view, self._steady.at(now))
        return [reply for request in waited for reply in self._handle(request, now)]

    def next_commit(self, now: int) -> Commit | None:
        """Return the waiting writes as one commit; None if no write waits."""
        group = self._backlog.take(now)
        if not group:
            return None
        self._set_time(now)
        rules = Rules(
            now,
            self.clock.present_ms(),
            self.settings.max_clock_skew_ms,
            self.local_partitions.newest_horizon,
            self.local_partitions.promises(now),
            self.local_partitions.horizons[:],
            self.keyspaces.owned,
            self.store.has_room(self.settings.disk_reserve),
            self.store.has_room(self.settings.disk_reserve // 2),
            self.store.high_water,
            self.clock.highest_acked(),
        )
        return Commit(group, rules, recent=self._recent_deletes)

    def committed(self, commit: Commit, now: int) -> list[Reply]:
        """Take back a commit that has run; returns its replies."""
        self.failure = self.failure or commit.fatal
        self.health.counts["commits"] += 1
        # A majority may hold later stamps by now: the client retries in a moment.
        self.clock.is_due = self.clock.is_due or commit.skewed
        self.local_partitions.changed(commit.changed, now)
        self.local_partitions.corruption.report(commit.corrupt)
        for internal, error in commit.done:
            internal.done(error)
        self._backlog.committed(commit.waiting, now)
        return [self._reply(ticket, message, now) for ticket, message in commit.replies]

    @property
    def has_work(self) -> bool:
        """Whether writes wait for a commit, are in one, or other peers wait for a last report."""
        if self._backlog.has_work:
            return True
        is_stopping = self.health.stopping
        return is_stopping and self.maintenance.freshness.awaits_last_report(self._steady_time())

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
        if isinstance(message, AdminRequest):
            self._admin_requests.append(self._await_admin_reply(request, message))
            return None
        answer = self._control.answer(message, now)
        if answer is not None:
            return answer
        if type(message) not in _DATA and type(message) not in _QUESTIONS:
            raise ProtocolError(f"a {type(message).__name__} is not a request")
        if admission.is_future_epoch(envelope):
            is_first = admission.wait_for_topology(request)
            self.wants_refresh = self.wants_refresh or is_first
            return None
        admission.check(request)
        if isinstance(message, _READS):
            admission.check_read(request)
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
            self.admission.check_freshness()
            if not isinstance(message, Apply):
                self.admission.check_floor(message, now)
            self._enqueue(ticket, message, self.keyspaces.find(message.index))
        elif isinstance(message, Push):
            if not message.compared:  # else the other partitions would count as busy meanwhile
                self.local_partitions.pushed(now)
            self._enqueue(ticket, message, None)
        elif isinstance(message, Hint):
            self._take_hint(message, now)
        else:
            if not isinstance(message, SeenRequest):  # by which other peers confirm their stores
                self.admission.check_freshness()
            self.admission.check_room(request)
            self._begin_answer(request, _QUESTIONS[type(message)], now)

    def _enqueue(
        self, ticket: Ticket, message: Put | Delete | Apply | Push, space: Keyspace | None
    ) -> None:
        weight = len(message.keys) + len(
            getattr(message, "payloads", b"") or getattr(message, "records", b"")
        )
        self._backlog.admit(WaitingWrite(ticket, message, space, weight))
        if ticket.notes is not None:
            ticket.notes.waits()

    def _begin_answer(self, request: Request, answer: Callable[..., Answering], now: int) -> None:
        ticket, question = request.ticket, request.envelope.message
        # The question and a page of the answer stay in memory until the answer is sent.
        release = self._backlog.hold(request.size + PAGE_BYTES)

        def ended(result: Message, failure: DStashError | None) -> None:
            release()
            message = result if failure is None else Error.of(failure)
            self._answers.append(self._reply(ticket, message, self.now))

        task = answer(self.local_partitions, question, now)
        self.scheduler.spawn(f"answer:{type(question).__name__}", task, ended)

    def _await_admin_reply(
        self, request: Request, admin_request: AdminRequest
    ) -> PendingAdminRequest:
        if admin_request.action == "lower-floors":
            if not self.clock.knows_majority:
                raise NotReady(f"{self.settings.peer}: the clocks of a majority are not known yet")
            admin_request = replace(admin_request, stamp=stamp_at(self.clock.time()))
        release = self._backlog.hold(request.size)

        def answer(message: Message, now: int) -> list[Reply]:
            release()
            return [self._reply(request.ticket, message, now)]

        return PendingAdminRequest(admin_request, answer)

    def _take_hint(self, hint: Hint, now: int) -> None:
        if self.view is not None and hint.peer in self.view.members:
            keys = codec.unpack_keys(hint.keys)
            space = self.keyspaces.find(hint.index)
            self.hints.add(hint.peer, locate(space, keys), self._steady_time())

    def _reply(self, ticket: Ticket, message: Message, now: int) -> Reply:
        sender, correlation, protocol, notes = ticket
        if notes is not None:
            notes.answered(message)
        return Reply(sender, encode(Envelope(correlation, self._epoch(), now, message, protocol)))

    # -- for the tasks

    def _commit_internal(self, merge: Merge, done: Callable[[DStashError | None], None]) -> None:
        weight = sum(map(len, chain.from_iterable(merge.entries)))
        self._backlog.add(WaitingWrite(Ticket(b"", 0), Internal(merge, done), None, weight))

    def _epoch(self) -> int:
        return self.view.epoch if self.view else 0

    def _current_view(self) -> View:
        if self.view is None:
            raise AssertionError("a task began before the view was known")
        return self.view

    def _set_time(self, now: int) -> None:
        self.now = now
        self.clock.advance(now)

    def _steady_time(self) -> int:
        return self._steady.at(self.now)


#: An answer of up to this many bytes is sent however many wait to be read.
_SMALL_ANSWER: Final = 128 * 1024

#: Requests about keys: they need a formed cluster, a current epoch and an index.
_READS: Final = (Lookup, Fetch, Scan, ScanKeys, Count)
_WRITES: Final = (Put, Delete, Apply)
_DATA: Final = {*_READS, *_WRITES, Push, Hint}

#: Questions of other peers, answered by tasks.
_QUESTIONS: Final[dict[type, Callable[..., Answering]]] = {
    DigestsRequest: handlers.digests,
    BucketsRequest: handlers.buckets,
    VersionsRequest: handlers.versions,
    CopyRequest: handlers.copy,
    Pull: handlers.pull,
    FloorRequest: handlers.floor,
    SeenRequest: handlers.seen,
    SetHorizon: handlers.horizon,
    ReleaseFloor: handlers.release,
}

#: Outcomes of requests that were not refused. An accepted request is answered later.
_ANSWERED: Final = "Answered"
_ACCEPTED: Final = "Accepted"

#: A plain number: arithmetic with flags takes longer than all the rest of counting.
_DIGEST: Final = Want.DIGEST.value
