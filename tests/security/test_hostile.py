"""Hostile clients of an open peer: their cost is limited, and other clients are served."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from dstash import Client
from dstash.errors import Busy, ClockSkew, NotReady, ProtocolError, Unauthorised
from dstash.limits import MAX_FRAME_BYTES, MAX_KEYS_PER_FRAME
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, encode
from dstash.wire.keys import encode_keys
from dstash.wire.messages import Delete, Hello, Lookup, Ping, Pong, Put, Records, Stored, Values
from dstash.wire.replication import CopyRequest, DigestsRequest, Pull, SeenRequest
from dstash.wire.shapes import Frame, Message
from tests.harness.peers import Peer, Peers
from tests.harness.waiting import stays_true, wait_until
from tests.security.attackers import (
    GREETING,
    GREETING_1,
    GREETING_2,
    Attacker,
    Crowd,
    endless,
    is_closed,
    raw,
    shake_hands,
)
from tests.security.closed import PATIENCE, code_of, forget_peak, memory, peak

#: max_bytes_in_hand in these tests, and the memory of an idle peer (mebibytes).
IN_HAND, IDLE = 64, 150
#: The highest memory of a peer: its limit for connections, and bytes that arrive meanwhile.
CAP = 4 * IN_HAND + 256 + 512
DESCRIPTORS = 200
#: Idle connections of each kind, and for how long (seconds) they are kept open.
CROWD, SIEGE = 1000, 4.0 * int(os.environ.get("SOAK", "1"))
#: Seconds before missing heartbeats end a connection.
AT_ONCE = 4.0

BOMBS = [
    b"\xdc\xff\xff" + b"\x90" * 65_535,  # empty lists
    b"\xdd\xff\xff\xff\xff",  # four billion elements announced
    b"\x91" * 100_000,  # nesting
    b"\xdf\xff\xff\xff\xff",  # a map of four billion
    b"\xc6\xff\xff\xff\xff",  # four billion bytes announced
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x95\x01\xcf" + b"\xff" * 8,
    b"",
    b"\xc1",
]


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """A peer with few descriptors and a small limit for waiting requests."""
    folder = tmp_path_factory.mktemp("hostile")
    config = folder / "peer.toml"
    config.write_text(f"max_bytes_in_hand = {IN_HAND * 2**20}\nreplicas = 1\n")
    with Peers.local(folder, "--config", str(config)) as cluster:
        peer = cluster.start("p1")
        assert peer.process is not None
        # Before the start, so that the peer finds the limit when it reads it.
        resource.prlimit(peer.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        peer.wait_ready()
        yield cluster


@pytest.fixture(scope="module")
def peer(peers: Peers) -> Peer:
    return peers["p1"]


@pytest.fixture
def good(peers: Peers) -> Iterator[Client]:
    """An honest client."""
    with peers.client() as client:
        client.put("i", "k", "v")
        yield client


@pytest.fixture(autouse=True)
def bystander(peer: Peer, good: Client) -> Iterator[None]:
    """During every test the memory of the peer is limited; afterwards it serves other clients."""
    forget_peak(peer)
    yield
    assert peer.runs()
    assert peak(peer) < CAP
    assert good.lookup("i", "k") == "v"
    fits = lambda: memory(peer) < IDLE + 2 * IN_HAND  # noqa: E731
    wait_until(fits, PATIENCE, "the peer gives memory back")


@pytest.fixture
def attacker(peer: Peer) -> Iterator[Attacker]:
    with Attacker(peer.address) as connected:
        yield connected


def keys(*names: str) -> Frame:
    return Frame(codec.pack_blobs(encode_keys(list(names))))


def values(*items: object) -> Frame:
    return Frame(codec.pack_blobs([codec.pack_header([item])[1:] for item in items]))


def epoch_of(peer: Peer) -> int:
    return int(peer.page("/status")["epoch"])


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_msgpack_bombs_are_refused(peer: Peer, attacker: Attacker, bomb: bytes) -> None:
    attacker.send(bomb)
    attacker.send(bomb, bomb, bomb)
    epoch = epoch_of(peer)
    for message in (
        Lookup("i", 1, Frame(bomb)),
        Put("i", bytes(20), 0, Frame(bomb), Frame(bomb)),
        Put("i", bytes(20), 0, keys("a"), values(1)),
    ):
        attacker.send(*encode(Envelope(9, epoch, 0, message)))
    answer = attacker.ask(Lookup("i", 1, keys("k")), epoch=epoch)
    while answer is not None and not isinstance(answer, Values):
        answer = attacker.next(timeout=5)
    assert isinstance(answer, Values)


@pytest.mark.parametrize("size", [MAX_FRAME_BYTES + 1, 2**40, 2**63, 2**64 - 1], ids=str)
@pytest.mark.parametrize("flags", [2, 6], ids=["message", "command"])
def test_client_with_oversized_frame_is_cut(peer: Peer, size: int, flags: int) -> None:
    with raw(peer.port) as connection:
        connection.settimeout(AT_ONCE)
        shake_hands(connection)
        connection.sendall(bytes((flags,)) + size.to_bytes(8, "big"))
        assert is_closed(connection)


def test_client_with_too_many_frames_is_cut(peer: Peer) -> None:
    with raw(peer.port) as connection:
        connection.settimeout(AT_ONCE)
        shake_hands(connection)
        connection.sendall(b"\x01\x00" * 20_000 + b"\x00\x00")
        assert is_closed(connection)


@pytest.mark.parametrize("greeting", [GREETING_2, GREETING_1], ids=["2.0", "1.0"])
def test_client_with_old_zmtp_is_ignored(peer: Peer, greeting: bytes) -> None:
    [hello] = encode(Envelope(1, 0, 0, Hello()))
    head = bytes((0, len(hello))) if greeting is GREETING_2 else bytes((len(hello) + 1, 0))
    with raw(peer.port) as connection:
        malformed = peer.page("/status")["counts"].get("malformed", 0)
        connection.sendall(greeting + head + hello)
        wait_until(
            lambda: peer.page("/status")["counts"].get("malformed", 0) > malformed,
            PATIENCE,
            "the message came in",
        )
        connection.settimeout(0.2)
        said = b""
        with suppress(TimeoutError):
            while more := connection.recv(1000):
                said += more
        assert b"dstash" not in said


def test_message_with_too_many_bytes_is_dropped(peer: Peer, attacker: Attacker) -> None:
    attacker.send(b"\x90", *[bytes(3 * 2**20)] * 7)  # each frame is within the limit
    answer = attacker.ask(Lookup("i", 1, keys("k")), epoch=epoch_of(peer))
    assert isinstance(answer, Values)


def test_versions_from_the_future_are_refused(peer: Peer, attacker: Attacker, good: Client) -> None:
    epoch = epoch_of(peer)
    soon = pack(stamp_at(time.time_ns() // 1_000_000 + 60_000), bytes(12))
    for version in (
        soon,
        b"\xff" * 20,
        b"\x80" + bytes(19),
        (2**62).to_bytes(8, "big") + bytes(12),
    ):
        for message in (
            Put("i", version, 0, keys("k"), values("forged")),
            Delete("i", version, keys("k")),
        ):
            assert code_of(attacker.ask(message, epoch=epoch)) == ClockSkew.code
    assert code_of(attacker.ask(Delete("i", b"\xff", keys("k")), epoch=epoch)) == ProtocolError.code
    good.put("i", "k", "v")


def test_invented_epochs_are_refused(peer: Peer, good: Client, attacker: Attacker) -> None:
    for epoch in (2**63, 2**64 - 1):
        for _ in range(1500):  # more than may wait for a topology
            attacker.send(*encode(Envelope(5, epoch, 0, Lookup("i", 1, keys("k")))))
    assert good.lookup("i", "k") == "v"
    # Not all are answered: a client that reads late loses some answers.
    while (answer := attacker.next()) is not None and code_of(answer) != NotReady.code:
        continue
    assert code_of(answer) == NotReady.code
    assert good.lookup("i", "k") == "v"


def test_malformed_peer_requests_are_refused(peer: Peer, attacker: Attacker) -> None:
    epoch = epoch_of(peer)
    for partitions in (b"\x00", b"\xff\xff", b"\x00" * 20_000):
        for message in (DigestsRequest(partitions), CopyRequest(partitions, b"\xff" * 500)):
            assert code_of(attacker.ask(message, epoch=epoch)) == ProtocolError.code


def test_expensive_requests_are_limited_by_weight(peer: Peer, good: Client) -> None:
    """They wait for each other, and need more memory than there is."""
    question = Pull(Frame(codec.pack_blobs([bytes(200)] * MAX_KEYS_PER_FRAME)))  # 13 MB
    frames = encode(Envelope(8, epoch_of(peer), 0, question))
    answers: list[Message | None] = []
    with Attacker(peer.address) as attacker:
        for _ in range(60):
            attacker.send(*frames)
            answers.append(attacker.ask(Ping()))
            while not isinstance(answers[-1], Pong):  # the request has arrived
                answers.append(attacker.next())
        while not isinstance(answers[-1], Records):
            answers.append(attacker.next())
            assert answers[-1] is not None
        assert good.lookup("i", "k") == "v"
    assert Busy.code in map(code_of, answers)


def test_invented_names_are_not_stored(peer: Peer, attacker: Attacker) -> None:
    epoch = epoch_of(peer)
    for name in ("unknown", "p1" * 1000, ""):
        answer = attacker.ask(SeenRequest(name, 2**63), epoch=epoch)
        assert code_of(answer) == Unauthorised.code


def test_replayed_write_does_not_replace_newer_record(
    peer: Peer, attacker: Attacker, good: Client
) -> None:
    good.put("i", "again", "old")
    session = good._session
    old = Put("i", session.new_version(), 0, keys("again"), Frame(codec.pack_blobs([b"\xa3old"])))
    frames = encode(Envelope(3, epoch_of(peer), 0, old))
    attacker.send(*frames)
    assert isinstance(attacker.next(), Stored)
    good.put("i", "again", "new")
    for _ in range(100):
        attacker.send(*frames)
    answers = [attacker.next() for _ in range(100)]
    assert all(isinstance(answer, Stored) or code_of(answer) == Busy.code for answer in answers)
    assert good.lookup("i", "again") == "new"


def test_idle_and_half_open_connections_do_not_block_clients(peer: Peer, peers: Peers) -> None:
    """Ten times as many as the descriptors of the peer."""
    with peers.client(timeout=3.0) as good, raw(peer.port) as deaf:
        shake_hands(deaf)  # then silent, as if its machine were gone
        assert good.lookup("i", "k") == "v"
        with Crowd(peer.port, {b"": CROWD, GREETING: CROWD}) as crowd:
            deadline = time.monotonic() + SIEGE
            while time.monotonic() < deadline or crowd.closed < CROWD // 10:
                good.put("i", "crowd", 1)
                assert good.lookup("i", "k") == "v"
            assert_newcomer_is_served(peer)
        assert_newcomer_is_served(peer)
        deaf.settimeout(PATIENCE)
        assert is_closed(deaf)


def assert_newcomer_is_served(peer: Peer) -> None:
    with Client(peer.address, timeout=PATIENCE) as newcomer:
        assert newcomer.lookup("i", "k") == "v"


@pytest.mark.parametrize("size", [0, 1000, 2**20])
def test_endless_message_is_cut(peer: Peer, size: int) -> None:
    with raw(peer.port) as connection:
        connection.settimeout(2)
        shake_hands(connection)
        allowed = 4 * IN_HAND * 2**20
        assert endless(connection, bytes(size), 2 * allowed) < allowed


def test_client_that_never_reads_gets_no_more_answers(peer: Peer, good: Client) -> None:
    good.batch_put("i", {f"big{n}": b"v" * 100_000 for n in range(100)}).raise_for_failures()
    question = Lookup("i", 1, keys(*(f"big{n}" for n in range(100))))  # 10 MB each time
    frames = encode(Envelope(4, epoch_of(peer), 0, question))
    with Attacker(peer.address, high_water=1) as attacker:
        for _ in range(2000):
            with suppress(zmq.Again):
                attacker.socket.send_multipart(frames, zmq.NOBLOCK)
            time.sleep(0.001)
        assert good.lookup("i", "k") == "v"


def test_peer_stays_within_its_memory_limit(peer: Peer) -> None:
    stays_true(lambda: memory(peer) < IDLE + 2 * IN_HAND, 0.5, "memory is bounded")


def test_log_names_cut_connections(peer: Peer) -> None:
    """The log does not name every connection, but some from time to time."""

    def is_logged() -> bool:
        with raw(peer.port) as connection:
            connection.settimeout(2)
            shake_hands(connection)
            endless(connection, bytes(1000), 8 * IN_HAND * 2**20)
        return "connection cut" in Path(peer.log).read_text()

    wait_until(is_logged, PATIENCE, "the log names the cut connections")
