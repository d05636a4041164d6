"""The peer without I/O: messages in, messages out; time, store and view are handed in.

The shell calls ``receive`` for each message, takes a ``Commit`` with ``next_commit`` whenever the
committing thread is free, runs it there, and gives it back to ``committed``. Reads are answered
at once, from a snapshot; writes when their commit is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any, Final, NamedTuple, Protocol

import structlog

from dstash.about import __version__
from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication import handlers
from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.handlers import PAGE_BYTES, Answering
from dstash.cluster.replication.partitions import PROMISE_MS, SLICE, LocalPartitions
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Merge, Outgoing, Scheduler
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import State, Topology
from dstash.cluster.topology.view import View
from dstash.errors import (
    BelowFloor,
    DeadlinePassed,
    DStashError,
    Forming,
    NotReady,
    ProtocolError,
    StaleEpoch,
    StoreError,
    StoreFailed,
    Unauthorised,
    WrongCluster,
)
from dstash.limits import CLOCK_SKEW_LIMIT, check_index
from dstash.peer.admission.authority import Authority
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.future_epochs import FutureEpochRequests
from dstash.peer.admission.requests import LIMITS, PendingAdminRequest, Reply, Request
from dstash.peer.commits import Commit, Internal, Rules, Ticket, WaitingWrite, check_floor
from dstash.peer.http.dashboard.observer import Observer
from dstash.peer.maintenance import Maintenance, Pace, Proposal
from dstash.peer.reads import Reader
from dstash.peer.recent_deletes import RecentDeletes
from dstash.peer.telemetry.history import History, pack_samples
from dstash.peer.telemetry.meters import Meters
from dstash.peer.telemetry.tracing import Tracer
from dstash.store.interface import DiskState, Store
from dstash.store.record import Keyspace, keyspace, locate
from dstash.version import Stamp, Steady, newest_stamp, stamp_at, stamp_milliseconds
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import (
    AdminRequest,
    Apply,
    Count,
    Delete,
    Error,
    Fetch,
    Hello,
    Lookup,
    Ping,
    Pong,
    Put,
    Repair,
    Scan,
    ScanKeys,
    StatusReply,
    StatusRequest,
    TopologyReply,
    TopologyRequest,
    Want,
    Welcome,
)
from dstash.wire.protocol import HIGHEST_PROTOCOL, LOWEST_PROTOCOL, common_protocol, mismatch
from dstash.wire.replication import (
    BucketsRequest,
    ClockReply,
    ClockRequest,
    CopyRequest,
    DigestsRequest,
    FloorRequest,
    Hint,
    HistoryReply,
    HistoryRequest,
    Pull,
    Push,
    ReleaseFloor,
    SeenRequest,
    SetHorizon,
    VersionsRequest,
)
from dstash.wire.shapes import Message, weight_of

_log = structlog.get_logger("dstash.peer")


class Settings(NamedTuple):
    """What the core needs to know of the configuration."""

    peer: str
    cluster: str
    max_clock_skew_ms: int = 500
    hint_limit: int = 100_000
    hint_max_age_ms: int = 3 * 3600 * 1000
    pace: Pace = Pace()
    disk_reserve: int = 0
    #: Bytes of writes that may wait for the disk before new ones are told to come back.
    max_waiting_bytes: int = 64 * 1024 * 1024
    #: Requests that may wait for the disk, or for an answer that takes time.
    max_requests: int = 1024
    #: Records that are walked between two turns of the scheduler.
    slice_records: int = SLICE


class Unread(Protocol):
    """What clients have left unread of their answers; senders are routing ids."""

    def defers(self, sender: bytes) -> bool:
        """Whether a read of a client should wait, for its answer might have no room."""

    def lacks_room(self, sender: bytes) -> bool:
        """Whether there is no room for a large answer to a client."""


class _NothingUnread:
    def defers(self, sender: bytes) -> bool:
        return False

    def lacks_room(self, sender: bytes) -> bool:
        return False


class PeerCore:
    """One peer.

    ``view`` is None until the peer has joined. ``wants_refresh`` is set when a request spoke of
    a newer epoch: the shell should look at the membership and ``install`` what it finds.
    ``now`` is the time of the start.
    ``tracer`` notes when what happened to requests that are part of a trace; None: nobody does.
    """

    def __init__(
        self, settings: Settings, store: Store, now: int, tracer: Tracer | None = None
    ) -> None:
        self.settings = settings
        self.store = store
        self.tracer = tracer
        self.now = self._started = now
        self.local_partitions = LocalPartitions(store, settings.slice_records, now)
        self.clock = ClusterClock(
            settings.peer, settings.max_clock_skew_ms, lambda: self.local_partitions.present, now
        )
        self.local_partitions.latest_promise = self._latest_promise
        #: Writes of clients up to there are refused, besides those below the floor.
        self._guard: Stamp = 0
        if self.local_partitions.kept_floor is None:
            self._guard_floor()
        self._was_wrong = False
        self.local_partitions.promise_ms = min(PROMISE_MS, settings.pace.gc_interval_ms // 2)
        self._backlog = Backlog(settings.max_waiting_bytes, settings.max_requests)
        self.hints = Hints(settings.hint_limit, settings.hint_max_age_ms)
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
        self.view: View | None = None
        self.stopping = False
        self.not_ready: str | None = "the peer is starting"
        #: What the peer waits for before it has a view; empty when nothing is known.
        self.waits_for = ""
        self.wants_refresh = False
        #: A later topology that another member goes by, for the case that the membership is away.
        self.heard_topology: Topology | None = None
        self.failure: DStashError | None = None
        self.unread: Unread = _NothingUnread()
        #: What is wrong with this peer although it serves, by source; for people.
        self.problems: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._owned: frozenset[int] = frozenset()
        self._spaces: dict[str, Keyspace] = {}
        self._future_epoch = FutureEpochRequests(settings.max_waiting_bytes)
        self._reader = Reader(self.local_partitions, self.meters)
        self._recent_deletes = RecentDeletes()
        self._authority: Authority | None = None
        self._topology_bytes = b""
        self._answers: list[Reply] = []
        self._admin_requests: list[PendingAdminRequest] = []

    # -- what the shell calls

    @property
    def authority(self) -> Authority | None:
        """Who may do what; None in an open cluster, where everybody may do everything."""
        return self._authority

    def authorise(self, authority: Authority) -> None:
        """Go by another list of keys, from the next message on."""
        self._authority = authority
        if self.view is not None:
            self._topology_bytes = self._trusted(self.view.topology).encode()

    def receive(
        self, sender: bytes, parts: list[bytes], now: int, user: str | None = None
    ) -> list[Reply]:
        """Take a message; ``now`` is this peer's clock in milliseconds since 1970.

        ``user`` is the public key that the sender has proved to be its own; None without CURVE.
        """
        try:
            envelope = decode(parts)
        except ProtocolError as error:
            self.counts["malformed"] += 1
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
        """Tell the sender of a message to come back later, whatever it wants."""
        try:
            envelope = decode(parts)
        except ProtocolError:
            return []
        self.counts["rejected_as_busy"] += 1
        ticket = Ticket(sender, envelope.correlation, envelope.protocol)
        return [self._reply(ticket, Error.of(self._backlog.busy(why)), now)]

    def receive_answer(self, peer: str, parts: list[bytes], now: int) -> None:
        """Take a message from another peer, on a connection that this one made."""
        self._set_time(now)
        try:
            envelope = decode(parts)
        except ProtocolError:
            self.counts["malformed"] += 1
            return
        self.clock.answered(peer, envelope.correlation, envelope.moment)
        if self.view is not None and envelope.epoch > self.view.epoch:
            self.wants_refresh = True
            if isinstance(envelope.message, Error):
                self._hear_topology(peer, envelope.message.error(), self.view)
        self.scheduler.answered(peer, envelope)

    def _hear_topology(self, peer: str, error: DStashError, view: View) -> None:
        """Take the topology of a member that goes by a later epoch, if it may be gone by."""
        encoded = error.details.get("topology")
        if not isinstance(error, StaleEpoch) or not isinstance(encoded, bytes):
            return
        try:
            found = Topology.decode(encoded)
        except ProtocolError:
            self.counts["malformed"] += 1
            return
        known = self.heard_topology or view.topology
        me = found.member(self.settings.peer)
        is_ours = me is not None and me.store_id == self.store.store_id
        is_usable = found.formed and found.restored is None
        is_successor = found.cluster_id == view.topology.cluster_id and found.epoch > known.epoch
        if peer in view.members and is_ours and is_usable and is_successor:
            self.heard_topology = self._trusted(found)

    def lost(self, peer: str) -> None:
        """Take note that the connection to another peer broke."""
        self.scheduler.lost(peer)
        self.observer.lost(peer)

    def unsent(self, outgoing: Outgoing) -> None:
        """Take note that a message to another peer could not be sent."""
        self.clock.unanswered(outgoing.correlation)
        self.scheduler.unsent(outgoing.peer, outgoing.correlation)

    def tick(self, now: int) -> tuple[list[Reply], list[Outgoing]]:
        """Let maintenance go on a little; returns answers, and messages for other peers."""
        self._set_time(now)
        self._watch_clock()
        self._watch_claims()
        steady = self._steady.at(now)
        if not self.stopping:
            self.maintenance.tick(steady)
            self.observer.tick(self.view, now)
        elif not self._backlog.has_work:
            self.maintenance.freshness.say_farewell(steady)
        self.history.note(now)
        outgoing = self.scheduler.tick(steady)
        for one in outgoing:
            self.clock.sent(one.correlation)
        answers, self._answers = self._answers + self._expire_future_epoch(now), []
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
        """Return what operators ordered, and forget it."""
        orders, self._admin_requests = self._admin_requests, []
        return orders

    def take_proposals(self) -> list[Proposal]:
        """Return what should change in the topology, and forget it."""
        proposals, self.maintenance.proposals = self.maintenance.proposals, []
        return proposals

    def install(self, view: View, now: int) -> list[Reply]:
        """Take a view, unless it is older than the one at hand; answer who waited for it."""
        if self.view is not None and view.epoch < self.view.epoch:
            return []
        if self.view is None or view.epoch != self.view.epoch:
            self._topology_bytes = self._trusted(view.topology).encode()
            self._owned = view.owned_by(self.settings.peer)
            self._spaces.clear()
        before, self.view = self.view, view
        self._set_time(now)
        self._install_clock(before, view)
        self.wants_refresh = False
        if self.heard_topology is not None and self.heard_topology.epoch <= view.epoch:
            self.heard_topology = None
        self.maintenance.install(view, self._steady.at(now))
        early = self._future_epoch.take()
        return [reply for request in early for reply in self._handle(request, now)]

    def next_commit(self, now: int) -> Commit | None:
        """Return the writes that wait, as one commit; None when none does."""
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
            self._owned,
            self.store.has_room(self.settings.disk_reserve),
            self.store.has_room(self.settings.disk_reserve // 2),
            self.store.high_water,
            self.clock.highest_possible(),
        )
        return Commit(group, rules, recent=self._recent_deletes)

    def committed(self, commit: Commit, now: int) -> list[Reply]:
        """Take back a commit that was run; returns the acks."""
        self.failure = self.failure or commit.fatal
        self.counts["commits"] += 1
        # A majority may hold later stamps by now: the client tries again in a moment.
        self.clock.is_due = self.clock.is_due or commit.skewed
        self.local_partitions.changed(commit.changed, now)
        self.local_partitions.corruption.report(commit.corrupt)
        for internal, error in commit.done:
            internal.done(error)
        self._backlog.committed(commit.waiting, now)
        return [self._reply(ticket, message, now) for ticket, message in commit.replies]

    @property
    def has_work(self) -> bool:
        """Whether writes wait for a commit, or are in one; or others wait for the last word."""
        if self._backlog.has_work:
            return True
        return self.stopping and self.maintenance.freshness.has_farewell(self._steady_time())

    def newest_lives(self) -> dict[str, Life]:
        """Return the newest life seen of each store, for the topology. Any thread may call this."""
        return self.maintenance.freshness.newest_lives()

    def why_not_ready(self) -> str | None:
        """Return None when the peer serves requests, else the reason why not."""
        if self.stopping:
            return "the peer is stopping"
        if self.not_ready is not None:
            return self.not_ready
        if self.view is not None and not self.maintenance.freshness_confirmed:
            return self.maintenance.freshness.why_not()
        if self.view is None:
            return self.waits_for or "the peer has not joined a cluster"
        if not self.view.topology.formed:
            return str(self._forming(self.view))
        member = self.view.members.get(self.settings.peer)
        if member is None:
            return "the peer is not a member of the cluster"
        if not member.synced:
            return "the peer's store is new or too old, and is being filled from other replicas"
        if member.state is State.JOINING:
            return "the peer is joining; its data is being copied from other replicas"
        if self.store.disk_state() is DiskState.EXHAUSTED:
            return DiskState.EXHAUSTED.value
        if not self.store.has_room(self.settings.disk_reserve):
            return DiskState.FULL.value
        if self.clock.is_wrong:
            return self._wrong_clock()
        return self.store.check_writable()

    @property
    def ahead_ms(self) -> int:
        """How far the newest stamp, or what was promised, is ahead of the cluster's time."""
        return self.clock.ahead_ms(self.local_partitions.present)

    # -- time

    def _set_time(self, now: int) -> None:
        self.now = now
        self.clock.advance(now)

    def _guard_floor(self) -> None:
        """Refuse writes stamped before now: what this peer promised about them is not known.

        That is so for a store that is new, that is older than it was, or that was last used by a
        version that kept no floor. Until other clocks are known the only time is its own.
        """
        self._guard = stamp_at(self.clock.time())

    def _watch_clock(self) -> None:
        """Draw the consequences when the cluster's time becomes known, or differs from ours."""
        if not self.clock.knows_majority:
            return
        # Promises were made by the cluster's time. A later guard came from clocks that were ahead.
        self._guard = min(self._guard, stamp_at(self.clock.time()))
        if self.clock.is_wrong != self._was_wrong:
            self._was_wrong = not self._was_wrong
            if self._was_wrong:
                _log.warning(self._wrong_clock(), offset_ms=self.clock.offset_ms)
            else:
                _log.info("the clock is right again", offset_ms=self.clock.offset_ms)

    def _watch_claims(self) -> None:
        """Show that a client saw a newer state of the store, for as long as nothing refutes it."""
        text = self.maintenance.freshness.suspicion()
        if text == self.problems.get(_CLAIMS, ""):
            return
        if text:
            _log.warning(text, store=self.store.store_id)
            self.problems[_CLAIMS] = text
        else:
            del self.problems[_CLAIMS]

    def _wrong_clock(self) -> str:
        offset = self.clock.offset_ms
        where = "ahead of" if offset > 0 else "behind"
        return f"the clock is {abs(offset)} ms {where} the cluster's; set it by NTP"

    def _latest_promise(self) -> Stamp:
        if not self.clock.knows_majority:
            raise NotReady(f"{self.settings.peer}: the clocks of a majority are not known yet")
        grace = self.local_partitions.grace(self.now)
        if not grace:
            return self.clock.latest()
        return stamp_at(self.clock.time() - grace)

    def _install_clock(self, before: View | None, view: View) -> None:
        topology, me = view.topology, self.settings.peer
        holders = {one.id for one in topology.before() if one.synced}
        if topology.replicas == 1:  # a peer alone is the quorum of what it holds
            holders = {me}
        self.clock.install(view.members.keys(), holders, view.alive)
        was = before.members.get(me) if before else None
        member = view.members.get(me)
        is_lost = member is not None and not member.synced
        if is_lost and (was is None or was.synced):
            self._guard_floor()

    # -- inside

    def _handle(self, request: Request, now: int) -> list[Reply]:
        deadline, message = request.envelope.moment, request.envelope.message
        if deadline and deadline < now:
            self.counts["late"] += 1
            if request.notes is not None:
                request.notes.late()
            if isinstance(message, Hint):  # which has no answer
                return []
            # The clock in the answer tells a client that goes by a wrong one to try again.
            late = DeadlinePassed(f"the request came {now - deadline} ms after its deadline")
            return [self._reply(request.ticket._replace(notes=None), Error.of(late), now)]
        level = ""
        if type(message) is Lookup:
            level = "quorum" if message.want & _DIGEST else "one"
        try:
            answer = self._answer(request, now)
            outcome = _ACCEPTED if answer is None else _ANSWERED
        except StoreError as error:
            # The disk, or the file, failed: this peer must stop, and others must answer.
            self.failure = self.failure or error
            answer, outcome = Error.of(NotReady(f"{self.settings.peer}: {error}")), "NotReady"
        except DStashError as error:
            outcome = type(error).__name__
            self.counts[f"refused:{outcome}"] += 1
            answer = Error.of(error)
        self.meters.requests[type(message).__name__, level, outcome] += 1
        return [] if answer is None else [self._reply(request.ticket, answer, now)]

    def _answer(self, request: Request, now: int) -> Message | None:
        envelope = request.envelope
        message = envelope.message
        if self._authority is not None:
            self._authority.check(request.user, message)
        if isinstance(message, AdminRequest):
            self._admin_requests.append(self._await_admin_reply(request, message))
            return None
        plain = _PLAIN.get(type(message))
        if plain is not None:
            return plain(self, message, now)
        if type(message) not in _DATA and type(message) not in _QUESTIONS:
            raise ProtocolError(f"a {type(message).__name__} is not a request")
        if self._is_future_epoch(envelope):
            self._wait_for_topology(request)
            return None
        self._check_ready(envelope)
        self._check_membership(request)
        if isinstance(message, _READS):
            self._check_synced()
            self._check_unread(self.unread.defers, request)
            self._backlog.served()
            answer = self._reader.read(message, self._keyspace(message.index), now)
            if weight_of(answer) > _SMALL_ANSWER:
                self._check_unread(self.unread.lacks_room, request)
            return answer
        self._begin(request, now)
        return None

    def _begin(self, request: Request, now: int) -> None:
        """Begin what is answered later, or never."""
        ticket, message = request.ticket, request.envelope.message
        if isinstance(message, _WRITES):
            self._check_freshness()
            if not isinstance(message, Apply):
                self._check_floor(message, now)
            self._enqueue(ticket, message, self._keyspace(message.index))
        elif isinstance(message, Push):
            if not message.compared:  # else the other partitions would count as busy meanwhile
                self.local_partitions.pushed(now)
            self._enqueue(ticket, message, None)
        elif isinstance(message, Hint):
            self._take_hint(message, now)
        else:
            if not isinstance(message, SeenRequest):  # which is how the others find out themselves
                self._check_freshness()
            self._check_unread(self.unread.lacks_room, request)
            self._begin_answer(request, _QUESTIONS[type(message)], now)

    def _check_floor(self, message: Put | Delete, now: int) -> None:
        """Refuse a write that this peer promised to refuse.

        It is checked when it comes, not when it is committed: a promise is answered after all
        writes that came before it are on disk.
        """
        try:
            check_floor(message.version, max(self.local_partitions.floor, self._guard))
        except BelowFloor:
            late = self.clock.time() - stamp_milliseconds(newest_stamp(message.version))
            self.local_partitions.arrived_late(late, now)
            raise

    def _is_future_epoch(self, envelope: Envelope) -> bool:
        return self.view is not None and envelope.epoch > self.view.epoch

    def _wait_for_topology(self, request: Request) -> None:
        is_first = not self._future_epoch
        if not self._future_epoch.add(request):
            raise self._backlog.busy("too many requests wait for the topology")
        # One look for all that wait: an epoch that was made up must not keep the keeper busy.
        self.wants_refresh = self.wants_refresh or is_first

    def _expire_future_epoch(self, now: int) -> list[Reply]:
        """Answer those that have waited too long: nobody here knows of their epoch."""
        return [
            self._reply(
                request.ticket,
                Error.of(NotReady(f"epoch {request.envelope.epoch} is not known here")),
                now,
            )
            for request in self._future_epoch.expired(now)
        ]

    def _check_membership(self, request: Request) -> None:
        """Refuse what only peers may ask to those that the topology does not list."""
        authority, view, message = self._authority, self.view, request.envelope.message
        members = view.topology.members if view else ()
        if authority is not None and authority.needs_membership(request.user, message):
            members = tuple(one for one in members if one.key == request.user)
            if not members:
                raise Unauthorised("no member of the cluster has this key")
        if isinstance(message, SeenRequest) and message.peer not in {one.id for one in members}:
            # What is said there is remembered: by members, and of themselves.
            raise Unauthorised(f"{message.peer!r} is not the member that asks")

    def _trusted(self, topology: Topology) -> Topology:
        """Return the topology as others may know it: without keys that nobody here vouches for.

        Who can write to the membership can add a member, but cannot make anyone talk to it.
        """
        authority = self._authority
        if authority is None:
            return topology
        members = tuple(
            one if authority.is_peer(one.key) else replace(one, key="") for one in topology.members
        )
        return replace(topology, members=members)

    def _check_ready(self, envelope: Envelope) -> None:
        view = self.view
        # A peer that stops still hears how new other stores are that stop with it.
        is_stopping = self.stopping and not isinstance(envelope.message, SeenRequest)
        if is_stopping or self.not_ready or view is None:
            raise NotReady(f"{self.settings.peer}: {self.why_not_ready()}")
        if envelope.epoch < view.epoch:
            raise StaleEpoch(
                f"epoch {envelope.epoch} is over; now is {view.epoch}",
                topology=self._topology_bytes,
            )
        if not view.topology.formed:
            raise self._forming(view)

    def _forming(self, view: View) -> Forming:
        topology = view.topology
        return Forming(
            f"cluster {topology.cluster!r} has {len(topology.members)} of at least "
            f"{topology.min_peers} peers (min_peers)"
        )

    def _keyspace(self, index: str) -> Keyspace:
        space = self._spaces.get(index)
        if space is None:
            # Behind this stands a cache for all peers of a process; but to find something there
            # takes a comparison of all partitions, if they are the same as before the last change.
            if len(self._spaces) >= _SPACES:
                self._spaces.clear()
            space = self._spaces[index] = keyspace(check_index(index), self._owned)
        return space

    def _check_unread(self, refuses: Callable[[bytes], bool], request: Request) -> None:
        if refuses(request.ticket.sender):
            raise self._backlog.busy("too many answers wait for their clients to read them")

    def _check_freshness(self) -> None:
        if not self.maintenance.freshness_confirmed:
            raise NotReady(f"{self.settings.peer}: {self.why_not_ready()}")

    def _check_synced(self) -> None:
        self._check_freshness()
        member = self.view.members.get(self.settings.peer) if self.view else None
        if member is None or not member.synced:
            raise NotReady(f"{self.settings.peer}: {self.why_not_ready()}")

    def _enqueue(
        self, ticket: Ticket, message: Put | Delete | Apply | Push, space: Keyspace | None
    ) -> None:
        weight = len(message.keys) + len(
            getattr(message, "payloads", b"") or getattr(message, "records", b"")
        )
        self._backlog.admit(WaitingWrite(ticket, message, space, weight))
        if ticket.notes is not None:
            ticket.notes.waits()

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

    def _steady_time(self) -> int:
        return self._steady.at(self.now)

    def _begin_answer(self, request: Request, answer: Callable[..., Answering], now: int) -> None:
        ticket, question = request.ticket, request.envelope.message
        # The question is kept until it is answered, and so is what was found so far.
        let_go = self._backlog.hold(request.size + PAGE_BYTES)

        def ended(result: Message, failure: DStashError | None) -> None:
            let_go()
            message = result if failure is None else Error.of(failure)
            self._answers.append(self._reply(ticket, message, self.now))

        task = answer(self.local_partitions, question, now)
        self.scheduler.spawn(f"answer:{type(question).__name__}", task, ended)

    def _await_admin_reply(self, request: Request, order: AdminRequest) -> PendingAdminRequest:
        if order.action == "lower-floors":
            if not self.clock.knows_majority:
                raise NotReady(f"{self.settings.peer}: the clocks of a majority are not known yet")
            order = replace(order, stamp=stamp_at(self.clock.time()))
        let_go = self._backlog.hold(request.size)

        def answer(message: Message, now: int) -> list[Reply]:
            let_go()
            return [self._reply(request.ticket, message, now)]

        return PendingAdminRequest(order, answer)

    def _take_hint(self, hint: Hint, now: int) -> None:
        if self.view is not None and hint.peer in self.view.members:
            keys = codec.unpack_keys(hint.keys)
            self.hints.add(hint.peer, locate(self._keyspace(hint.index), keys), self._steady_time())

    def _hello(self, hello: Hello, now: int) -> Message:
        if common_protocol(hello.lowest, hello.highest) is None:
            raise mismatch(f"{hello.lowest} to {hello.highest}")
        if hello.cluster not in ("", self.settings.cluster):
            raise WrongCluster(f"this is cluster {self.settings.cluster!r}, not {hello.cluster!r}")
        self.maintenance.freshness.hear_client(hello.seen)
        if self.view is None:
            raise NotReady(f"{self.settings.peer}: {self.why_not_ready()}")
        return Welcome(
            self.settings.cluster,
            self.settings.peer,
            LOWEST_PROTOCOL,
            HIGHEST_PROTOCOL,
            LIMITS | {CLOCK_SKEW_LIMIT: self.settings.max_clock_skew_ms},
            self._topology_bytes,
            sorted(self.view.alive),
            self.maintenance.freshness.store_facts(),
        )

    def _ask_topology(self, message: TopologyRequest, now: int) -> Message:
        if self.view is None:
            raise NotReady(f"{self.settings.peer}: {self.why_not_ready()}")
        return TopologyReply(self._topology_bytes, sorted(self.view.alive))

    def _ping(self, message: Ping, now: int) -> Message:
        return Pong()

    def _clock_request(self, message: ClockRequest, now: int) -> Message:
        if self.view is None or not self.maintenance.freshness_confirmed:
            raise NotReady(f"{self.settings.peer}: {self.why_not_ready()}")
        return ClockReply(now, self.local_partitions.present)

    def _status(self, message: StatusRequest, now: int) -> Message:
        return StatusReply(self.status())

    def _repair(self, message: Repair, now: int) -> Message:
        if self.view is None or self.not_ready:
            raise NotReady(f"{self.settings.peer}: {self.why_not_ready()}")
        self.maintenance.repair()
        return StatusReply(self.status())

    def _history(self, message: HistoryRequest, now: int) -> Message:
        return HistoryReply(pack_samples(self.history.since(message.after)))

    def status(self) -> dict[str, Any]:
        """Return plain facts about this peer."""
        stats = self.store.stats()
        return {
            "ready": self.why_not_ready() is None,
            "why_not_ready": self.why_not_ready() or "",
            "alerts": list(self.problems.values()),
            "records": stats.records,
            "used_bytes": stats.used_bytes,
            "map_bytes": stats.map_bytes,
            "pages": dict(stats.pages),
            "free_bytes": stats.free_bytes,
            "reserved_bytes": stats.reserved_bytes,
            "disk": self.store.disk_state().value,
            "waiting_bytes": self._backlog.waiting_bytes,
            "epoch": self._epoch(),
            "clock_offset_ms": self.clock.offset_ms,
            "ahead_ms": self.ahead_ms,
            "uptime_s": (self.now - self._started) // 1000,
            "version": __version__,
            "maintenance": self.maintenance.describe(),
            "counts": dict(self.counts + self.meters.kinds()),
        }

    def _reply(self, ticket: Ticket, message: Message, now: int) -> Reply:
        sender, correlation, protocol, notes = ticket
        if notes is not None:
            notes.answered(message)
        epoch = self.view.epoch if self.view else 0
        return Reply(sender, encode(Envelope(correlation, epoch, now, message, protocol)))


#: Requests that are answered whatever the state of the cluster.
_PLAIN: Final[dict[type, Callable[[PeerCore, Any, int], Message]]] = {
    Hello: PeerCore._hello,
    Ping: PeerCore._ping,
    TopologyRequest: PeerCore._ask_topology,
    StatusRequest: PeerCore._status,
    Repair: PeerCore._repair,
    HistoryRequest: PeerCore._history,
    ClockRequest: PeerCore._clock_request,
}

#: An answer of so many bytes is given however many wait to be read.
_SMALL_ANSWER: Final = 128 * 1024

#: Indexes whose keyspace is at hand, at most.
_SPACES: Final = 32

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


#: The source of the trouble that a client has seen a newer state of the store.
_CLAIMS: Final = "claims"

#: Outcomes of requests that were not refused. What was accepted is answered later.
_ANSWERED: Final = "Answered"
_ACCEPTED: Final = "Accepted"

#: A plain number: arithmetic with flags takes longer than all the rest of counting.
_DIGEST: Final = Want.DIGEST.value
