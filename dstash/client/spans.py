"""A span for each call of a client.

The methods of a client that is traced are covered by others, on that object alone: a client that is
not traced has nothing in their way.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dstash.about import __version__
from dstash.client.results import BatchResult
from dstash.client.session import Session
from dstash.config import ClientSettings
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
from dstash.wire.messages import Scan, ScanKeys

if TYPE_CHECKING:
    from dstash.client.transport.coalesced import Group

#: Calls whose first argument is an index; and those of them whose second one is many keys.
_OF_INDEX: Final = ("put", "lookup", "delete", "exists", "ttl", "touch", "count", "where")
_BATCHES: Final = ("batch_put", "batch_lookup", "batch_delete")
_OTHERS: Final = ("status", "repair", "topology", "order")
#: Walks last as long as the caller likes, so it is their pages that have spans.
_WALKS: Final[dict[type, str]] = {Scan: "items", ScanKeys: "keys"}

_W3C: Final = TraceContextTextMapPropagator()

Attributes = dict[str, str | int]


class CallSpans:
    """Makes the spans of one client.

    Args:
        settings: what is said of the client in each span.
        session: returns what knows where the peers are: another one after a fork.
        provider: makes the tracer; None for that of the process.
    """

    def __init__(
        self, settings: ClientSettings, session: Callable[[], Session], provider: Any
    ) -> None:
        self._settings = settings
        self._session = session
        self._tracer = trace.get_tracer(SYSTEM, __version__, provider)

    def trace(self) -> str:
        """Return the trace that the caller is in, as W3C Trace Context has it; empty for none."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent", "")

    def join(self, group: Group) -> None:
        """Have a group be part of the caller's trace, or link the caller's span to its trace.

        One message is part of one trace. The first call of a turn gives its own, the first that is
        recorded if there is one; the others can be followed to it.
        """
        mine = self.trace()
        if not group.trace or (_is_sampled(mine) and not _is_sampled(group.trace)):
            group.trace = mine
        elif group.trace != mine:
            context = _W3C.extract({"traceparent": group.trace})
            there = trace.get_current_span(context).get_span_context()
            trace.get_current_span().add_link(there)

    def cover(self, client: Any) -> None:
        """Have the methods of a client make spans."""
        for name in (*_OF_INDEX, *_BATCHES, *_OTHERS):
            self._cover(client, name, functools.partial(self._call, name))
        self._cover(client, "_page", self._page)

    # -- inside

    def _cover(self, client: Any, name: str, begin: Callable[..., Any]) -> None:
        method = getattr(client, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with begin(*args, **kwargs) as span:
                result = method(*args, **kwargs)
                _tell(name, span, result)
                return result

        @functools.wraps(method)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with begin(*args, **kwargs) as span:
                result = await method(*args, **kwargs)
                _tell(name, span, result)
                return result

        setattr(client, name, call_async if inspect.iscoroutinefunction(method) else call)

    @contextmanager
    def _call(self, name: str, *args: Any, **kwargs: Any) -> Iterator[Span]:
        attributes: Attributes = {}
        if name not in _OTHERS:
            index = args[0] if args else kwargs.get("index")
            attributes[DB_COLLECTION] = str(index)
        if name in _BATCHES:
            many = args[1] if len(args) > 1 else kwargs.get("entries", kwargs.get("keys"))
            if isinstance(many, Sized):
                attributes |= _size(len(many))
        with self._span(name, attributes) as span:
            yield span

    @contextmanager
    def _page(self, walk: Any, timeout: float | None) -> Iterator[Span]:
        name = _WALKS.get(walk.request)
        if name is None:  # ``count`` has a span of its own, for all its pages
            yield trace.INVALID_SPAN
            return
        with self._span(name, {DB_COLLECTION: walk.index}) as span:
            yield span

    @contextmanager
    def _span(self, name: str, attributes: Attributes) -> Iterator[Span]:
        attributes |= {
            DB_SYSTEM: SYSTEM,
            DB_NAMESPACE: self._settings.cluster,
            DB_OPERATION: name,
            **self._server(),
        }
        with self._tracer.start_as_current_span(
            f"{SYSTEM} {name}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except KeyError:
                raise  # that a key is not there is an answer
            except BaseException as error:  # also when the caller was cancelled
                _fail(span, error)
                raise

    def _server(self) -> Attributes:
        """Return where the cluster is: the peer that the settings name, else one that is known."""
        view = self._session().view
        members = view.topology.members if view else ()
        found = [*self._settings.peers, *(one.address for one in members)]
        if not found:
            return {}
        parts = urlsplit(found[0])
        return {SERVER_ADDRESS: parts.hostname or "", SERVER_PORT: parts.port or 0}


def _is_sampled(traceparent: str) -> bool:
    return bool(traceparent) and bool(int(traceparent[-2:], 16) & trace.TraceFlags.SAMPLED)


def _size(keys: int) -> Attributes:
    return {DB_BATCH_SIZE: keys} if keys > 1 else {}  # one is no batch, by the conventions


def _tell(name: str, span: Span, result: Any) -> None:
    """Say on a span what came of the call."""
    if name == "batch_lookup":
        span.set_attribute(DB_RETURNED, len(result))
    if isinstance(result, BatchResult):
        span.set_attributes(_size(result.stored + len(result.outcomes)))
        try:
            result.raise_for_failures()
        except BatchError as error:
            _fail(span, error)


def _fail(span: Span, error: BaseException) -> None:
    span.set_attribute(ERROR_TYPE, type(error).__name__)
    if isinstance(error, DStashError):
        span.set_attribute(DB_STATUS, str(error.code))
    span.set_status(Status(StatusCode.ERROR, str(error)))
