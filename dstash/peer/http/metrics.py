"""``/metrics``: what a peer knows of itself, for Prometheus.

Nothing here runs between scrapes. Names and units follow
https://prometheus.io/docs/practices/naming: base units, ``_total`` for what only grows. The core
is asked on its own thread; when that hangs, what can be said without it is still said.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dstash.cluster.topology.topology import State
from dstash.cluster.topology.view import View
from dstash.peer.core import PeerCore
from dstash.peer.http.server import Answer
from dstash.peer.server import PeerServer
from dstash.peer.telemetry.meters import Histogram
from dstash.wire.connections import Connections

#: How long (seconds) a scrape waits for the socket's thread.
_PATIENCE: Final = 2.0
_REFUSED: Final = "refused:"

#: Gauges of ``PeerCore.status()``: name, key, text.
_GAUGES: Final = (
    ("dstash_uptime_seconds", "uptime_s", "Seconds since the peer started."),
    ("dstash_epoch", "epoch", "The epoch of the topology that this peer goes by."),
    ("dstash_records", "records", "Records on disk, tombstones included."),
    ("dstash_store_used_bytes", "used_bytes", "Bytes of LMDB pages that were ever in use."),
    ("dstash_store_map_bytes", "map_bytes", "Size of LMDB's memory map; it grows by itself."),
    ("dstash_disk_free_bytes", "free_bytes", "Bytes that are free on the disk of the store."),
    ("dstash_disk_reserved_bytes", "reserved_bytes", "Bytes allocated for deletes on a full disk."),
    ("dstash_waiting_bytes", "waiting_bytes", "Bytes of writes that wait for the disk."),
)
#: Gauges and counters of ``status()["maintenance"]``.
_MAINTENANCE_GAUGES: Final = (
    ("dstash_streaming_partitions", "streaming", "Partitions that this peer still has to fill."),
    ("dstash_streaming_goal_partitions", "streaming_of", "Partitions of the filling under way."),
    ("dstash_streamed_records", "streamed_records", "Records taken by the filling under way."),
    ("dstash_streamed_bytes", "streamed_bytes", "Bytes taken by the filling under way."),
    (
        "dstash_streaming_bytes_per_second",
        "streaming_bytes_per_second",
        "What it took in a second.",
    ),
    ("dstash_streaming_left_seconds", "streaming_seconds_left", "How long it takes still, about."),
    ("dstash_unequal_partitions", "differing", "Partitions that differ from another replica."),
    ("dstash_corrupt_waiting_records", "corrupt", "Damaged records that wait for other replicas."),
)
_MAINTENANCE_COUNTERS: Final = (
    (
        "dstash_repaired_records_total",
        "repaired_records",
        "Records taken to be equal to a replica.",
    ),
    ("dstash_corrupt_records_total", "corrupt_found", "Records found with a wrong checksum."),
    ("dstash_compared_partitions_total", "compared", "Partitions compared with another replica."),
    ("dstash_differing_partitions_total", "differed", "Compared partitions that differed."),
    ("dstash_hints_replayed_total", "replayed", "Keys brought to a peer that had missed them."),
    (
        "dstash_corrupt_repaired_records_total",
        "corrupt_repaired",
        "Damaged records that are whole again.",
    ),
)
#: Counters of ``PeerCore.counts``.
_COUNTS: Final = (
    ("dstash_commits_total", "commits", "Group commits."),
    ("dstash_late_total", "late", "Requests dropped because their deadline had passed."),
    ("dstash_malformed_total", "malformed", "Messages that could not be understood."),
    ("dstash_unhandled_total", "unhandled", "Messages that met a defect: see the log."),
    ("dstash_rejected_busy_total", "rejected_as_busy", "Requests told to come back: overload."),
    ("dstash_dropped_total", "dropped", "Requests dropped without an answer: overload."),
    ("dstash_undelivered_total", "undelivered", "Answers whose client had gone, or did not read."),
)


class Facts(NamedTuple):
    """What the core said at one moment. A view is immutable: any thread may look at it."""

    status: dict[str, Any]
    view: View | None


class PeerMetrics:
    """The metrics page of one peer; its registry is its own."""

    def __init__(self, server: PeerServer, core: PeerCore) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(PeerCollector(server, core))
        ProcessCollector(registry=self.registry)

    def page(self) -> Answer:
        """Return all of it, in Prometheus' text format."""
        return Answer(200, generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4)


class PeerCollector(Collector):
    """Turns what a peer knows into metric families, at each scrape."""

    def __init__(self, server: PeerServer, core: PeerCore) -> None:
        self._server = server
        self._core = core

    def collect(self) -> Iterator[Metric]:
        """Yield every family; those of the core only when its thread answers in time."""
        quiet = self._server.seconds_since_turn()
        yield _gauge("dstash_loop_quiet_seconds", "Seconds since the peer's loop turned.", quiet)
        yield from self._meters()
        yield from _connections(self._server.connections)
        facts = self._server.ask(
            lambda: Facts(self._core.health.status(), self._core.view), _PATIENCE
        )
        text = "Whether the peer's loop answered this scrape."
        yield _gauge("dstash_responsive", text, facts is not None)
        if facts is not None:
            yield from self._core_families(facts)

    def _meters(self) -> Iterator[Metric]:
        meters = self._server.meters
        text = "Taking one message, and answering it if it is a read."
        yield _histogram("dstash_handling_seconds", text, meters.handling)
        text = "Running one group commit, its sync included."
        yield _histogram("dstash_commit_seconds", text, meters.commit_seconds)
        text = "What of a group commit went by until the disk had it."
        yield _histogram("dstash_commit_sync_seconds", text, meters.sync_seconds)
        text = "Keys of one look-up that asked for values."
        yield _histogram("dstash_read_keys", text, meters.read_keys)
        text = "Keys of one write, on this replica."
        yield _histogram("dstash_written_keys", text, meters.written_keys)
        text = "Requests that became one group commit."
        yield _histogram("dstash_commit_requests", text, meters.commit_requests)
        yield _histogram("dstash_commit_bytes", "Bytes of one group commit.", meters.commit_bytes)
        text = "Writes by kind and outcome: stored, partly, or why not."
        writes = CounterMetricFamily("dstash_writes_total", text, labels=["kind", "outcome"])
        for (kind, outcome), count in meters.writes.copy().items():
            writes.add_metric([snake(kind), snake(outcome)], count)
        yield writes
        text = (
            "Requests by kind, outcome (answered, accepted and answered later, or why not) and, "
            "of look-ups, level: one, or quorum, which stands for all as well."
        )
        requests = CounterMetricFamily(
            "dstash_requests_total", text, labels=["kind", "level", "outcome"]
        )
        for (kind, level, outcome), count in meters.requests.copy().items():
            requests.add_metric([snake(kind), level, snake(outcome)], count)
        yield requests

    def _core_families(self, facts: Facts) -> Iterator[Metric]:
        status, settings = facts.status, self._core.settings
        names = {"peer": settings.peer, "cluster": settings.cluster, "version": status["version"]}
        yield InfoMetricFamily("dstash_peer", "Who this peer is.", value=names)
        yield _gauge("dstash_ready", "Whether the peer serves requests.", status["ready"])
        for name, key, text in _GAUGES:
            yield _gauge(name, text, status[key])
        text = "How far this peer's clock is ahead of the median of the members' clocks."
        yield _gauge("dstash_clock_offset_seconds", text, status["clock_offset_ms"] / 1000)
        text = "How far this peer's newest stamp, floor or horizon is ahead of the cluster's time."
        yield _gauge("dstash_stamps_ahead_seconds", text, status["ahead_ms"] / 1000)
        text = "LMDB pages of the tree of records by kind, and all others: free, or LMDB's own."
        pages = GaugeMetricFamily("dstash_store_pages", text, labels=["kind"])
        for kind, count in status["pages"].items():
            pages.add_metric([kind], count)
        yield pages
        yield from _cluster(facts.view, settings.peer)
        yield from _maintenance(status["maintenance"])
        yield from _requests(status["counts"])


def snake(name: str) -> str:
    """Return the name of a class as labels have it: ``ScanKeys`` is ``scan_keys``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _cluster(view: View | None, peer: str) -> Iterator[Metric]:
    topology = view.topology if view else None
    states = Counter(one.state for one in topology.members) if topology else Counter[State]()
    members = GaugeMetricFamily("dstash_members", "Members by state.", labels=["state"])
    for state in State:
        members.add_metric([state.value], states[state])
    yield members
    alive = len(view.alive & view.members.keys()) if view else 0
    yield _gauge("dstash_members_alive", "Members whose lock is held.", alive)
    change = topology.change if topology else None
    yield _gauge("dstash_change_running", "Whether placement is changing.", change is not None)
    paused = change is not None and change.paused
    yield _gauge("dstash_change_paused", "Whether the change under way is paused.", paused)
    bound = change.rate if change else 0
    text = "Bytes a second that each gaining peer may take in; 0 when none were said."
    yield _gauge("dstash_change_rate_bytes", text, bound)
    owned = len(view.owned_by(peer)) if view else 0
    yield _gauge("dstash_partitions", "Partitions that this peer holds a replica of.", owned)


def _maintenance(maintenance: Mapping[str, Any]) -> Iterator[Metric]:
    for name, key, text in _MAINTENANCE_GAUGES:
        yield _gauge(name, text, math.nan if maintenance[key] is None else maintenance[key])
    text = "For how long the first of the unequal partitions has differed."
    yield _gauge("dstash_unequal_seconds", text, maintenance["differing_ms"] / 1000)
    for name, key, text in _MAINTENANCE_COUNTERS:
        yield CounterMetricFamily(name, text, value=maintenance[key])
    text = "Keys that another peer missed; a partition to compare counts as one."
    hints = GaugeMetricFamily("dstash_hints", text, labels=["for_peer"])
    for peer, count in maintenance["hints"].items():
        hints.add_metric([peer], count)
    yield hints


def _connections(connections: Connections | None) -> Iterator[Metric]:
    if connections is None:
        return
    text = "Connections of clients and other peers."
    yield _gauge("dstash_connections", text, len(connections))
    text = "Connections that there may be at most."
    yield _gauge("dstash_connections_limit", text, connections.limits.connections)
    text = "Connections cut because they held too much, or were too many."
    yield CounterMetricFamily("dstash_connections_cut_total", text, value=connections.cuts)


def _requests(counts: Mapping[str, int]) -> Iterator[Metric]:
    for name, key, text in _COUNTS:
        yield CounterMetricFamily(name, text, value=counts.get(key, 0))
    refused = [
        (key.removeprefix(_REFUSED), count)
        for key, count in counts.items()
        if key.startswith(_REFUSED)
    ]
    text = "Requests refused at once, by reason; see dstash_writes_total for commits."
    yield _labelled("dstash_refused_total", text, "reason", refused)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _labelled(name: str, text: str, label: str, counts: Iterable[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for one, count in counts:
        family.add_metric([snake(one)], count)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    total, counts = histogram.total, histogram.cumulative()
    bounds = [*map(str, map(float, histogram.bounds)), "+Inf"]
    return HistogramMetricFamily(name, text, list(zip(bounds, counts, strict=True)), total)
