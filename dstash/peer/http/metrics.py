"""The page ``/metrics``: the metrics of one peer, for Prometheus.

Metrics are computed at the scrape only. Names and units follow
https://prometheus.io/docs/practices/naming: base units, ``_total`` for counters. The core is read
on its own thread; if that thread hangs, the page still has the metrics that do not need it.
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
from dstash.wire.connections.connections import Connections

#: How long a scrape waits for the core's thread.
_CORE_TIMEOUT_S: Final = 2.0
_REFUSED_PREFIX: Final = "refused:"

#: Gauges of ``Health.status()``: name, key, description.
_GAUGES: Final = (
    ("dstash_uptime_seconds", "uptime_s", "Seconds since the peer started."),
    ("dstash_epoch", "epoch", "Epoch of the topology that this peer uses."),
    ("dstash_records", "records", "Records on disk, tombstones included."),
    ("dstash_store_used_bytes", "used_bytes", "Bytes of LMDB pages that have ever been used."),
    (
        "dstash_store_unused_bytes",
        "unused_bytes",
        "Bytes of used pages that are free; a compaction gives them back to the disk.",
    ),
    ("dstash_store_map_bytes", "map_bytes", "Size of LMDB's memory map; it grows as needed."),
    ("dstash_disk_free_bytes", "free_bytes", "Free bytes on the disk of the store."),
    ("dstash_disk_reserved_bytes", "reserved_bytes", "Bytes reserved for deletes on a full disk."),
    ("dstash_waiting_bytes", "waiting_bytes", "Bytes of writes that wait for a group commit."),
)
#: Gauges and counters of ``status()["maintenance"]``.
_MAINTENANCE_GAUGES: Final = (
    ("dstash_streaming_partitions", "streaming", "Partitions that this peer has yet to stream."),
    ("dstash_streaming_goal_partitions", "streaming_of", "Partitions of the current streaming."),
    ("dstash_streamed_records", "streamed_records", "Records received by the current streaming."),
    ("dstash_streamed_bytes", "streamed_bytes", "Bytes received by the current streaming."),
    (
        "dstash_streaming_bytes_per_second",
        "streaming_bytes_per_second",
        "Bytes per second received by the current streaming.",
    ),
    (
        "dstash_streaming_left_seconds",
        "streaming_seconds_left",
        "Estimated seconds until streaming completes.",
    ),
    ("dstash_unequal_partitions", "differing", "Partitions that differ from another replica."),
    (
        "dstash_drop_left_partitions",
        "drop_left",
        "Partitions in which dropped records may still be on disk.",
    ),
    (
        "dstash_corrupt_waiting_records",
        "corrupt",
        "Corrupt records that are not yet repaired from other replicas.",
    ),
)
_MAINTENANCE_COUNTERS: Final = (
    (
        "dstash_repaired_records_total",
        "repaired_records",
        "Records received from other replicas by repair.",
    ),
    (
        "dstash_drop_removed_records_total",
        "drop_removed",
        "Records removed because their index was dropped.",
    ),
    ("dstash_corrupt_records_total", "corrupt_found", "Corrupt records found: checksum mismatch."),
    ("dstash_compared_partitions_total", "compared", "Partitions compared with another replica."),
    ("dstash_differing_partitions_total", "differed", "Compared partitions that differed."),
    ("dstash_hints_replayed_total", "replayed", "Keys sent to a peer that had missed a write."),
    (
        "dstash_corrupt_repaired_records_total",
        "corrupt_repaired",
        "Corrupt records repaired from other replicas.",
    ),
)
#: Counters of ``Health.counts``.
_COUNTS: Final = (
    ("dstash_commits_total", "commits", "Group commits."),
    ("dstash_late_total", "late", "Requests dropped because their deadline had passed."),
    ("dstash_malformed_total", "malformed", "Messages that could not be decoded."),
    ("dstash_unhandled_total", "unhandled", "Messages that caused an internal error; see the log."),
    (
        "dstash_rejected_busy_total",
        "rejected_as_busy",
        "Requests rejected as busy before they were read, because of overload.",
    ),
    ("dstash_dropped_total", "dropped", "Requests dropped unanswered, because of overload."),
    (
        "dstash_undelivered_total",
        "undelivered",
        "Answers that could not be sent: the client had disconnected or did not read.",
    ),
)


class CoreState(NamedTuple):
    """The core's status and view at one moment. A view is immutable: any thread may read it."""

    status: dict[str, Any]
    view: View | None


class PeerMetrics:
    """The metrics page of one peer; its registry is its own."""

    def __init__(self, server: PeerServer, core: PeerCore) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(PeerCollector(server, core))
        ProcessCollector(registry=self.registry)

    def page(self) -> Answer:
        """Return all metrics in Prometheus' text format."""
        return Answer(200, generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4)


class PeerCollector(Collector):
    """Builds the metric families of one peer at each scrape."""

    def __init__(self, server: PeerServer, core: PeerCore) -> None:
        self._server = server
        self._core = core

    def collect(self) -> Iterator[Metric]:
        """Yield every family; those of the core only if its thread answers in time."""
        quiet = self._server.seconds_since_iteration()
        text = "Seconds since the last iteration of the peer's event loop."
        yield _gauge("dstash_loop_quiet_seconds", text, quiet)
        yield from self._meters()
        yield from _connections(self._server.connections)
        state = self._server.ask(
            lambda: CoreState(self._core.health.status(), self._core.view), _CORE_TIMEOUT_S
        )
        text = "Whether the peer's event loop answered this scrape."
        yield _gauge("dstash_responsive", text, state is not None)
        if state is not None:
            yield from self._core_families(state)

    def _meters(self) -> Iterator[Metric]:
        meters = self._server.meters
        text = "Seconds to handle one message, including the answer if it is a read."
        yield _histogram("dstash_handling_seconds", text, meters.handling)
        text = "Seconds of one group commit, including its sync."
        yield _histogram("dstash_commit_seconds", text, meters.commit_seconds)
        text = "Seconds that the sync of one group commit took."
        yield _histogram("dstash_commit_sync_seconds", text, meters.sync_seconds)
        text = "Keys of one look-up for values."
        yield _histogram("dstash_read_keys", text, meters.read_keys)
        text = "Keys of one write on this replica."
        yield _histogram("dstash_written_keys", text, meters.written_keys)
        text = "Requests of one group commit."
        yield _histogram("dstash_commit_requests", text, meters.commit_requests)
        yield _histogram("dstash_commit_bytes", "Bytes of one group commit.", meters.commit_bytes)
        text = "Writes by kind and outcome: stored, partly, or the reason of the refusal."
        writes = CounterMetricFamily("dstash_writes_total", text, labels=["kind", "outcome"])
        for (kind, outcome), count in meters.writes.copy().items():
            writes.add_metric([snake(kind), snake(outcome)], count)
        yield writes
        text = (
            "Requests by kind, outcome (answered, accepted for a later answer, or the error) and, "
            "for look-ups, level: one, or quorum, which includes all."
        )
        requests = CounterMetricFamily(
            "dstash_requests_total", text, labels=["kind", "level", "outcome"]
        )
        for (kind, level, outcome), count in meters.requests.copy().items():
            requests.add_metric([snake(kind), level, snake(outcome)], count)
        yield requests

    def _core_families(self, state: CoreState) -> Iterator[Metric]:
        status, settings = state.status, self._core.settings
        names = {"peer": settings.peer, "cluster": settings.cluster, "version": status["version"]}
        text = "Identity of this peer: id, cluster and version."
        yield InfoMetricFamily("dstash_peer", text, value=names)
        yield _gauge(
            "dstash_ready", "Whether the peer is ready, as /readyz states.", status["ready"]
        )
        for name, key, text in _GAUGES:
            yield _gauge(name, text, status[key])
        text = "Seconds that this peer's clock is ahead of the cluster clock."
        yield _gauge("dstash_clock_offset_seconds", text, status["clock_offset_ms"] / 1000)
        text = "Seconds that the newest stamp, floor or horizon is ahead of the cluster clock."
        yield _gauge("dstash_stamps_ahead_seconds", text, status["ahead_ms"] / 1000)
        text = "LMDB pages of the record tree by kind; other counts free and internal pages."
        pages = GaugeMetricFamily("dstash_store_pages", text, labels=["kind"])
        for kind, count in status["pages"].items():
            pages.add_metric([kind], count)
        yield pages
        yield from _cluster(state.view, settings.peer)
        yield from _maintenance(status["maintenance"])
        yield from _registers(status["registers"])
        yield from _compaction(status["compaction"])
        yield from _readers(status["readers"])
        yield from _requests(status["counts"])


def snake(name: str) -> str:
    """Return the name of a class as a label value: ``ScanKeys`` becomes ``scan_keys``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _cluster(view: View | None, peer: str) -> Iterator[Metric]:
    topology = view.topology if view else None
    states = Counter(m.state for m in topology.members) if topology else Counter[State]()
    members = GaugeMetricFamily("dstash_members", "Members by state.", labels=["state"])
    for state in State:
        members.add_metric([state.value], states[state])
    yield members
    text = "Copies that each key is to have; with fewer members there are fewer."
    yield _gauge("dstash_replicas", text, topology.replicas if topology else 0)
    alive = len(view.alive & view.members.keys()) if view else 0
    yield _gauge("dstash_members_alive", "Members that hold their session lock.", alive)
    change = topology.change if topology else None
    yield _gauge("dstash_change_running", "Whether a topology change runs.", change is not None)
    paused = change is not None and change.paused
    yield _gauge("dstash_change_paused", "Whether the topology change is paused.", paused)
    bound = change.rate if change else 0
    text = "Bytes per second that each peer may stream in a topology change; 0: the default limit."
    yield _gauge("dstash_change_rate_bytes", text, bound)
    owned = len(view.owned_by(peer)) if view else 0
    yield _gauge("dstash_partitions", "Partitions of which this peer is a replica.", owned)


def _maintenance(maintenance: Mapping[str, Any]) -> Iterator[Metric]:
    for name, key, text in _MAINTENANCE_GAUGES:
        yield _gauge(name, text, math.nan if maintenance[key] is None else maintenance[key])
    text = "Seconds since the oldest of the unequal partitions began to differ."
    yield _gauge("dstash_unequal_seconds", text, maintenance["differing_ms"] / 1000)
    for name, key, text in _MAINTENANCE_COUNTERS:
        yield CounterMetricFamily(name, text, value=maintenance[key])
    text = "Hints for a peer that missed writes: keys, and whole partitions counted as one each."
    hints = GaugeMetricFamily("dstash_hints", text, labels=["for_peer"])
    for peer, count in maintenance["hints"].items():
        hints.add_metric([peer], count)
    yield hints


def _compaction(compaction: Mapping[str, Any]) -> Iterator[Metric]:
    if not compaction:  # the peer is starting
        return
    text = "Whether the store is being compacted."
    yield _gauge("dstash_compaction_running", text, compaction["running"])
    text = "Records that the compaction which runs has yet to copy."
    left = compaction["of"] - compaction["copied"]
    yield _gauge("dstash_compaction_left_records", text, max(0, left))
    text = "Seconds for which the last compaction held commits back."
    yield _gauge("dstash_compaction_held_seconds", text, compaction["held_seconds"])
    text = "Compactions of the store that have ended."
    yield CounterMetricFamily("dstash_compactions_total", text, value=compaction["ended"])
    text = "Compactions of the store that were given up; see the log."
    name = "dstash_compactions_given_up_total"
    yield CounterMetricFamily(name, text, value=compaction["given_up"])


def _registers(registers: Mapping[str, Any]) -> Iterator[Metric]:
    text = "Operations on registers that wait for the votes of a quorum."
    yield _gauge("dstash_registers_waiting", text, registers["waiting"])
    text = (
        "Registers written again after a promise or corruption had kept replicas from being equal."
    )
    yield CounterMetricFamily(
        "dstash_registers_concluded_total", text, value=registers["concluded"]
    )
    text = (
        "Requests for the votes of replicas on a register, by phase and by whether a quorum voted."
    )
    rounds = CounterMetricFamily("dstash_register_rounds_total", text, labels=["phase", "outcome"])
    for key, count in sorted(registers["rounds"].items()):
        rounds.add_metric(key.split(":"), count)
    yield rounds


def _readers(readers: Mapping[str, Any]) -> Iterator[Metric]:
    text = "Threads, of all processes of the machine, in the table of readers of the store."
    yield _gauge("dstash_readers", text, readers.get("known", 0))
    text = "Seconds that the oldest outdated snapshot has been held; the data file grows meanwhile."
    yield _gauge("dstash_oldest_snapshot_seconds", text, readers.get("oldest_s", 0))


def _connections(connections: Connections | None) -> Iterator[Metric]:
    if connections is None:
        return
    text = "Open connections from clients and other peers."
    yield _gauge("dstash_connections", text, len(connections))
    text = "Maximum number of connections."
    yield _gauge("dstash_connections_limit", text, connections.limits.connections)
    text = "Connections closed because of a limit on their number or their queued bytes."
    yield CounterMetricFamily("dstash_connections_cut_total", text, value=connections.cuts)


def _requests(counts: Mapping[str, int]) -> Iterator[Metric]:
    for name, key, text in _COUNTS:
        yield CounterMetricFamily(name, text, value=counts.get(key, 0))
    refused = [
        (key.removeprefix(_REFUSED_PREFIX), count)
        for key, count in counts.items()
        if key.startswith(_REFUSED_PREFIX)
    ]
    text = "Requests refused on arrival, by reason; dstash_writes_total counts commits."
    yield _labelled("dstash_refused_total", text, "reason", refused)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _labelled(name: str, text: str, label: str, counts: Iterable[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts:
        family.add_metric([snake(value)], count)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    total, counts = histogram.total, histogram.cumulative()
    bounds = [*map(str, map(float, histogram.bounds)), "+Inf"]
    return HistogramMetricFamily(name, text, list(zip(bounds, counts, strict=True)), total)
