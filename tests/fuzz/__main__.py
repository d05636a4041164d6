"""``python -m tests.fuzz``: fuzzes the core in memory, then a real peer.

Fails if the peer ends, if its memory grows, or if another client waits too long.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Ping
from tests.fuzz.bystander import Bystander
from tests.fuzz.mutation import mutate, seeds, spoil
from tests.fuzz.target import EPOCH, NOW, Target
from tests.harness.peers import Peer, Peers
from tests.security.attackers import GREETING, GREETING_1, GREETING_2, READY, Attacker
from tests.security.closed import memory

_BURST: Final = 100
#: By how much the memory of a peer may grow (mebibytes): for caches and counters.
_GROWTH: Final = 64
_LINE: Final = "{:<10} {:>9} {}, {:>6.0f} a second, seed {}\n"


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="for the real peer")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    fuzz_core(options.frames // 10, options.seed)
    fuzz_peer("messages", flood, options.frames, options.seed)
    fuzz_peer("streams", scribble, options.frames // 50, options.seed)


def fuzz_core(frames: int, seed: int) -> None:
    """Send nearly valid messages to a core in memory."""
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
    seconds = time.monotonic() - began
    sys.stdout.write(_LINE.format("core", frames, "messages", frames / seconds, seed))


def fuzz_peer(
    what: str, attack: Callable[[Peer, Random, int], None], count: int, seed: int
) -> None:
    """Attack a real peer, while another client works with it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Peers.local(Path(folder), "--replicas", "1") as peers,
    ):
        peers.form("p1")
        peer = peers["p1"]
        assert peer.process is not None
        watch = Bystander(peer.address, peer.process.pid)
        before, began = memory(peer), time.monotonic()
        attack(peer, Random(seed), count)
        seconds = time.monotonic() - began
        net, gross = watch.stop()
        after = memory(peer)
        assert peer.runs(), f"the peer ended: {peer.log.read_text()[-2000:]}"
        sys.stdout.write(_LINE.format("real peer", count, what, count / seconds, seed))
        sys.stdout.write(f"  bystander: {net}\n")
        sys.stdout.write(f"  with the time in line for a processor: {gross}\n")
        sys.stdout.write(f"  memory: {before:.0f} -> {after:.0f} MiB\n")
        assert after < before + _GROWTH, "the peer has grown"
        assert not net.stalls, "the bystander had to wait"


def flood(peer: Peer, random: Random, count: int) -> None:
    """Send nearly valid messages; the peer handles each hundred before the next."""
    with Attacker(peer.address) as attacker:
        for sent in range(0, count, _BURST):
            if sent % (50 * _BURST) == 0:
                messages = seeds(time.time_ns() // 1_000_000)
                epoch = int(peer.page("/status")["epoch"])
            for _ in range(_BURST):
                chosen = random.choice((epoch, epoch, epoch, 0, 2**63))
                attacker.send(*mutate(random, random.choice(messages), chosen, 0))
            _await_all(attacker, 2**40 + sent)


def _await_all(attacker: Attacker, number: int) -> None:
    """Wait until all messages were handled; the peer may drop the marker message too."""
    mark = encode(Envelope(number, 0, 0, Ping()))
    attacker.send(*mark)
    while True:
        if not attacker.socket.poll(1000):
            attacker.send(*mark)
        elif decode(attacker.socket.recv_multipart()).correlation == number:
            return


def scribble(peer: Peer, random: Random, count: int) -> None:
    """Open connections and send nearly valid ZMTP."""
    beginnings = (GREETING + READY, GREETING + READY, GREETING, GREETING_2, GREETING_1, b"")
    messages = seeds(time.time_ns() // 1_000_000)
    for _ in range(count):
        parts = mutate(random, random.choice(messages), 0, 0)
        stream = random.choice(beginnings) + b"".join(map(_framed, parts))
        for _ in range(random.choice((0, 1, 1, 2, 3))):
            stream = spoil(random, stream)
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", peer.port), 10) as connection,
        ):
            connection.sendall(stream)


def _framed(part: bytes) -> bytes:
    return b"\x02" + len(part).to_bytes(8, "big") + part


if __name__ == "__main__":
    main()
