"""A collector of traces: receives OTLP over HTTP and keeps the spans."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from tests.harness.waiting import PATIENCE, wait_until


class Seen(NamedTuple):
    """A span of any process. Ids are hexadecimal, times in nanoseconds."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    begin: int
    end: int
    failed: bool
    details: dict[str, Any]
    #: The attributes of its resource.
    maker: dict[str, Any]
    links: tuple[tuple[str, str], ...] = ()

    def is_within(self, other: Seen) -> bool:
        """Whether it is a child of another span and lies within its time."""
        return self.parent == other.id and other.begin <= self.begin <= self.end <= other.end


class Collector:
    """Listens on its own port. ``status`` is the HTTP status of its answers."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.asked: list[str] = []
        self.status = 200
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def named(self, *names: str) -> list[Seen]:
        """Return the spans with these names, in order of their start."""
        return sorted(
            (span for span in self.spans if span.name in names), key=lambda span: span.begin
        )

    def wait_for(self, name: str, number: int = 1) -> list[Seen]:
        """Wait until there are this many spans of a name, and return them."""
        what = f"{number} spans named {name!r}"
        wait_until(lambda: len(self.named(name)) >= number, PATIENCE, what)
        return self.named(name)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.asked.append(self.path)
                if collector.status == 200:
                    collector.spans += _decoded(body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        return Handler


def _decoded(body: bytes) -> Iterable[Seen]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        maker = _facts(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Seen(
                    span.name,
                    type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == 2,
                    _facts(span.attributes),
                    maker,
                )


def _facts(attributes: Any) -> dict[str, Any]:
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value"))
        for attribute in attributes
    }


def seen(spans: Iterable[ReadableSpan]) -> list[Seen]:
    """Return the spans that this process made."""
    return [_seen(span) for span in spans]


def _seen(span: ReadableSpan) -> Seen:
    assert span.context is not None
    return Seen(
        span.name,
        span.kind.name,
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
        f"{span.parent.span_id:016x}" if span.parent else "",
        span.start_time or 0,
        span.end_time or 0,
        not span.status.is_ok and not span.status.is_unset,
        dict(span.attributes or {}),
        dict(span.resource.attributes),
        tuple((f"{to.context.trace_id:032x}", f"{to.context.span_id:016x}") for to in span.links),
    )
