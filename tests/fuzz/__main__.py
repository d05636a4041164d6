"""``python -m tests.fuzz``: garbage for the core in memory, then for a real peer."""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random

from dstash import Client
from tests.fuzz.mutation import mutate, seeds
from tests.fuzz.target import EPOCH, NOW, Target
from tests.harness.peers import Peer, Peers
from tests.security.attackers import Attacker
from tests.security.closed import memory

_BURST = 100
_LINE = "{:<12} {:>9} frames, {:>6.0f} a second, seed {}\n"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="for the real peer")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    fuzz_core(options.frames // 10, options.seed)
    fuzz_peer(options.frames, options.seed)


def fuzz_core(frames: int, seed: int) -> None:
    """Give a core in memory messages that are nearly right."""
    random, began = Random(seed), time.monotonic()
    target, messages = Target(), seeds(NOW)
    for _ in range(frames):
        epoch = random.choice((EPOCH, EPOCH, EPOCH, 0, 2**63))
        parts = mutate(random, random.choice(messages), epoch, 0)
        try:
            target.hit(parts)
        except Exception:
            sys.stderr.write(f"the core failed with {parts!r}\n")
            raise
    sys.stdout.write(_LINE.format("core", frames, frames / (time.monotonic() - began), seed))


def fuzz_peer(frames: int, seed: int) -> None:
    """Give a real peer the same, while somebody else works with it."""
    with tempfile.TemporaryDirectory() as folder, Peers.local(Path(folder)) as peers:
        peers.form("p1")
        peer, watch = peers["p1"], Bystander(peers.client())
        before, began = memory(peer), time.monotonic()
        _flood(peer, Random(seed), frames)
        worst, calls = watch.stop()
        seconds = time.monotonic() - began
        assert peer.runs(), f"the peer ended: {peer.log.read_text()[-2000:]}"
        sys.stdout.write(_LINE.format("real peer", frames, frames / seconds, seed))
        sys.stdout.write(
            f"bystander: {calls} look-ups, the slowest took {worst * 1000:.0f} ms; "
            f"memory {before:.0f} -> {memory(peer):.0f} MiB\n"
        )


def _flood(peer: Peer, random: Random, frames: int) -> None:
    with Attacker(peer.address, high_water=1000) as attacker:
        for sent in range(0, frames, _BURST):
            if sent % (50 * _BURST) == 0:
                messages = seeds(time.time_ns() // 1_000_000)
                epoch = int(peer.page("/status")["epoch"])
            for _ in range(_BURST):
                chosen = random.choice((epoch, epoch, epoch, 0, 2**63))
                attacker.send(*mutate(random, random.choice(messages), chosen, 0))
            while attacker.socket.poll(0):
                attacker.socket.recv_multipart()


class Bystander:
    """Looks one key up again and again, and remembers how long the slowest took (seconds)."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._worst, self._calls = 0.0, 0
        client.put("good", "k", "v")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            began = time.monotonic()
            assert self._client.lookup("good", "k") == "v"
            self._worst = max(self._worst, time.monotonic() - began)
            self._calls += 1

    def stop(self) -> tuple[float, int]:
        """Return the slowest call and their number."""
        self._stop.set()
        self._thread.join()
        return self._worst, self._calls


if __name__ == "__main__":
    main()
