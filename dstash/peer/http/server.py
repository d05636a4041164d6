"""The HTTP server of a peer: read-only pages for health, metrics and the dashboard.

Each connection has its own thread, so that a slow or silent one delays no other connection. Their
number is bounded: a further connection closes the oldest.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final, NamedTuple

import structlog

from dstash import threads
from dstash.errors import UsageError

_log = structlog.get_logger("dstash.peer")


class Answer(NamedTuple):
    """The response of a page."""

    status: int
    body: bytes
    content_type: str = "application/json"

    @classmethod
    def json(cls, status: int, values: dict[str, Any]) -> Answer:
        """Return values as JSON."""
        return cls(status, json.dumps(values).encode() + b"\n")


Page = Callable[[], Answer]

#: The most connections: each has a thread and a descriptor.
_MAX_CONNECTIONS: Final = 32
#: Pages load nothing from other hosts, run only their own code, and appear in no frame.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_NOT_FOUND: Final = Answer.json(404, {"error": "no such page"})


#: Binds all addresses of the machine: of IPv6 and IPv4, or of IPv4 where there is no IPv6.
_EVERYWHERE: Final = "*"


class HttpServer:
    """Serves pages by path, read-only.

    Args:
        host: an address, a host name of this machine, or ``*``. ``::`` includes IPv4.
        port: 0 for any free port.
        pages: by path.

    Raises:
        UsageError: the address cannot be bound.
    """

    def __init__(self, host: str, port: int, pages: dict[str, Page]) -> None:
        handler = type("Handler", (_Handler,), {"pages": pages})
        shown = f"[{host}]" if ":" in host else host
        try:
            self._server = _bound(host, port, handler)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"cannot serve HTTP on {shown}:{port}: {reason}") from None
        self.address = f"http://{shown}:{self._server.server_address[1]}"
        self._stopping = False
        # It waits for connections without a timeout; ``stop`` ends the wait.
        self._thread = threads.thread(
            self._server.serve_forever, None, name="http", may_end=lambda: self._stopping
        )

    def start(self) -> None:
        """Serve in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self._stopping = True
        if self._thread.is_alive():
            # This wakes the thread. Some systems refuse it, but wake the thread nevertheless.
            with suppress(OSError):
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
            self._thread.join(timeout=5)
        self._server.server_close()


def _bound(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> _Server:
    """Return a server on the first address of ``host`` that can be bound.

    Raises:
        OSError: none can be bound, or the name does not resolve.
    """
    hosts = ("::", "0.0.0.0") if host == _EVERYWHERE else (host,)  # noqa: S104  # as asked for
    places = [
        place for each in hosts for place in socket.getaddrinfo(each, port, type=socket.SOCK_STREAM)
    ]
    for family, *_, address in places[:-1]:
        try:
            return _Server(family, address, handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # another server has the port: not half of it
                raise
    family, *_, address = places[-1]
    return _Server(family, address, handler)


class _Server(ThreadingHTTPServer):
    """Closes the oldest connection when there are too many, so that probes still get through."""

    daemon_threads = True
    request_queue_size = _MAX_CONNECTIONS

    def __init__(self, family: int, address: Any, handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[Any, None] = {}  # in the order of arrival
        self._mutex = threading.Lock()
        self.address_family = family
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without looking up the name of the host: DNS must not delay the start."""
        if self.address_family == socket.AF_INET6:  # ``::`` includes IPv4 too
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._mutex:
            while len(self._open) >= _MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):  # its thread has closed it already
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._mutex:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log defects of a page; a client that disconnects is none."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("a page failed")


class _Handler(BaseHTTPRequestHandler):
    pages: dict[str, Page]
    timeout = 5  # a silent client does not keep a thread
    protocol_version = "HTTP/1.1"
    server_version = "dstash"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        page = self.pages.get(self.path.split("?", 1)[0])
        answer = page() if page is not None else _NOT_FOUND
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes come every second."""
