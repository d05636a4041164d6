"""The goodput of a peer under ten times the load that it can serve.

``python -m bench.overload``: one peer and a growing number of clients with a constant request rate
each. Goodput is the rate of successful answers in time. It should stay above 80% of its peak at ten
times the load, and recover at once after it. Peak, overload and peak are measured alternately, and
the medians of the ratios are reported, because other load on the machine varies. The clients use
processor time too, so goodput per processor time of the peer is also reported. Exits with 1 if a
target is missed.
"""

from __future__ import annotations

import argparse
import heapq
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Final, NamedTuple

import zmq

from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.keys import encode_keys
from dstash.wire.messages import Error, Lookup, Put, Stored, Values
from dstash.wire.shapes import Frame, Message
from tests.harness.peers import Peer, Peers
from tests.security.attackers import Attacker
from tests.security.closed import memory

#: Deadline of an answer (milliseconds), keys in a request, and connections.
TIMEOUT_MS: Final = 1000
KEYS: Final = 200
CONNECTIONS: Final = 8
#: The overload as a multiple of the capacity, and the required share of the peak goodput.
FACTOR: Final = 10
TARGET: Final = 0.8
#: The number of clients that use the capacity of the peer.
CLIENTS: Final = 200
_GOOD: Final = (Values, Stored)
_FRAME: Final = Frame(codec.pack_blobs(encode_keys([f"key{n}" for n in range(KEYS)])))
_PAYLOADS: Final = Frame(codec.pack_blobs([b"\xc4\x64" + b"v" * 100] * KEYS))


class Result(NamedTuple):
    """Requests per second: answered in time, sent, and rejected as busy."""

    good: float
    asked: float
    busy: float
    #: Good answers per second of the peer's processor time, which other load affects less.
    thrift: float


def look_up() -> Message:
    """Return a read request."""
    return Lookup("bench", 1, _FRAME)


def put() -> Message:
    """Return a write request."""
    version = pack(stamp_at(time.time_ns() // 1_000_000), bytes(12))
    return Put("bench", version, 0, _FRAME, _PAYLOADS)


def _processor_seconds(peer: Peer) -> float:
    assert peer.process is not None
    fields = Path(f"/proc/{peer.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    """Clients with one pending request each and the retry policy of dstash's client.

    Together they send ``rate`` requests a second. A client that is rejected retries after the given
    time plus up to a half at random; a client without an answer retries after the timeout.
    """

    def __init__(self, peer: Peer, make: Callable[[], Message], epoch: int) -> None:
        self._peer, self._make, self._epoch = peer, make, epoch
        self._ends = [Attacker(peer.address) for _ in range(CONNECTIONS)]
        self._random = Random(1)
        self._sent: dict[int, tuple[float, float]] = {}
        self._ready: list[float] = []
        self._late: deque[tuple[float, int]] = deque()
        self._next = self._good = self._busy = 0
        self._interval = 0.0

    def close(self) -> None:
        """Close the connections."""
        for end in self._ends:
            end.__exit__()

    def run(self, seconds: float, clients: int, rate: float = 1e9) -> Result:
        """Run this number of clients."""
        self._good = self._busy = asked = 0
        self._sent.clear()
        self._late.clear()
        self._interval = clients / rate
        worked = _processor_seconds(self._peer)
        began = now = time.monotonic()
        self._ready = [began + self._random.random() * self._interval for _ in range(clients)]
        heapq.heapify(self._ready)
        while (now := time.monotonic()) < began + seconds:
            asked += self._ask_all(now)
            self._give_up(now)
            self._collect()
        spent = now - began
        worked = _processor_seconds(self._peer) - worked
        return Result(self._good / spent, asked / spent, self._busy / spent, self._good / worked)

    def _ask_all(self, now: float) -> int:
        asked = 0
        while self._ready and self._ready[0] <= now and asked < 50:
            self._ask(now, heapq.heappop(self._ready))
            asked += 1
        return asked

    def _ask(self, now: float, wanted: float) -> None:
        self._next += 1
        deadline = time.time_ns() // 1_000_000 + TIMEOUT_MS
        envelope = Envelope(self._next, self._epoch, deadline, self._make())
        self._ends[self._next % CONNECTIONS].socket.send_multipart(encode(envelope))
        self._sent[self._next] = (now, wanted)
        self._late.append((now + TIMEOUT_MS / 1000, self._next))

    def _give_up(self, now: float) -> None:
        while self._late and self._late[0][0] < now:
            _, number = self._late.popleft()
            if self._sent.pop(number, None) is not None:
                heapq.heappush(self._ready, now)

    def _collect(self) -> None:
        idle = True
        for end in self._ends:
            for _ in range(50):
                try:
                    parts = end.socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                idle = False
                self._count(decode(parts))
        if idle:
            self._ends[0].socket.poll(1)

    def _count(self, envelope: Envelope) -> None:
        sent = self._sent.pop(envelope.correlation, None)
        if sent is None:
            return  # too late
        now = time.monotonic()
        if isinstance(envelope.message, _GOOD):
            self._good += 1
            heapq.heappush(self._ready, max(now, sent[1] + self._interval))
            return
        self._busy += 1
        details = envelope.message.details if isinstance(envelope.message, Error) else {}
        hold = details.get("retry_after_ms", 50) / 1000
        heapq.heappush(self._ready, now + hold * (1 + self._random.random() / 2))


class Ratios(NamedTuple):
    """Ratios to the peak: goodput, goodput per processor time, and goodput afterwards."""

    good: float
    thrift: float
    after: float


def measure(peer: Peer, make: Callable[[], Message], seconds: float, rounds: int) -> Ratios:
    """Overload the peer repeatedly and let it recover; return the medians."""
    load = Load(peer, make, int(peer.page("/status")["epoch"]))
    found = []
    try:
        load.run(1, clients=64)
        before = load.run(seconds, clients=64)
        for _ in range(rounds):
            over = load.run(seconds, CLIENTS * FACTOR, before.good * FACTOR)
            time.sleep(2 * TIMEOUT_MS / 1000)
            after = load.run(seconds, clients=64)
            peak = (before.good + after.good) / 2
            thrift = (before.thrift + after.thrift) / 2
            found.append(Ratios(over.good / peak, over.thrift / thrift, after.good / before.good))
            _print(make().__class__.__name__, over, peak, peer)
            before = after
    finally:
        load.close()
    return Ratios(*(median(column) for column in zip(*found, strict=True)))


def _print(name: str, over: Result, peak: float, peer: Peer) -> None:
    share = over.good / peak
    sys.stdout.write(
        f"{name:<7} peak {peak:>6.0f}/s  asked {over.asked:>6.0f}/s  good {over.good:>6.0f}/s "
        f"({share:>4.0%})  refused {over.busy:>6.0f}/s  memory {memory(peer):>4.0f} MiB\n"
    )


def main() -> int:
    """Measure reads and writes."""
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each load")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    missed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        Peers.local(Path(folder), "--replicas", "1") as peers,
    ):
        peers.form("p1")
        with peers.client() as client:
            client.batch_put("bench", {f"key{n}": b"v" * 100 for n in range(KEYS)})
        for make in (look_up, put):
            ratios = measure(peers["p1"], make, options.seconds, options.rounds)
            missed += min(ratios.good, ratios.after) < TARGET
            sys.stdout.write(
                f"{make().__class__.__name__}: at {FACTOR} times the load {ratios.good:.0%} of the "
                f"peak ({ratios.thrift:.0%} by the peer's processor time), {ratios.after:.0%} "
                f"afterwards; the target is {TARGET:.0%}\n"
            )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
