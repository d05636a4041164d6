"""Spans of a peer's requests, sent to a collector by OTLP over HTTP.

A separate thread makes them from ``Notes``. The ``OTEL_*`` variables of OpenTelemetry configure the
queue, the interval, sampling, headers and certificates, as in other programs.
"""

from __future__ import annotations

import logging
import queue
import time
from typing import Final
from urllib.parse import urlsplit

import requests
import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dstash import threads
from dstash.about import __version__
from dstash.config.hosts import is_loopback
from dstash.peer.telemetry.tracing import LATE, Notes
from dstash.telemetry import (
    DB_COLLECTION,
    DB_NAMESPACE,
    DB_OPERATION,
    DB_STATUS,
    DB_SYSTEM,
    ERROR_TYPE,
    SYSTEM,
)

_log = structlog.get_logger("dstash.peer")

#: The most requests that wait for their spans; further requests get no span.
_MAX_WAITING: Final = 4096
#: How long (seconds) a peer that stops waits for unsent spans, twice at most.
_CLOSE_TIMEOUT_S: Final = 1.0
#: How often (seconds) the loss of spans is logged.
_LOG_INTERVAL_S: Final = 60.0

_PATH: Final = "/v1/traces"
_W3C: Final = TraceContextTextMapPropagator()


class SpanWriter:
    """Makes spans and sends them until it is closed.

    Args:
        endpoint: where the collector is, as in ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        cluster: the name of the cluster.
        peer: the id of this peer.

    Raises:
        ValueError: an ``OTEL_*`` variable has a wrong value.
    """

    def __init__(self, endpoint: str, cluster: str, peer: str) -> None:
        self._cluster = cluster
        self._loss_log = _LossLog(endpoint)
        self._exporter = OTLPSpanExporter(
            endpoint=f"{endpoint.removesuffix(_PATH)}{_PATH}", session=_session(endpoint)
        )
        self._provider = TracerProvider(resource=_resource(peer), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SYSTEM, __version__)
        self._waiting: queue.Queue[Notes | None] = queue.Queue(_MAX_WAITING)
        self._closing = False
        self._thread = threads.thread(self._write_all, name="spans", may_end=lambda: self._closing)
        self._thread.start()

    def take(self, notes: Notes) -> None:
        """Queue the notes of a request for its spans, unless too many wait already."""
        try:
            self._waiting.put_nowait(notes)
        except queue.Full:
            self._loss_log.report("more requests are traced than spans can be made of")

    def close(self) -> None:
        """Send the remaining spans, as far as the collector accepts them at once."""
        self._closing = True
        try:
            self._waiting.put(None, timeout=_CLOSE_TIMEOUT_S)
            self._thread.join(_CLOSE_TIMEOUT_S)
        except queue.Full:
            pass  # the thread is stuck, and ends with the process
        ending = threads.thread(self._provider.shutdown, name="last spans", may_end=lambda: True)
        ending.start()
        ending.join(_CLOSE_TIMEOUT_S)
        self._loss_log.stop()
        if ending.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # it retries for as long as the SDK allows

    # -- the thread

    def _write_all(self) -> None:
        while (notes := self._waiting.get()) is not None:
            try:
                self._write(notes)
            except Exception:  # in a library: the peer continues without this span
                _log.exception("a span could not be made")

    def _write(self, notes: Notes) -> None:
        attributes: dict[str, str | int] = {
            DB_SYSTEM: SYSTEM,
            DB_NAMESPACE: self._cluster,
            DB_OPERATION: notes.kind,
            "dstash.outcome": notes.outcome,
        }
        more = (
            (DB_COLLECTION, notes.index),
            ("dstash.keys", notes.keys),
            ("dstash.level", notes.level),
        )
        attributes |= {name: value for name, value in more if value}
        span = self._tracer.start_span(
            f"{SYSTEM} peer {notes.kind}",
            _W3C.extract({"traceparent": notes.trace}),
            SpanKind.SERVER,
            attributes,
            start_time=notes.came,
        )
        if notes.queued:
            self._write_commit(span, notes)
        if notes.code or notes.outcome == LATE:
            span.set_attributes({ERROR_TYPE: notes.outcome} | _code(notes.code))
            span.set_status(Status(StatusCode.ERROR, notes.outcome))
        span.end(notes.answered_at)

    def _write_commit(self, parent: Span, notes: Notes) -> None:
        """Make the span from queueing to the ack, with the merge and the sync of its group."""
        below = trace.set_span_in_context(parent)
        group = {"dstash.commit.requests": notes.group}
        span = self._tracer.start_span(
            f"{SYSTEM} commit", below, attributes=group, start_time=notes.queued
        )
        below = trace.set_span_in_context(span)
        for name, begin, end in (
            ("merge", notes.taken, notes.merged),
            ("sync", notes.merged, notes.synced),
        ):
            part = self._tracer.start_span(f"{SYSTEM} {name}", below, start_time=begin)
            part.end(end)
        span.end(notes.answered_at)


def _code(code: int) -> dict[str, str]:
    return {DB_STATUS: str(code)} if code else {}


def _resource(peer: str) -> Resource:
    own = {
        "service.name": "dstash-peer",
        "service.instance.id": peer,
        "service.version": __version__,
    }
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
    return Resource.create(own).merge(OTELResourceDetector().detect())


def _session(endpoint: str) -> requests.Session | None:
    """Return a session without the proxy of the environment if the collector is on this machine."""
    if not is_loopback(urlsplit(endpoint).hostname or ""):
        return None
    session = requests.Session()
    session.trust_env = False
    return session


class _LossLog(logging.Handler):
    """Logs the loss of spans in one line a minute; OpenTelemetry reports each attempt."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(logging.WARNING)
        self._endpoint = endpoint
        self._next = 0.0
        self._logger = logging.getLogger("opentelemetry")
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record of OpenTelemetry in one line, without its traceback."""
        raised = record.exc_info[1] if record.exc_info else None
        text = record.getMessage() if raised is None else f"{record.getMessage()} {raised}"
        self.report(text.partition("\n")[0])

    def report(self, why: str) -> None:
        """Log a reason, unless a reason was logged within the last minute."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LOG_INTERVAL_S
            _log.warning("traces get lost", otlp_endpoint=self._endpoint, why=why)

    def stop(self) -> None:
        """Log no more."""
        self._next = float("inf")
