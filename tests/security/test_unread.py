"""Many clients that request large values and never read: the memory of a peer is limited."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import zmq

from dstash import Client
from dstash.limits import MAX_VALUE_BYTES, MIB
from dstash.wire import codec
from dstash.wire.envelope import Envelope, encode
from dstash.wire.keys import encode_keys
from dstash.wire.messages import Lookup, Want
from dstash.wire.shapes import Frame
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import wait_until
from tests.security.attackers import Attacker
from tests.security.closed import forget_peak, memory, peak

pytestmark = pytest.mark.timeout(180)

#: The number of clients that never read.
CLIENTS = 40
#: Duration and interval of their requests (seconds).
SIEGE = 6.0 * int(os.environ.get("SOAK", "1"))
PAUSE = 0.3
#: Within this time (seconds) another client is served meanwhile, on a busy machine; reading the
#: large values takes most of it.
SERVED = 20.0


@pytest.fixture
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """A peer with default settings."""
    with Peers.local(tmp_path_factory.mktemp("unread"), "--replicas", "1") as cluster:
        cluster.start("p1").wait_ready()
        yield cluster


@pytest.fixture
def good(peers: Peers) -> Iterator[Client]:
    with peers.client(timeout=SERVED) as client:
        yield client


def look_up(peers: Peers, *names: str) -> list[bytes]:
    """Return the frames of a request for keys."""
    frame = Frame(codec.pack_blobs(encode_keys(list(names))))
    with peers.client() as client:
        epoch = client.topology().epoch
    return encode(Envelope(4, epoch, 0, Lookup("i", Want.VALUES, frame)))


def ask_for_ever(attackers: list[Attacker], frames: list[bytes], stop: threading.Event) -> None:
    """Let all of them send as many requests as the peer accepts, and read nothing."""
    while not stop.is_set():
        for attacker in attackers:
            with suppress(zmq.Again):
                attacker.socket.send_multipart(frames, zmq.NOBLOCK)
        time.sleep(PAUSE)


#: The size of values, and the allowed memory of a peer (MiB). An answer with a value of the largest
#: size briefly needs a few times its size.
@pytest.mark.parametrize(("size", "allowed"), [(100_000, 64), (MAX_VALUE_BYTES - 100, 88)])
def test_clients_that_never_read_use_limited_memory_and_block_no_others(
    peers: Peers, good: Client, size: int, allowed: int
) -> None:
    peer, names = peers["p1"], [f"big{number}" for number in range(4 * MIB // size + 1)]
    for name in names:
        good.put("i", name, os.urandom(size))
    good.put("i", "k", "v")
    frames = look_up(peers, *names)
    for _ in range(5):  # until the whole file is mapped
        good.batch_lookup("i", names)
    forget_peak(peer)
    before, idle = peak(peer), memory(peer)
    with ExitStack() as stack:
        crowd = [stack.enter_context(Attacker(peer.address, high_water=1)) for _ in range(CLIENTS)]
        stop = threading.Event()
        siege = threading.Thread(target=ask_for_ever, args=(crowd, frames, stop))
        siege.start()
        try:
            serve_meanwhile(good, names)
        finally:
            stop.set()
            siege.join()
        held = peak(peer) - before
    assert held < allowed, f"{held:.0f} MiB held at most"
    wait_until(lambda: memory(peer) < idle + allowed / 2, PATIENCE, "memory is given back")


def serve_meanwhile(good: Client, names: list[str]) -> None:
    """Look up small and large values: none of the calls fails."""
    end = time.monotonic() + SIEGE
    while time.monotonic() < end:
        assert good.lookup("i", "k") == "v"
        assert good.lookup("i", names[0]) is not None
        time.sleep(0.01)
