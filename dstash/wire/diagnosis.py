"""Why no connection to an address comes up, found out by a plain TCP connection.

libzmq reports only that a connection failed. A user must know whether the port is closed, another
program listens there, or the keys are wrong.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from dstash import threads
from dstash.waker import NO_DESCRIPTOR, Waker, no_descriptor

_CONNECT_TIMEOUT_S: Final = 1.0
#: A ZeroMQ process sends its greeting at once.
_GREETING_TIMEOUT_S: Final = 0.3
_ANSWER_TIMEOUT_S: Final = 0.5
#: Asks what listens: HTTP servers answer it, and Redis with an error.
_QUESTION: Final = b"GET / HTTP/1.0\r\n\r\n"
#: The begin of a ZMTP 3.0 greeting (ZeroMQ RFC 23): the other side sends the rest of its own then,
#: and has no mechanism yet to refuse. And where the mechanism is in a greeting.
_GREETING: Final = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0"
_MECHANISM: Final = slice(12, 32)
_CURVE: Final = "CURVE"

REFUSED: Final = "connection refused: no process listens on that port"
NO_CONNECTION: Final = "no connection: the host is down, or a firewall drops the packets"
SILENT: Final = "a process accepts connections there, but does not answer"
CLOSES: Final = "a process accepts connections there, but closes them"


class LastingReason(str):
    """A reason that does not go away by waiting."""

    __slots__ = ()


HTTP: Final = LastingReason(
    "an HTTP server answers there; the port of a peer for HTTP is not that for clients"
)
REDIS: Final = LastingReason("a Redis server answers there, not a peer of dstash")
OTHER: Final = LastingReason("the program that answers there is not a peer of dstash")
NEEDS_CURVE: Final = LastingReason(
    "the peer there requires CURVE; set curve, server_key, cert_file and key_file"
)
NO_CURVE: Final = LastingReason("the peer there does not use CURVE; set curve to false")
WRONG_KEY: Final = LastingReason("the peer there does not have the key that server_key says")


class Shortage(str):
    """A reason on this side: the process has no free descriptor."""

    __slots__ = ()


class Finding(NamedTuple):
    """What listens at an address: why no connection comes up, as far as one can see from outside.

    ``mechanism`` is the one that a ZeroMQ process requires (``NULL`` or ``CURVE``), else empty.
    """

    reason: str
    mechanism: str = ""


def examine(endpoint: str) -> Finding:
    """Connect to ``tcp://address:port``, and find out what listens there. Takes up to 2 s."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S)
    except ConnectionRefusedError:
        return Finding(REFUSED)
    except TimeoutError:
        return Finding(NO_CONNECTION)
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            return Finding(Shortage(no_descriptor(error.errno)))
        return Finding(f"no connection: {error.strerror or error}")
    with connection:
        try:
            return _listen(connection)
        except OSError:
            return Finding(CLOSES)


def _listen(connection: socket.socket) -> Finding:
    said = _heard(connection, _GREETING_TIMEOUT_S)
    if said is None:
        connection.sendall(_QUESTION)
        said = _heard(connection, _ANSWER_TIMEOUT_S)
    if said is None:
        return Finding(SILENT)
    if said.startswith(_GREETING[:1]):
        return Finding(CLOSES, _mechanism(connection, said))
    if said.startswith(b"HTTP/"):
        return Finding(HTTP)
    if said.startswith((b"-ERR", b"-NOAUTH", b"-DENIED", b"-LOADING")):
        return Finding(REDIS)
    return Finding(OTHER if said else CLOSES)


def _mechanism(connection: socket.socket, said: bytes) -> str:
    """Exchange greetings, and return the mechanism of the other side; empty if it sends none."""
    connection.sendall(_GREETING)
    while len(said) < _MECHANISM.stop and (more := _heard(connection, _ANSWER_TIMEOUT_S)):
        said += more
    return said[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")


def _heard(connection: socket.socket, timeout: float) -> bytes | None:
    """Return the first bytes that arrive, empty at the end; None if nothing arrives in time."""
    connection.settimeout(timeout)
    with suppress(TimeoutError):
        return connection.recv(64)
    return None


class Diagnoses:
    """Examines addresses, each on its own thread.

    Attributes:
        waker: readable when there is something to ``take``.
    """

    def __init__(self) -> None:
        self.waker = Waker()
        self._running: set[str] = set()
        self._found: deque[tuple[str, str]] = deque()
        #: How often in a row a peer closed the connection during the CURVE handshake.
        self._closed: Counter[str] = Counter()

    def begin(self, peer: str, endpoint: str, *, has_key: bool, was_closed: bool) -> None:
        """Examine the address of a peer, unless that is being done.

        Args:
            peer: whose connection failed.
            endpoint: numeric address and port.
            has_key: whether the connection used CURVE.
            was_closed: whether the peer closed it during the CURVE handshake, as it does if it
                cannot decrypt the first message.
        """
        if peer not in self._running:
            self._running.add(peer)
            arguments = (peer, endpoint, has_key, was_closed)
            name = f"diagnosis {endpoint}"
            threads.thread(self._work, *arguments, name=name, may_end=lambda: True).start()

    def take(self) -> Iterator[tuple[str, str]]:
        """Yield the peers that were examined since the last call, with the reason for each."""
        self.waker.clear()
        with suppress(IndexError):
            while True:
                yield self._found.popleft()

    def succeeded(self, peer: str) -> None:
        """Record that a connection to a peer came up."""
        self._closed.pop(peer, None)

    def _work(self, peer: str, endpoint: str, has_key: bool, was_closed: bool) -> None:
        try:
            reason = self._reason(peer, examine(endpoint), has_key, was_closed)
        except Exception as error:  # the call waits for a reason
            reason = f"no connection: {error}"
        self._running.discard(peer)
        self._found.append((peer, reason))
        self.waker.wake()

    def _reason(self, peer: str, finding: Finding, has_key: bool, was_closed: bool) -> str:
        uses_curve = finding.mechanism == _CURVE
        if finding.mechanism and uses_curve != has_key:
            return NEEDS_CURVE if uses_curve else NO_CURVE
        if not (uses_curve and was_closed):
            return finding.reason
        self._closed[peer] += 1
        # A peer that stops closes its connections, too, but not twice.
        return WRONG_KEY if self._closed[peer] > 1 else str(WRONG_KEY)
