"""Pages over HTTP, read-only: health, metrics, the dashboard.

Each connection has a thread of its own, so that one which reads slowly, or says nothing, holds up
nobody. There are few of them: when one more comes, the oldest has to go.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from typing import Any, Final, NamedTuple

import structlog

from dstash import threads
from dstash.errors import UsageError

_log = structlog.get_logger("dstash.peer")


class Answer(NamedTuple):
    """What a page says."""

    status: int
    body: bytes
    content_type: str = "application/json"

    @classmethod
    def json(cls, status: int, facts: dict[str, Any]) -> Answer:
        """Return facts as JSON."""
        return cls(status, json.dumps(facts).encode() + b"\n")


Page = Callable[[], Answer]

#: Connections at once, at most: each has a thread and a descriptor.
_MOST: Final = 32
#: Pages take nothing from elsewhere, run no code but their own, and stand in no frame.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_NOT_FOUND: Final = Answer.json(404, {"error": "no such page"})


class HttpServer:
    """Serves pages by path, read-only.

    Raises:
        UsageError: the address cannot be bound.
    """

    def __init__(self, host: str, port: int, pages: dict[str, Page]) -> None:
        handler = type("Handler", (_Handler,), {"pages": pages})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise UsageError(f"cannot serve HTTP on {host}:{port}: {error.strerror}") from None
        self.address = f"http://{host}:{self._server.server_address[1]}"
        self._stopping = False
        self._thread = threads.thread(
            self._server.serve_forever, 0.1, name="http", may_end=lambda: self._stopping
        )

    def start(self) -> None:
        """Serve in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self._stopping = True
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=5)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Past so many connections the oldest is closed, so that a probe still comes through."""

    daemon_threads = True
    request_queue_size = _MOST

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[Any, None] = {}  # in the order in which they came
        self._mutex = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._mutex:
            while len(self._open) >= _MOST:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):  # its thread was faster
                    oldest.shutdown(SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._mutex:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of our own mistakes; that somebody went away is none."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("a page failed")


class _Handler(BaseHTTPRequestHandler):
    pages: dict[str, Page]
    timeout = 5  # a client that says nothing does not keep a thread
    protocol_version = "HTTP/1.1"
    server_version = "dstash"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.pages.get(self.path.split("?", 1)[0])
        answer = page() if page is not None else _NOT_FOUND
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: probes come every second."""
