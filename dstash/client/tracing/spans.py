"""The OpenTelemetry spans of a client's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dstash.about import __version__
from dstash.client.results import BatchResult
from dstash.client.session import Session
from dstash.client.tracing.hook import CallSpan, CarriesTrace
from dstash.config.client import ClientSettings
from dstash.errors import BatchError, DStashError
from dstash.telemetry import (
    DB_BATCH_SIZE,
    DB_COLLECTION,
    DB_NAMESPACE,
    DB_OPERATION,
    DB_RETURNED,
    DB_STATUS,
    DB_SYSTEM,
    ERROR_TYPE,
    SERVER_ADDRESS,
    SERVER_PORT,
    SYSTEM,
)

_W3C: Final = TraceContextTextMapPropagator()

Attributes = dict[str, str | int]


class _RecordedCall:
    """The span of one call, for notes about its result."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def note_found(self, count: int) -> None:
        """Record how many of the keys of a batch look-up exist."""
        self._span.set_attribute(DB_RETURNED, count)

    def note_outcome(self, result: BatchResult) -> None:
        """Record the size of a batch of writes, and its first failure."""
        self._span.set_attributes(_batch_size(result.stored + len(result.outcomes)))
        try:
            result.raise_for_failures()
        except BatchError as error:
            _fail(self._span, error)


class CallSpans:
    """The tracing hook that makes a span of each call.

    Args:
        settings: of the client; each span has its cluster and its first peer as attributes.
        session: returns the current session of the client, which changes after a fork.
        provider: tracer provider; None for the global provider of the process.
    """

    def __init__(
        self, settings: ClientSettings, session: Callable[[], Session], provider: Any
    ) -> None:
        self._settings = settings
        self._session = session
        self._tracer = trace.get_tracer(SYSTEM, __version__, provider)

    @contextmanager
    def call(self, name: str, index: str | None = None, keys: object = None) -> Iterator[CallSpan]:
        """Return the span of a call; see ``Tracing.call``."""
        attributes: Attributes = {
            DB_SYSTEM: SYSTEM,
            DB_NAMESPACE: self._settings.cluster,
            DB_OPERATION: name,
            **self._server(),
        }
        if index is not None:
            attributes[DB_COLLECTION] = str(index)
        if isinstance(keys, Sized):
            attributes |= _batch_size(len(keys))
        with self._tracer.start_as_current_span(
            f"{SYSTEM} {name}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _RecordedCall(span)
            except KeyError:
                raise  # a missing key is an answer, not a failure
            except BaseException as error:  # a cancelled call ends its span, too
                _fail(span, error)
                raise

    def trace(self) -> str:
        """Return the caller's trace context (W3C traceparent); empty for none."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent", "")

    def join(self, group: CarriesTrace) -> None:
        """Make a group of calls part of the caller's trace, or link the caller's span to it.

        A message belongs to one trace: that of the first call in the group, or of the first sampled
        call if there is one. The spans of the other calls get a link to it.
        """
        own_trace = self.trace()
        if not group.trace or (_is_sampled(own_trace) and not _is_sampled(group.trace)):
            group.trace = own_trace
        elif group.trace != own_trace:
            context = _W3C.extract({"traceparent": group.trace})
            group_span = trace.get_current_span(context).get_span_context()
            trace.get_current_span().add_link(group_span)

    def _server(self) -> Attributes:
        """Return the address of the cluster: the first peer in the settings, else a member."""
        view = self._session().view
        members = view.topology.members if view else ()
        addresses = [*self._settings.peers, *(member.address for member in members)]
        if not addresses:
            return {}
        parts = urlsplit(addresses[0])
        return {SERVER_ADDRESS: parts.hostname or "", SERVER_PORT: parts.port or 0}


def _is_sampled(traceparent: str) -> bool:
    return bool(traceparent) and bool(int(traceparent[-2:], 16) & trace.TraceFlags.SAMPLED)


def _batch_size(keys: int) -> Attributes:
    return {DB_BATCH_SIZE: keys} if keys > 1 else {}  # one key is no batch, by the conventions


def _fail(span: Span, error: BaseException) -> None:
    span.set_attribute(ERROR_TYPE, type(error).__name__)
    if isinstance(error, DStashError):
        span.set_attribute(DB_STATUS, str(error.code))
    span.set_status(Status(StatusCode.ERROR, str(error)))
