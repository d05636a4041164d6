"""Raw pyzmq: a ROUTER that echoes messages, and a DEALER: a limit for every store on pyzmq.

``python -m bench.stores.echo PORT`` is the server. The messages have the size of a look-up of a key
and of its answer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final

import zmq

from bench.stores.servers import START_SECONDS, Server
from bench.stores.store import System
from tests.harness.ports import free_ports

#: Bytes of the two frames of a message.
_FRAMES: Final = (bytes(40), bytes(128))
_WINDOW: Final = 256


class EchoServer(System):
    """The server in a separate process, like all others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        [self.port] = free_ports(1)
        self.servers: list[Server] = []

    def start(self) -> None:
        """Start the process."""
        self._folder.mkdir(parents=True)
        command = [sys.executable, "-m", "bench.stores.echo", str(self.port)]
        self.servers.append(Server("echo", command, self._folder))

    def stop(self) -> None:
        """Stop the process."""
        for server in self.servers:
            server.stop()


class EchoClient:
    """A DEALER that sends messages and receives their echo."""

    def __init__(self, port: int) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self._socket.set(zmq.RCVTIMEO, int(START_SECONDS * 1000))
        self.round_trip()  # waits until the server answers

    def round_trip(self) -> None:
        """Send a message and wait for its echo."""
        self._socket.send_multipart(_FRAMES)
        self._socket.recv_multipart()

    def rate(self, messages: int) -> float:
        """Return echoed messages a second with 256 in flight."""
        began = time.perf_counter()
        for _ in range(_WINDOW):
            self._socket.send_multipart(_FRAMES)
        for _ in range(messages - _WINDOW):
            self._socket.recv_multipart()
            self._socket.send_multipart(_FRAMES)
        for _ in range(_WINDOW):
            self._socket.recv_multipart()
        return messages / (time.perf_counter() - began)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(linger=0)
        self._context.term()


def serve(port: int) -> None:
    """Echo messages for ever."""
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(f"tcp://127.0.0.1:{port}")
    while True:
        router.send_multipart(router.recv_multipart())


if __name__ == "__main__":
    serve(int(sys.argv[1]))
