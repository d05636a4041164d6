"""The health of a peer: whether it is ready, why not, and its status for operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from dstash import events
from dstash.about import __version__
from dstash.cluster.replication.replica import Replica
from dstash.cluster.topology.topology import State
from dstash.cluster.topology.view import View
from dstash.errors import NotReady
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.checks import forming
from dstash.peer.background.maintenance import Maintenance
from dstash.peer.supervision.cluster_events import ClusterEvents
from dstash.peer.supervision.refusals import Refusals
from dstash.peer.telemetry.meters import Meters
from dstash.store.interface import DiskState

_log = structlog.get_logger("dstash.peer")

#: The source of the problem that a client has seen a newer state of the store.
_CLAIMS: Final = "claims"


class Health:
    """Readiness and status of one peer.

    Args:
        replica: the peer's store, clock and view of the cluster.
        maintenance: its background work; also decides whether the store may vote.
        backlog: its writes that wait for the disk.
        disk_reserve: bytes of disk that puts may not use.
        now: the start, in milliseconds since 1970.
    """

    def __init__(
        self,
        replica: Replica,
        maintenance: Maintenance,
        backlog: Backlog,
        meters: Meters,
        disk_reserve: int,
        now: int,
    ) -> None:
        self._peer = replica.me
        self._clock = replica.clock
        self._steady = replica.now
        self._local_partitions = replica.local_partitions
        self._store = replica.local_partitions.store
        self._wall = replica.wall
        self._maintenance = maintenance
        self._backlog = backlog
        self._meters = meters
        self._disk_reserve = disk_reserve
        self._started = now
        self._was_wrong = False
        self._view: View | None = None
        self.stopping = False
        #: Why the shell does not let the peer serve yet; None when it does.
        self.not_ready: str | None = "the peer is starting"
        #: What the peer waits for before it is a member; empty when that is not known.
        self.waits_for = ""
        #: Returns the stores that were set aside, by name, and their sizes in bytes.
        self.set_aside: Callable[[], Mapping[str, int]] = dict
        #: Returns the state of the registers of which this peer is the home.
        self.describe_registers: Callable[[], Mapping[str, Any]] = dict
        #: Returns the processes that read the store next to this peer.
        self.describe_readers: Callable[[], Mapping[str, Any]] = dict
        #: Returns the compaction of the store that runs, or the last one.
        self.describe_compaction: Callable[[], Mapping[str, Any]] = dict
        #: Begins a compaction of the store soon; ``Busy`` if one runs.
        self.order_compaction: Callable[[], None] = _refuse_compaction
        #: What is wrong with this peer although it serves, by source; for operators.
        self.problems: dict[str, str] = {}
        #: Events that no meter counts: malformed messages, refused requests by error, commits.
        self.counts: Counter[str] = Counter()
        self.refusals = Refusals()
        self._cluster_events = ClusterEvents(replica.me)

    def install(self, view: View) -> None:
        """Take a new view."""
        self._view = view

    @property
    def freshness_confirmed(self) -> bool:
        """Whether other peers have confirmed that the store was not rolled back."""
        return self._maintenance.freshness_confirmed

    def why_not_ready(self) -> str | None:
        """Return None when the peer serves all kinds of requests, else the reason why not.

        It may still serve some requests: with a full disk it serves reads, and deletes while the
        reserve lasts; with a wrong clock it serves all of them by the cluster clock.
        """
        if self.stopping:
            return "the peer is stopping"
        if self.not_ready is not None:
            return self.not_ready
        view = self._view  # other threads ask, too: it may change meanwhile
        if view is None:
            return self.waits_for or "the peer has not joined a cluster"
        if not view.topology.formed:
            return str(forming(view))
        member = view.members.get(self._peer)
        if member is None:
            return self.waits_for or "the peer is not a member of the cluster"
        if why := self._maintenance.freshness.why_not():
            return why
        if not member.synced:
            return "the peer's store is new or too old; it is streaming data from other replicas"
        if member.state is State.JOINING:
            return "the peer is joining; its data is being copied from other replicas"
        if self._store.disk_state() is DiskState.EXHAUSTED:
            return DiskState.EXHAUSTED.value
        if not self._store.has_room(self._disk_reserve):
            return DiskState.FULL.value
        if self._clock.is_wrong:
            return self._wrong_clock()
        return self._store.check_writable()

    def refusal(self) -> NotReady:
        """Return the error for a request that the peer cannot serve now."""
        return NotReady(f"{self._peer}: {self.why_not_ready()}")

    @property
    def ahead_ms(self) -> int:
        """How far the newest stamp, or a promise, is ahead of the cluster clock (milliseconds)."""
        return self._clock.ahead_ms(self._local_partitions.present)

    def status(self) -> dict[str, Any]:
        """Return the status of this peer as plain values."""
        stats = self._store.stats()
        return {
            "ready": self.why_not_ready() is None,
            "why_not_ready": self.why_not_ready() or "",
            "alerts": list(self.problems.values()),
            "records": stats.records,
            "used_bytes": stats.used_bytes,
            "unused_bytes": stats.unused_bytes,
            "map_bytes": stats.map_bytes,
            "pages": dict(stats.pages),
            "free_bytes": stats.free_bytes,
            "reserved_bytes": stats.reserved_bytes,
            "disk": self._store.disk_state().value,
            "set_aside": dict(self.set_aside()),
            "waiting_bytes": self._backlog.waiting_bytes,
            "epoch": self._view.epoch if self._view else 0,
            "clock_offset_ms": self._clock.offset_ms,
            "ahead_ms": self.ahead_ms,
            "uptime_s": (self._wall() - self._started) // 1000,
            "version": __version__,
            "maintenance": self._maintenance.describe(),
            "drops": self._maintenance.describe_drops(),
            "registers": dict(self.describe_registers()),
            "readers": dict(self.describe_readers()),
            "compaction": dict(self.describe_compaction()),
            "counts": dict(self.counts + self._meters.kinds()),
        }

    def watch(self) -> None:
        """Log what changes in the cluster and the clock, and keep the problem of claims current."""
        self._cluster_events.watch(self._view, self._steady())
        self._watch_clock()
        self._watch_claims()

    def _watch_clock(self) -> None:
        if not self._clock.knows_majority or self._clock.is_wrong == self._was_wrong:
            return
        self._was_wrong = not self._was_wrong
        if self._was_wrong:
            _log.warning(
                events.CLOCK_WRONG, why=self._wrong_clock(), offset_ms=self._clock.offset_ms
            )
        else:
            _log.info(events.CLOCK_RIGHT, offset_ms=self._clock.offset_ms)

    def _watch_claims(self) -> None:
        """Show that a client saw a newer state of the store, until that is refuted."""
        text = self._maintenance.freshness.suspicion()
        if text == self.problems.get(_CLAIMS, ""):
            return
        if text:
            _log.warning(text, store=self._store.store_id)
            self.problems[_CLAIMS] = text
        else:
            del self.problems[_CLAIMS]

    def _wrong_clock(self) -> str:
        offset = self._clock.offset_ms
        where = "ahead of" if offset > 0 else "behind"
        return f"the clock is {abs(offset)} ms {where} the cluster's; set it by NTP"


def _refuse_compaction() -> None:
    raise NotReady("the peer is starting")
