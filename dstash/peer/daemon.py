"""The daemon: builds a peer from its settings, runs it, and closes it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from functools import cached_property, partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import structlog

from dstash import events, log, threads
from dstash.cluster.membership.interface import Membership
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.joining import check_cluster, was_in_cluster, was_removed
from dstash.config import PeerSettings
from dstash.errors import (
    ConfigError,
    DStashError,
    MembershipUnreachable,
    UsageError,
)
from dstash.peer.admission.key_watcher import open_transport
from dstash.peer.assembly import Settings
from dstash.peer.background.maintenance import Pace
from dstash.peer.core import PeerCore
from dstash.peer.http.pages import Dashboard
from dstash.peer.http.server import Answer, HttpServer
from dstash.peer.membership_agent import MembershipAgent, may_wait
from dstash.peer.server import PeerServer, wall
from dstash.peer.sharing.outlet import outlet
from dstash.peer.sharing.reader_watch import ReaderWatch
from dstash.peer.supervision.compactions import Compactions, Schedule
from dstash.peer.supervision.notify import notify
from dstash.peer.supervision.opening import open_membership, open_store, peer_id, replace_removed
from dstash.peer.supervision.store_watch import StoreWatch
from dstash.peer.supervision.watchdog import STOP_MARGIN, Watchdog
from dstash.peer.telemetry.tracing import Tracer
from dstash.store.crashes import last_fault, note_faults
from dstash.store.directory import is_marked_removed, set_aside_stores, unmark_removed
from dstash.store.lmdb import LmdbStore
from dstash.store.sharing.heartbeat import Heartbeat
from dstash.store.sharing.places import StorePlace, this_machine, why_not_shared
from dstash.telemetry import missing
from dstash.types import Durability
from dstash.wire.connections.connections import Limits
from dstash.wire.curve import ZapHandler
from dstash.wire.router import Router
from dstash.wire.sockets import Context

if TYPE_CHECKING:
    from dstash.peer.http.metrics import PeerMetrics

_log = structlog.get_logger("dstash.peer")

#: Listening there is listening on all addresses: others need another one to connect to.
_EVERYWHERE = ("0.0.0.0", "::", "*")  # noqa: S104  # compared, not bound

#: A loop whose iteration takes longer than this (seconds) hangs.
_LOOP_LIMIT_S = 10.0
#: The limit (seconds) of other threads, which may wait several times for a disk or for Consul.
_THREAD_LIMIT_S = 60.0


class Daemon:
    """One peer process.

    Raises (from the constructor, which leaves no resource open):
        StoreError: the data directory cannot be used.
        UsageError: an address cannot be bound.
        MembershipError: the id is in use, or the membership refuses access.
    """

    def __init__(self, settings: PeerSettings) -> None:
        self.settings = settings
        self._undo: list[Any] = []
        self._failure: DStashError | None = None
        self._server: PeerServer | None = None
        try:
            self._build()
        except BaseException:
            self._close()
            raise

    def _build(self) -> None:
        settings = self.settings
        self._watchdog = Watchdog(self._fail, self._stop, settings.drain_seconds + STOP_MARGIN)
        self._undo.append(self._watchdog.close)
        self._transport = open_transport(settings)
        store = open_store(settings)
        self._undo.append(lambda: store.close())
        check_cluster(store, settings.cluster, str(settings.data_dir))
        self.peer = peer_id(settings, store)
        log.identify(peer=self.peer)
        membership = open_membership(settings, patient=was_in_cluster(store))
        self._undo.append(membership.close)
        if self._was_removed(store, membership):
            store = replace_removed(settings, store)
        self._store = store
        self._note_faults()
        tracer = self._open_tracer()
        context = Context(keys=self._transport.keys, brief_time_slices=True)
        self._undo.append(context.close)
        router = self._open_router(context)
        self._undo.append(lambda: router.close_after(0))
        self.core = PeerCore(_core_settings(settings, self.peer), store, wall(), tracer)
        self.server = PeerServer(
            self.core,
            router,
            context,
            drain=settings.drain_seconds,
            security=self._transport.security,
        )
        self.core.health.set_aside = partial(set_aside_stores, settings.data_dir)
        self.readers = ReaderWatch(store, partial(self.server.problem, "readers"))
        self.core.health.describe_readers = self.readers.describe
        if settings.share_reads:
            self._share_reads(store)
        schedule = Schedule(settings.compact_when_free, settings.compact_min_bytes)
        self.compactions = Compactions(store, schedule)
        self.readers.on_held = lambda readers: self.compactions.suggest("a snapshot is held")
        self.core.health.describe_compaction = self.compactions.describe
        self.core.health.order_compaction = self.compactions.order
        self._server = self.server
        self.http = self._open_http()
        self.address = _advertised(settings, router.address)
        self.plain = _advertised(settings, router.plain_address) if router.plain_address else ""
        self.agent = self._open_agent(store, membership)

    def _was_removed(self, store: LmdbStore, membership: Membership) -> bool:
        self._unreachable: MembershipUnreachable | None = None
        try:
            return was_removed(store, self.peer, membership.read().topology)
        except MembershipUnreachable as error:
            if not may_wait(error, store):
                raise
            self._unreachable = error  # the membership agent asks again when it answers
            return False

    def _note_faults(self) -> None:
        """Log how the last process ended, and record a fault of this process for the next."""
        directory = self.settings.data_dir
        fault = last_fault(directory)
        if fault or self._store.left_by:
            _log.warning(
                events.UNCLEAN_END,
                pid=self._store.left_by,
                why=fault or "it was killed, or the machine stopped",
            )
        try:
            self._undo.append(note_faults(directory))
        except OSError as error:  # the peer serves anyway, but the cause of a crash stays unknown
            _log.warning("cannot record faults", path=str(directory), error=str(error))

    def _share_reads(self, store: LmdbStore) -> None:
        """Let clients on this machine read the store without this process."""
        directory = self.settings.data_dir.resolve()
        if why := why_not_shared(directory):
            _log.warning(events.READS_NOT_SHARED, why=why)
            return
        heartbeat = Heartbeat(directory)
        self._undo.append(heartbeat.close)
        place = StorePlace(this_machine(), str(directory), store.store_id)
        self.core.serving.share(outlet(store, heartbeat, place))
        self.server.beat = heartbeat.beat

    def _open_tracer(self) -> Tracer | None:
        endpoint = self.settings.otlp_endpoint
        if endpoint is None:
            return None
        try:
            from dstash.peer.telemetry.spans import SpanWriter
        except ImportError:
            raise missing("otlp_endpoint") from None
        try:
            spans = SpanWriter(endpoint, self.settings.cluster, self.peer)
        except ValueError as error:
            raise ConfigError(f"OpenTelemetry: {error} (see the OTEL_* variables)") from None
        # Closed last but for the watchdog: no client waits for it.
        self._undo.insert(1, spans.close)
        return Tracer(spans.take)

    def _open_router(self, context: Context) -> Router:
        settings, watcher = self.settings, self._transport.watcher
        if watcher is not None:
            ZapHandler(context, watcher.admits)
            self._undo.append(watcher.stop)
        host, plain = _bracketed(settings.bind), settings.plain_port
        return Router(
            context,
            f"tcp://{host}:{settings.port}",
            None if plain is None else f"tcp://{host}:{plain}",
            Limits.of(settings.max_connections, settings.max_bytes_in_hand),
        )

    def _open_http(self) -> HttpServer | None:
        if self.settings.http_port is None:
            return None
        pages = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/status": self._status,
            "/metrics": lambda: self._metrics.page(),
            **Dashboard(self.server, self.core).pages(),
        }
        http = HttpServer(self.settings.http_bind, self.settings.http_port, pages)
        self._undo.append(http.stop)
        return http

    def _open_agent(self, store: LmdbStore, membership: Membership) -> MembershipAgent:
        settings = self.settings
        announcement = Announcement(
            peer=self.peer,
            address=self.address,
            store_id=store.store_id,
            zone=settings.zone or socket.gethostname(),
            weight=settings.weight,
            http=_announced_http(self.http.address, settings.http_bind, self.address)
            if self.http
            else "",
            key=self._transport.keys.public if self._transport.keys else "",
            plain=self.plain,
            features=FEATURES,
        )
        agent = MembershipAgent(
            membership,
            announcement,
            store,
            cluster=settings.cluster,
            replicas=settings.replicas,
            min_peers=settings.min_peers,
            waits_to_be_added=settings.join == "manual",
            down_out_after=settings.down_out_after,
            publish=self.server.install,
            removed=self.server.stop,
            was_removed=is_marked_removed(settings.data_dir),
            added=partial(unmark_removed, settings.data_dir),
            report_wait=self.server.wait_for,
            seen=self.core.newest_lives,
            show=self._show_problem,
            failed=self.server.fail,
        )
        self._undo.append(agent.stop)
        self.server.attach(agent)
        if self._unreachable is None:
            agent.join()
        else:
            agent.go_without(self._unreachable)
        return agent

    @cached_property
    def _metrics(self) -> PeerMetrics:
        # prometheus_client takes a tenth of a peer's start, so it is imported for the first scrape.
        from dstash.peer.http.metrics import PeerMetrics

        return PeerMetrics(self.server, self.core)

    def _show_problem(self, source: str, text: str) -> None:
        self.server.problem(source, text)
        notify(f"STATUS={text}")

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; raises ``StoreFailed`` when the disk fails."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._watch_threads()
        self._watch_keys()
        self.core.health.not_ready = None
        if self.http:
            self.http.start()
        self._start_syncing()
        watch = StoreWatch(self.readers)
        self._undo.append(watch.stop)
        watch.start()
        self._undo.append(self.compactions.stop)
        self.compactions.start()
        self.agent.start()
        _log.info(
            "serving",
            peer=self.peer,
            address=self.address,
            cluster=self.settings.cluster,
            http=self.http.address if self.http else None,
        )
        notify("READY=1")  # it listens; /readyz shows whether the cluster is formed
        try:
            self.server.run()
        finally:
            self._watchdog.stopping()
            notify("STOPPING=1")
            self._close()
        _log.info("stopped", peer=self.peer)

    def _watch_keys(self) -> None:
        watcher = self._transport.watcher
        signal.signal(signal.SIGHUP, lambda *_: watcher.reload() if watcher else None)
        if watcher is not None:
            self.core.admission.authorise(watcher.authority)
            watcher.start(self.server.authorise)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.server.stop()

    def _watch_threads(self) -> None:
        self._watchdog.watch("MainThread", self.server.seconds_since_iteration, _LOOP_LIMIT_S)
        self._watchdog.watch("committer", self.server.seconds_committing, _THREAD_LIMIT_S)
        self._watchdog.watch("membership", self.agent.seconds_since_iteration, _THREAD_LIMIT_S)
        self._watchdog.start()
        if self._failure is not None:
            self.server.fail(self._failure)

    def _fail(self, error: DStashError) -> None:
        """Stop because a thread has ended; called on that thread, perhaps before ``run``."""
        self._failure = error
        self._watchdog.stopping()
        if self._server is not None:
            self._server.fail(error)

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop()

    def _start_syncing(self) -> None:
        if self.settings.durability is Durability.INTERVAL:
            stop = threading.Event()
            # It also ends when the store accepts no more writes: the loop notices that and stops.
            thread = threads.thread(self._sync_often, stop, name="sync", may_end=lambda: True)
            self._undo += [thread.join, stop.set]  # in reverse order: set the event, then join
            thread.start()

    def _sync_often(self, stop: threading.Event) -> None:
        while not stop.wait(self.settings.sync_interval_ms / 1000):
            try:
                self._store.sync()
            except DStashError as error:
                _log.error(events.SYNC_FAILED, error=str(error))
                return

    def _close(self) -> None:
        """Close everything in reverse order, regardless of errors."""
        while self._undo:
            undo = self._undo.pop()
            try:
                undo()
            except Exception:
                _log.exception("could not close cleanly")

    # -- pages

    def _healthz(self) -> Answer:
        quiet = self.server.seconds_since_iteration()
        problems = self._watchdog.problems()
        health = {"healthy": not problems, "why": "; ".join(problems), "seconds_quiet": quiet}
        return Answer.json(503 if problems else 200, health)

    def _readyz(self) -> Answer:
        why = self.core.health.why_not_ready()
        readiness = {
            "ready": why is None,
            "why": why,
            "alerts": list(self.core.health.problems.values()),
            "ahead_ms": self.core.health.ahead_ms,
        }
        return Answer.json(503 if why else 200, readiness)

    def _status(self) -> Answer:
        return Answer.json(200, self.core.health.status() | {"id": self.peer, "pid": os.getpid()})


def _core_settings(settings: PeerSettings, peer: str) -> Settings:
    """Return the settings of the core, which counts in milliseconds."""
    return Settings(
        peer,
        settings.cluster,
        settings.max_clock_skew_ms,
        settings.hint_limit,
        round(settings.hint_max_age * 1000),
        Pace(
            round(settings.compare_interval * 1000),
            round(settings.gc_interval * 1000),
            round(settings.gc_grace * 1000),
            settings.repair_rate,
        ),
        settings.disk_reserve,
        max_waiting_bytes=settings.max_bytes_in_hand,
        max_requests=settings.max_requests_in_hand,
        is_durable=settings.durability is not Durability.NONE,
    )


def _advertised(settings: PeerSettings, bound: str) -> str:
    port = bound.rsplit(":", 1)[1]
    if settings.advertise:
        host, _, given = settings.advertise.rpartition(":")
        whole = settings.advertise if host and given.isdigit() else f"{settings.advertise}:{port}"
        return f"tcp://{whole}"
    if settings.bind in _EVERYWHERE:
        raise UsageError(f"bind = {settings.bind!r} needs advertise: the host others connect to")
    return f"tcp://{_bracketed(settings.bind)}:{port}"


def _announced_http(http: str, bind: str, address: str) -> str:
    """Return the URL for others: with the host of ``address`` if HTTP listens on all addresses."""
    if bind not in _EVERYWHERE:
        return http
    host = address.removeprefix("tcp://").rpartition(":")[0]
    return f"http://{host}:{http.rpartition(':')[2]}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
