"""Free ports."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import Final

#: Below the range of outgoing connections, which therefore never use a port before its server.
_LOWEST: Final = 10_000
_COUNT: Final = 22_000
_CURSOR: Final = Path(tempfile.gettempdir()) / f"dstash-test-ports-{os.getuid()}"


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of ``host`` that is free for TCP and UDP and is not returned again."""
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ``count`` different ports of ``host`` that are free for TCP and UDP.

    All test processes of this machine share a cursor, so no other test can choose the port before
    its server starts or while it restarts.
    """
    with _CURSOR.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        at = int(file.read() or os.getpid() % _COUNT)
        found: list[int] = []
        while len(found) < count:
            at = (at + 1) % _COUNT
            if _is_free(host, _LOWEST + at):
                found.append(_LOWEST + at)
        file.seek(0)
        file.truncate()
        file.write(str(at))
    return found


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
