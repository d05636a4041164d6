"""The assembly of a peer's core: its parts, made from the settings and connected to each other.

There are three layers, each made from those before it: the state that the parts share, the services
that work on it, and the handlers of messages.
"""

from __future__ import annotations

from typing import NamedTuple

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import SLICE, LocalPartitions
from dstash.peer.admission.admin_requests import AdminRequests
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.checks import Admission
from dstash.peer.admission.questions import PeerQuestions
from dstash.peer.admission.topology_news import TopologyNews
from dstash.peer.admission.write_floor import WriteFloor
from dstash.peer.background.background import Background
from dstash.peer.background.maintenance import Pace
from dstash.peer.commits.group import GroupCommit
from dstash.peer.dispatch.control import ControlRequests
from dstash.peer.dispatch.deferred import DeferredRequests
from dstash.peer.dispatch.outgoing import OutgoingRequests
from dstash.peer.dispatch.rejections import Rejections
from dstash.peer.dispatch.replies import ReplyEncoder
from dstash.peer.health import Health
from dstash.peer.keyspaces import Keyspaces
from dstash.peer.reads import Reader
from dstash.peer.registers.service import Registers
from dstash.peer.sharing.serving import Serving
from dstash.peer.short.checks import ShortChecks
from dstash.peer.short.reads import ShortReads
from dstash.peer.short.writes import ShortWrites
from dstash.peer.telemetry.history import History
from dstash.peer.telemetry.meters import Meters
from dstash.store.interface import Store


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


class SharedState:
    """The state of a peer that its services and handlers share.

    Args:
        now: the start, in milliseconds since 1970.
    """

    def __init__(self, settings: Settings, store: Store, now: int) -> None:
        peer = settings.peer
        self.local_partitions = LocalPartitions(store, settings.slice_records, now)
        self.clock = ClusterClock(
            peer, settings.max_clock_skew_ms, lambda: self.local_partitions.present, now
        )
        self.floor = WriteFloor(peer, self.local_partitions, self.clock)
        self.keyspaces = Keyspaces(peer)
        self.hints = Hints(settings.hint_limit, settings.hint_max_age_ms)
        self.backlog = Backlog(settings.max_waiting_bytes, settings.max_requests)
        self.meters = Meters()


class Services:
    """What works on the state of a peer: commits, tasks, health, admission, registers.

    Args:
        now: the start, in milliseconds since 1970.
    """

    def __init__(self, settings: Settings, state: SharedState, now: int) -> None:
        self.group_commit = GroupCommit(
            state.backlog,
            state.local_partitions,
            state.keyspaces,
            state.clock,
            max_clock_skew_ms=settings.max_clock_skew_ms,
            disk_reserve=settings.disk_reserve,
        )
        self.background = Background(
            settings.peer,
            state.local_partitions,
            state.clock,
            state.floor,
            hints=state.hints,
            backlog=state.backlog,
            commit=self.group_commit.add,
            pace=settings.pace,
            now=now,
        )
        maintenance = self.background.maintenance
        self.history = History(state.meters, now)
        self.health = Health(
            self.background.replica,
            maintenance,
            state.backlog,
            state.meters,
            settings.disk_reserve,
            now,
        )
        self.serving = Serving(
            settings.peer, state.local_partitions, self.background.scheduler, self.health
        )
        self.admission = Admission(
            settings.peer, self.health, state.backlog, state.floor, settings.max_waiting_bytes
        )
        self.registers = Registers(
            settings.peer,
            state.clock,
            state.local_partitions,
            backlog=state.backlog,
            hints=state.hints,
            propose=maintenance.propose,
            steady_time=self.background.steady_time,
            preempted=self.group_commit.preempted,
            is_durable=settings.is_durable,
            max_clock_skew_ms=settings.max_clock_skew_ms,
        )
        self.health.describe_registers = self.registers.describe


class Handlers:
    """What the messages of a peer are dispatched to, by their kind."""

    def __init__(self, settings: Settings, state: SharedState, services: Services) -> None:
        peer, admission, health = settings.peer, services.admission, services.health
        background = services.background
        self.replies = ReplyEncoder()
        self.rejections = Rejections(
            health.counts, health.refusals, state.backlog, self.replies, services.registers.refuse
        )
        self.control = ControlRequests(
            peer,
            settings.cluster,
            settings.max_clock_skew_ms,
            admission=admission,
            health=health,
            maintenance=background.maintenance,
            local_partitions=state.local_partitions,
            history=services.history,
            serving=services.serving,
        )
        self.reader = Reader(state.local_partitions, state.meters)
        self.short_checks = ShortChecks(
            peer, state.local_partitions, state.keyspaces, admission=admission, health=health
        )
        self.short_reads = ShortReads(
            state.local_partitions,
            self.short_checks,
            admission=admission,
            backlog=state.backlog,
            meters=state.meters,
        )
        self.short_writes = ShortWrites(
            state.local_partitions,
            self.short_checks,
            floor=state.floor,
            clock=state.clock,
            backlog=state.backlog,
            meters=state.meters,
            max_clock_skew_ms=settings.max_clock_skew_ms,
            disk_reserve=settings.disk_reserve,
        )
        self.questions = PeerQuestions(state.local_partitions, background.scheduler, state.backlog)
        self.deferred = DeferredRequests(
            state.local_partitions,
            state.keyspaces,
            admission=admission,
            backlog=state.backlog,
            hints=state.hints,
            background=background,
            registers=services.registers,
            questions=self.questions,
        )
        self.admin_requests = AdminRequests(peer, state.clock, state.backlog, self.replies.encode)
        self.topology_news = TopologyNews(
            peer,
            state.local_partitions.store.store_id,
            admission.trusted,
            health.counts,
            background.maintenance.ask_topology,
        )
        self.outgoing = OutgoingRequests(
            background, services.registers, self.topology_news, health.counts
        )
