"""Spans of a peer's requests, sent to a collector by OTLP over HTTP.

They are made of ``Notes`` on a thread of their own. How many are kept, how often they are sent, by
what rule some are left out, with which headers and certificates: the ``OTEL_*`` variables of
OpenTelemetry say that, as they do everywhere else.
"""

from __future__ import annotations

import logging
import queue
import time
from typing import Final

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

#: Requests whose spans are still to be made, at most; what comes beyond is left out.
_MOST: Final = 4096
#: How long (seconds) the end of the peer waits for what is left, twice at most.
_LAST_WORDS: Final = 1.0
#: How often (seconds) the log says that spans get lost.
_SELDOM: Final = 60.0

_PATH: Final = "/v1/traces"
_W3C: Final = TraceContextTextMapPropagator()


class SpanWriter:
    """Makes spans and has them sent, until it is closed.

    Args:
        endpoint: where the collector is, as in ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        cluster: the name of the cluster.
        peer: the id of this peer.

    Raises:
        ValueError: an ``OTEL_*`` variable is wrong.
    """

    def __init__(self, endpoint: str, cluster: str, peer: str) -> None:
        self._cluster = cluster
        self._complaints = _Complaints(endpoint)
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.removesuffix(_PATH)}{_PATH}")
        self._provider = TracerProvider(resource=_resource(peer), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SYSTEM, __version__)
        self._waiting: queue.Queue[Notes | None] = queue.Queue(_MOST)
        self._closing = False
        self._thread = threads.thread(self._write_all, name="spans", may_end=lambda: self._closing)
        self._thread.start()

    def take(self, notes: Notes) -> None:
        """Have the spans of a request made soon, unless too many wait for that already."""
        try:
            self._waiting.put_nowait(notes)
        except queue.Full:
            self._complaints.say("more requests are traced than spans can be made of")

    def close(self) -> None:
        """Send what is left, as far as the collector takes it at once."""
        self._closing = True
        try:
            self._waiting.put(None, timeout=_LAST_WORDS)
            self._thread.join(_LAST_WORDS)
        except queue.Full:
            pass  # the thread is stuck, and ends with the process
        ending = threads.thread(self._provider.shutdown, name="last spans", may_end=lambda: True)
        ending.start()
        ending.join(_LAST_WORDS)
        self._complaints.stop()
        if ending.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # it tries again and again, for as long as the SDK likes

    # -- the thread

    def _write_all(self) -> None:
        while (notes := self._waiting.get()) is not None:
            try:
                self._write(notes)
            except Exception:  # of a library: the peer does without this span
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
        """From queueing to the ack; in it, what the group took to be merged and to be synced."""
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
    # What the environment says of the service is what somebody wants it to be called.
    return Resource.create(own).merge(OTELResourceDetector().detect())


class _Complaints(logging.Handler):
    """Says in one line, now and then, that spans get lost; OpenTelemetry says it at every try."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(logging.WARNING)
        self._endpoint = endpoint
        self._next = 0.0
        self._logger = logging.getLogger("opentelemetry")
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take what OpenTelemetry has to say; what it says with a traceback, in a line as well."""
        raised = record.exc_info[1] if record.exc_info else None
        text = record.getMessage() if raised is None else f"{record.getMessage()} {raised}"
        self.say(text.partition("\n")[0])

    def say(self, why: str) -> None:
        """Log a reason, unless one was logged a moment ago."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SELDOM
            _log.warning("traces get lost", otlp_endpoint=self._endpoint, why=why)

    def stop(self) -> None:
        """Say nothing any more."""
        self._next = float("inf")
