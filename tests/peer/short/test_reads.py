"""Short reads answer with the bytes of the dispatch, and leave to it what they must not answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dstash.cluster.topology.view import View
from dstash.store.record import partition_of
from dstash.store.sealing import locate
from dstash.version import stamp_at
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Delete, Lookup, Values
from tests.peer.short.parts import REFUSING
from tests.peer.test_core import EPOCH, START, Peer, keys, put, topology, version

LIVE, NIL, LARGE = b"live", b"nil", b"large"
MISSING, EXPIRED, DELETED, EXPIRING, ROTTEN = b"missing", b"expired", b"deleted", b"ttl", b"rotten"
TRACE = f"00-{'1' * 32}-{'2' * 16}-01"
#: The records that need no dispatch, and those that do.
PLAIN = (LIVE, NIL, MISSING, EXPIRING)
OTHER = (EXPIRED, DELETED, ROTTEN, LARGE)


@pytest.fixture
def peer() -> Peer:
    peer = Peer(topology())
    peer.core.local_partitions.freshness_confirmed = True
    peer.ask(put(LIVE, ROTTEN, value=b"\xa4text"))
    peer.ask(put(NIL, DELETED, value=b"\xc0"))
    peer.ask(put(LARGE, value=b"\xc6" + (100_000).to_bytes(4, "big") + bytes(100_000)))
    peer.ask(put(EXPIRING, expiry=peer.now + 60_000))
    peer.ask(put(EXPIRED, expiry=peer.now - 1))
    peer.ask(Delete("i", version(START + 1001), keys(DELETED)))
    [place] = locate(peer.core.keyspaces.find("i"), [ROTTEN])
    record = bytearray(peer.store.records[place])
    record[-1] ^= 1
    peer.store.records[place] = bytes(record)
    return peer


def short(peer: Peer, frames: list[bytes]) -> list[bytes] | None:
    """Return the answer of the short path."""
    return peer.core._short_reads.answer(b"client", frames, peer.now)


def dispatched(peer: Peer, frames: list[bytes]) -> list[bytes]:
    """Return the answer of the dispatch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer.core._short_reads, "answer", lambda *_: None)
        [reply] = peer.core.receive(b"client", frames, peer.now)
    return reply.frames


def lookup(*some: bytes, want: int = 7, **header: int) -> list[bytes]:
    fields = {"correlation": 7, "epoch": EPOCH, "moment": 0, "protocol": 2} | header
    return encode(Envelope(message=Lookup("i", want, keys(*some)), **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", PLAIN, ids=bytes.decode)
@pytest.mark.parametrize("protocol", [1, 2])
def test_plain_records_have_the_answer_of_the_dispatch(
    peer: Peer, key: bytes, protocol: int
) -> None:
    for want in range(8):
        frames = lookup(key, want=want, protocol=protocol)
        expected = dispatched(peer, frames)
        assert isinstance(decode(expected).message, Values)
        assert short(peer, frames) == expected, want


@pytest.mark.parametrize("key", OTHER, ids=bytes.decode)
def test_other_records_are_left_to_the_dispatch(peer: Peer, key: bytes) -> None:
    dispatched(peer, lookup(LIVE))  # the index is known
    assert short(peer, lookup(LIVE)) is not None
    assert short(peer, lookup(key, want=1)) is None


def test_corrupt_plain_record_has_the_digest_of_the_dispatch(peer: Peer) -> None:
    frames = lookup(ROTTEN, want=6)
    assert short(peer, frames) == dispatched(peer, frames)


def test_record_that_a_horizon_covers_has_the_digest_of_the_dispatch(peer: Peer) -> None:
    frames = lookup(EXPIRING, want=6)
    before = dispatched(peer, frames)
    assert short(peer, frames) == before
    # By the peer's own clock the record lives; by that of the horizon, which is ahead, it does not.
    peer.core.local_partitions.horizons[partition_of(EXPIRING)] = stamp_at(peer.now + 60_001)
    assert dispatched(peer, frames) != before
    assert short(peer, frames) is None


def test_both_paths_count_the_same(peer: Peer) -> None:
    frames = lookup(LIVE)
    before = peer.core.meters.requests.copy(), peer.core.meters.read_keys.count
    dispatched(peer, frames)
    between = peer.core.meters.requests.copy(), peer.core.meters.read_keys.count
    assert short(peer, frames) is not None
    after = peer.core.meters.requests.copy(), peer.core.meters.read_keys.count
    assert between[0] - before[0] == after[0] - between[0]
    assert after[1] - between[1] == between[1] - before[1] == 1


@pytest.mark.parametrize(
    "frames",
    [
        lookup(LIVE, epoch=EPOCH - 1),
        lookup(LIVE, epoch=EPOCH + 1),
        lookup(LIVE, moment=START),
        lookup(LIVE, LIVE),
        lookup(b"k" * 401),
        lookup(LIVE, protocol=9),
        lookup(LIVE, want=8),
        encode(Envelope(7, EPOCH, 0, Lookup("@i", 1, keys(LIVE)), 2)),
        encode(
            Envelope(
                7,
                EPOCH,
                0,
                Lookup("i", 1, keys(LIVE)),
                2,
                "00-" + "1" * 32 + "-" + "2" * 16 + "-01",
            )
        ),
        [b"", b"\x91\xc4\x01k"],
        [b"", b"\x91\xc4"],
        [b"", b"\x91\xc4\x00"],
        [b"\x97" + b"\xff" * 7, b"\x91\xc4\x01k"],
        [*lookup(LIVE), b"third"],
    ],
    ids=range(14),
)
def test_other_requests_are_left_to_the_dispatch(peer: Peer, frames: list[bytes]) -> None:
    dispatched(peer, lookup(LIVE))
    assert short(peer, frames) is None


def _unsynced(peer: Peer) -> None:
    [member] = topology().members
    unsynced = replace(topology(epoch=EPOCH), members=(replace(member, synced=False),))
    peer.core._short_checks.install(View(unsynced, frozenset("a")))


@pytest.mark.parametrize("change", [*REFUSING, _unsynced])
def test_peer_that_may_refuse_leaves_reads_to_the_dispatch(
    peer: Peer, change: Callable[[Peer], None]
) -> None:
    dispatched(peer, lookup(LIVE))
    assert short(peer, lookup(LIVE)) is not None
    change(peer)
    assert short(peer, lookup(LIVE)) is None
