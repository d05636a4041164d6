"""Hostile clients."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import zmq

from dstash.wire.curve import KeyPair
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.shapes import Message

#: The greeting of ZMTP 3.0 with mechanism NULL.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32)

#: The greetings of ZMTP 2.0 and 1.0, which have no mechanism: a DEALER without an identity.
GREETING_2 = b"\xff" + bytes(8) + b"\x7f\x01\x05" + b"\x00\x00"
GREETING_1 = b"\x01\x00"


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


_BODY = b"\x05READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b"")

#: The command that ends the handshake of mechanism NULL.
READY = bytes((4, len(_BODY))) + _BODY


class Attacker:
    """A DEALER without the checks of ``Link``."""

    def __init__(
        self,
        address: str,
        *,
        keys: KeyPair | None = None,
        server: str = "",
        identity: bytes = b"",
        high_water: int = 0,
    ) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.SNDHWM, high_water)
        self.socket.set(zmq.RCVHWM, high_water)
        if identity:
            self.socket.set(zmq.ROUTING_ID, identity)
        if keys is not None:
            self.socket.set(zmq.CURVE_SERVERKEY, server.encode())
            self.socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
            self.socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self.socket.connect(address)

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close(linger=0)
        self._context.term()

    def send(self, *parts: bytes) -> None:
        """Send frames as they are."""
        self.socket.send_multipart(parts)

    def ask(
        self, message: Message, *, epoch: int = 0, deadline: int = 0, timeout: float = 10.0
    ) -> Message | None:
        """Send a message and return the next answer; None after the timeout."""
        self.send(*encode(Envelope(7, epoch, deadline, message)))
        return self.next(timeout)

    def next(self, timeout: float = 10.0) -> Message | None:
        """Return the next answer; None after the timeout."""
        if not self.socket.poll(int(timeout * 1000)):
            return None
        return decode(self.socket.recv_multipart()).message


@contextmanager
def raw(port: int) -> Iterator[socket.socket]:
    """A TCP connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def is_closed(connection: socket.socket) -> bool:
    """Wait until the other side has closed a connection, or until the timeout of the socket."""
    try:
        while connection.recv(65536):
            continue
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


class Recorder:
    """A proxy between a client and a peer that records the bytes of the client."""

    def __init__(self, port: int) -> None:
        self._peer = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = b""
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        """Forward bytes between a client and the peer until either side closes."""
        client, _ = self._listener.accept()
        with client, raw(self._peer) as peer, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, peer)
            selector.register(peer, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    said = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not said:
                        return
                    self.sent += said if key.fileobj is client else b""
                    key.data.sendall(said)


class Crowd:
    """Connections that send only a few bytes or none, and are reopened when they are closed.

    Args:
        port: of the peer.
        sizes: the number of connections by the bytes that they send.
    """

    def __init__(self, port: int, sizes: dict[bytes, int]) -> None:
        self._port = port
        self._sizes = sizes
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        #: The number of connections that were accepted and then closed.
        self.made = self.closed = 0

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            self._close(key.fileobj)
        self._selector.close()

    def _run(self) -> None:
        for say, size in self._sizes.items():
            for _ in range(size):
                self._open(say)
        while not self._stop.is_set():
            for key, _ in self._selector.select(timeout=0.1):
                self._go_on(key.fileobj, key.events, key.data)

    def _open(self, say: bytes) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", self._port))
        self._selector.register(connection, selectors.EVENT_WRITE, say)

    def _go_on(self, connection: Any, events: int, say: bytes) -> None:
        try:
            if events == selectors.EVENT_WRITE:  # it is connected or was refused
                connection.send(say)
                self.made += 1
                self._selector.modify(connection, selectors.EVENT_READ, say)
                return
            if connection.recv(1000):
                return
        except OSError:
            pass
        self.closed += 1
        self._close(connection)
        self._open(say)

    def _close(self, connection: Any) -> None:
        self._selector.unregister(connection)
        connection.close()


def shake_hands(connection: socket.socket) -> None:
    """Do the NULL handshake of ZMTP without libzmq."""
    connection.sendall(GREETING)
    connection.sendall(READY)
    answer = b""
    while b"READY" not in answer:
        answer += connection.recv(1000)


def endless(connection: socket.socket, frame: bytes, most: int) -> int:
    """Send frames of a message that never ends; return how many bytes the peer accepted."""
    size = len(frame)
    head = bytes((1, size)) if size < 256 else b"\x03" + size.to_bytes(8, "big")
    burst = (head + frame) * max(1, 65536 // (size + 9))
    sent = 0
    with suppress(OSError):
        while sent < most:
            connection.sendall(burst)
            sent += len(burst)
    return sent
