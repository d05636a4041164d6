"""Free ports."""

from __future__ import annotations

import random
import socket

_random = random.SystemRandom()  # a seeded one would give two test processes the same ports


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of ``host`` that is free for TCP and UDP at the moment."""
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ``count`` different ports of ``host`` that are free for TCP and UDP at the moment.

    Taken from below the range that the system uses for outgoing connections, so that none of
    those takes one before its server is up.
    """
    found: list[int] = []
    while len(found) < count:
        port = _random.randrange(10_000, 32_000)
        if port not in found and _is_free(host, port):
            found.append(port)
    return found


def _is_free(host: str, port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
