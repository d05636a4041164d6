"""Cases with their own name resolution, run as a program in separate namespaces.

``unshare --mount --net python -m tests.integration.dns_world CASE FOLDER``: /etc/hosts and
/etc/resolv.conf are replaced by files of the case, and a DNS server on loopback answers, drops or
delays queries.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dstash import Client
from tests.harness.peers import Peers
from tests.harness.waiting import PATIENCE, wait_until

_SIOCSIFFLAGS: Final = 0x8914
_UP_AND_RUNNING: Final = 0x41


class NameServer:
    """Answers A queries from ``addresses``, unless ``drops`` is set."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.drops = False
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(4096)
            self.asked += 1
            if not self.drops:
                self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12 : at + 5]
        (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
        address = self.addresses.get(".".join(labels))
        answers = b""
        if address and kind == 1:
            answers = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(address)
        flags = 0x8180 if address else 0x8183
        head = query[:2] + struct.pack(">HHHHH", flags, 1, bool(answers), 0, 0)
        return head + question + answers


def prepare(folder: Path, hosts: str) -> NameServer:
    """Set up loopback and the name resolution of the case."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14s", b"lo", _UP_AND_RUNNING, b"")
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)
    for name, text in (
        ("hosts", f"127.0.0.1 localhost\n{hosts}"),
        ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:15 attempts:2\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
    ):
        file, target = folder / name, Path("/etc") / name
        file.write_text(text)
        if not target.exists():
            target.touch()
        subprocess.run(["mount", "--bind", str(file), str(target)], check=True)
    return NameServer()


def formed(folder: Path, *hosts: str) -> Peers:
    """Return ready peers with host names."""
    peers = Peers.local(folder)
    for host in hosts:
        name = host.partition(".")[0]
        peers.start(name, "--min-peers", str(len(hosts)), "--advertise", host)
    for peer in peers.all.values():
        peer.wait_ready()
    return peers


def works(client: Client, seconds: float) -> float:
    """Make calls for some time; return the duration of the slowest call."""
    slowest, end, number = 0.0, time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
        began = time.monotonic()
        client.put("i", f"k{number % 50}", number)
        assert client.lookup("i", f"k{number % 50}") == number
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def dropped_answers(folder: Path) -> None:
    """One peer is down and DNS does not answer for its name: the others serve."""
    server = prepare(folder, "127.0.0.1 a.test\n127.0.0.1 b.test\n")
    server.addresses["c.test"] = "127.0.0.1"
    with formed(folder, "a.test", "b.test", "c.test") as peers:
        old = peers.client(timeout=5.0)
        works(old, 1.0)
        server.drops = True
        before = server.asked
        peers["c"].kill()
        assert works(old, 6.0) < 2.0
        assert works(peers.client(timeout=5.0), 6.0) < 2.0
        assert server.asked > before, "the name of the stopped peer was never looked up"


def moved_peer(folder: Path) -> None:
    """A peer restarts under its name at another address: an existing client finds it."""
    server = prepare(folder, "127.0.0.1 a.test\n127.0.0.1 b.test\n")
    server.addresses["c.test"] = "127.0.0.2"
    with Peers.local(folder) as peers:
        for host in ("a.test", "b.test"):
            peers.start(host[0], "--min-peers", "3", "--advertise", host)
        c = peers.start("c", "--min-peers", "3", "--advertise", "c.test")
        c.kill()
        c.bind = "127.0.0.2"
        c.start()
        for peer in peers.all.values():
            peer.wait_ready()
        client = Client(peers["a"].address, timeout=5.0)
        works(client, 1.0)
        c.stop()
        c.bind = server.addresses["c.test"] = "127.0.0.3"
        c.start()
        c.wait_ready()
        heard = c.lookups()

        def is_asked() -> bool:
            client.batch_lookup("i", [f"k{n}" for n in range(50)], read="all")
            return c.lookups() > heard

        wait_until(is_asked, PATIENCE, "the client asks the peer at its new address")
        client.close()


def either_family(folder: Path) -> None:
    """A name has an IPv6 and an IPv4 address, and the peer listens on one of them."""
    prepare(folder, "::1 dual.test\n127.0.0.1 dual.test\n")
    with Peers.local(folder) as peers:
        peers.start("a")
        peers["a"].wait_ready()
        with Client(f"dual.test:{peers['a'].port}", timeout=5.0) as client:
            assert works(client, 0.5) < 2.0


CASES: Final[dict[str, Callable[[Path], None]]] = {
    "dropped-answers": dropped_answers,
    "moved-peer": moved_peer,
    "either-family": either_family,
}

if __name__ == "__main__":
    CASES[sys.argv[1]](Path(sys.argv[2]))
