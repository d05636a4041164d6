"""A secured cluster: admission, roles, and revocation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from dstash import Client, Security
from dstash.cluster.membership.local.membership import LocalMembership
from dstash.cluster.topology.topology import Member
from dstash.errors import BelowFloor, ConfigError, DStashError, NoPeers, Unauthorised
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.curve import KeyPair, ZapHandler
from dstash.wire.envelope import Envelope, encode
from dstash.wire.keys import encode_keys
from dstash.wire.messages import (
    AdminRequest,
    Delete,
    Error,
    Hello,
    IndexSettingsRequest,
    Lookup,
    Values,
    Welcome,
)
from dstash.wire.replication import (
    CopyReply,
    CopyRequest,
    DigestsReply,
    DigestsRequest,
    Pull,
    Push,
    SeenReply,
    SeenRequest,
)
from dstash.wire.router import Router
from dstash.wire.shapes import Frame, Message
from dstash.wire.sockets import Context
from tests.harness.waiting import wait_until
from tests.security.attackers import (
    GREETING,
    GREETING_1,
    GREETING_2,
    READY,
    Attacker,
    Recorder,
    is_closed,
    raw,
)
from tests.security.closed import PATIENCE, Closed, code_of, text_of

KEYS = Frame(codec.pack_blobs(encode_keys(["k"])))
ONE_PARTITION = b"\x00\x00"


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    with Closed(tmp_path_factory.mktemp("closed")) as cluster:
        for name, rights in {
            "admin": "admin",
            "writer": "write",
            "reader": "read",
            "narrow": "write mine",
            "spy": "peer",
        }.items():
            cluster.grant(name, rights)
        cluster.form("p1", "p2")
        with cluster.client("writer") as client:
            client.put("i", "k", "v")
        yield cluster


def test_listed_client_reads_and_writes_through_all_peers(closed: Closed) -> None:
    with closed.client("writer") as writer, closed.client("reader", "p2") as reader:
        writer.batch_put("i", {f"key{n}": n for n in range(500)}).raise_for_failures()
        assert len(reader.batch_lookup("i", [f"key{n}" for n in range(500)])) == 500


def test_client_with_unlisted_key_is_refused(closed: Closed) -> None:
    with closed.client("stranger") as client, pytest.raises(Unauthorised, match="know the key"):
        client.lookup("i", "k")
    with closed.attacker("stranger") as attacker:
        assert attacker.ask(Hello(), timeout=1.5) is None


def test_client_without_curve_gets_no_answer(closed: Closed) -> None:
    with closed.peers.client(timeout=2) as client, pytest.raises(NoPeers):
        client.lookup("i", "k")


@pytest.mark.parametrize(
    "greeting",
    [GREETING + READY, GREETING_2, GREETING_1, b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100],
    ids=["NULL", "ZMTP 2.0", "ZMTP 1.0", "HTTP", "noise"],
)
def test_peer_requires_curve_after_any_greeting(closed: Closed, greeting: bytes) -> None:
    hello = encode(Envelope(1, 0, 0, Hello()))
    with raw(closed.peers["p1"].port) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(greeting)
        with suppress(OSError):
            for part in hello:
                connection.sendall(bytes((0, len(part))) + part)
        said = b""
        with suppress(ConnectionError):
            while more := connection.recv(1000):
                said += more
    assert b"dstash" not in said


def test_recorded_connection_cannot_be_replayed(closed: Closed) -> None:
    peer, keys = closed.peers["p1"], closed.keys("writer")
    stranger = Delete("i", pack(stamp_at(0), bytes(12)), KEYS)
    with (
        Recorder(peer.port) as recorder,
        Attacker(recorder.address, keys=keys, server=closed.server_key("p1")) as victim,
    ):
        assert code_of(victim.ask(stranger, epoch=closed.epoch())) == BelowFloor.code
    assert recorder.sent
    before = peer.page("/status")["counts"]["Delete"]
    with raw(peer.port) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(recorder.sent)
        assert is_closed(connection)
    assert peer.page("/status")["counts"]["Delete"] == before


def test_client_rejects_server_with_another_key(closed: Closed) -> None:
    with (
        closed.client("writer", server_key=[closed.keys("stranger").public], timeout=2) as client,
        pytest.raises(NoPeers),
    ):
        client.lookup("i", "k")


def test_client_takes_keys_as_arguments(closed: Closed) -> None:
    files = [closed.folder / f"reader.{end}" for end in ("key", "key_secret")]
    security = Security(*files, closed.server_key("p1"))
    with Client(closed.peers["p1"].address, security=security, timeout=PATIENCE) as client:
        assert client.lookup("i", "k") == "v"
    files[1].chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Client(closed.peers["p1"].address, security=security)
    files[1].chmod(0o600)
    with pytest.raises(ConfigError, match="must be a dstash"):
        Client(closed.peers["p1"].address, security="please")


def test_one_of_several_server_keys_is_enough(closed: Closed) -> None:
    known = [closed.keys("stranger").public, closed.server_key("p1")]
    with closed.client("reader", server_key=known) as client:
        assert client.lookup("i", "k") == "v"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reader", Delete("i", bytes(20), KEYS)),
        ("reader", AdminRequest("pause", [])),
        ("writer", AdminRequest("remove", ["p2"])),
        ("writer", IndexSettingsRequest("i", {"ttl": 1})),
        ("writer", Push(KEYS, KEYS)),
        ("writer", CopyRequest(ONE_PARTITION, b"")),
        ("admin", Pull(KEYS)),
        ("narrow", Lookup("i", 1, KEYS)),
        ("spy", Lookup("i", 1, KEYS)),  # the key of a peer gives no rights of a client
        ("writer", Welcome("dstash", "p1", 1, 1, {}, b"", [])),
        ("writer", Error(1, "I refuse")),
    ],
    ids=str,
)
def test_role_allows_only_its_requests(closed: Closed, name: str, message: Message) -> None:
    with closed.attacker(name) as attacker:
        answer = attacker.ask(message, epoch=closed.epoch())
        assert code_of(answer) == Unauthorised.code


def test_admin_may_save_a_backup(closed: Closed) -> None:
    with closed.attacker("admin") as admin:
        assert isinstance(
            admin.ask(DigestsRequest(ONE_PARTITION), epoch=closed.epoch()), DigestsReply
        )
        assert isinstance(
            admin.ask(CopyRequest(ONE_PARTITION, b""), epoch=closed.epoch()), CopyReply
        )


def test_peer_requests_need_a_key_of_the_topology(closed: Closed) -> None:
    for message in (
        DigestsRequest(ONE_PARTITION),
        CopyRequest(ONE_PARTITION, b""),
        Push(KEYS, KEYS),
    ):
        with closed.attacker("spy") as spy:
            assert code_of(spy.ask(message, epoch=closed.epoch())) == Unauthorised.code
    with closed.attacker("p2") as member:
        for name, kind in {"p2": SeenReply, "p1": Error}.items():  # it may only act for itself
            # Without a stamp, which p2 would take as proof that its store was rolled back.
            assert isinstance(member.ask(SeenRequest(name, 0), epoch=closed.epoch()), kind)
        assert isinstance(
            member.ask(DigestsRequest(ONE_PARTITION), epoch=closed.epoch()), DigestsReply
        )
        assert isinstance(
            member.ask(CopyRequest(ONE_PARTITION, b""), epoch=closed.epoch()), CopyReply
        )


def test_key_limited_to_indexes_uses_only_these(closed: Closed) -> None:
    with closed.client("narrow") as client:
        client.put("mine", "k", 1)
        assert client.lookup("mine", "k") == 1
        with pytest.raises(Unauthorised, match="may not use index 'i'"):
            client.lookup("i", "k")
        with pytest.raises(Unauthorised):
            client.put("i", "k", 1)


def test_revoked_key_ends_live_connections(closed: Closed) -> None:
    closed.grant("temp", "read")
    closed.await_let_in("temp")
    with closed.client("temp") as client, closed.attacker("temp") as idle:
        assert client.lookup("i", "k") == "v"
        assert isinstance(idle.ask(Hello()), Welcome)
        news = idle.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        closed.revoke("temp")
        try:
            assert news.poll(PATIENCE * 1000)  # without a request of the client
        finally:
            idle.socket.disable_monitor()
            news.close()
        with pytest.raises(Unauthorised):
            client.lookup("i", "k")


def test_role_change_applies_to_the_next_message(closed: Closed) -> None:
    closed.grant("temp", "write")
    closed.await_let_in("temp")
    message = Delete("i", bytes(20), KEYS)
    with closed.attacker("temp") as temp:
        assert code_of(temp.ask(message, epoch=closed.epoch())) == BelowFloor.code
        closed.grant("temp", "read")
        wait_until(
            lambda: code_of(temp.ask(message, epoch=closed.epoch())) == Unauthorised.code,
            PATIENCE,
            "the new role counts on the connection there is",
        )
        assert isinstance(temp.ask(Lookup("i", 1, KEYS), epoch=closed.epoch()), Values)


def test_invalid_key_list_changes_nothing(closed: Closed) -> None:
    good = closed.listed.read_text()
    closed.listed.write_text(good + "not a key\n")
    log = closed.peers["p1"].log
    try:
        wait_until(lambda: "has a mistake" in log.read_text(), PATIENCE, "the mistake is logged")
        with closed.client("reader") as client:
            assert client.lookup("i", "k") == "v"
    finally:
        closed.listed.write_text(good)


def test_stolen_routing_id_gets_no_answers_of_its_owner(closed: Closed) -> None:
    with closed.attacker("writer", identity=b"victim") as victim:
        assert isinstance(victim.ask(Hello()), Welcome)
        with closed.attacker("reader", identity=b"victim") as thief:
            assert thief.ask(Hello(), timeout=1.0) is None  # the id is taken
            for _ in range(20):
                assert isinstance(victim.ask(Lookup("i", 1, KEYS), epoch=closed.epoch()), Values)
            assert thief.next(timeout=0.3) is None

    def answer_to_heir() -> Message | None:
        # A connection that is made before the peer has seen the end of the last one stays unheard.
        with closed.attacker("reader", identity=b"victim") as heir:
            delete = Delete("i", bytes(20), KEYS)
            return heir.ask(delete, epoch=closed.epoch(), timeout=1.0)

    # The id is free again; the rights depend on the key, not on the previous user of the id.
    answer = wait_until(answer_to_heir, PATIENCE, "the id is free")
    assert code_of(answer) == Unauthorised.code


def test_client_does_not_connect_to_member_with_unlisted_key(tmp_path: Path) -> None:
    """An attacker with access to the membership can add a member, but no client connects to it."""
    thief = KeyPair.generate()
    context = Context(keys=thief)
    door = ZapHandler(context, lambda key: False)
    router = Router(context, "tcp://127.0.0.1:*")
    try:
        with Closed(tmp_path) as closed:
            closed.grant("reader", "read")
            closed.form("p1")
            port = router.address.rpartition(":")[2]
            rogue = Member("rogue", f"tcp://127.0.0.1:{port}", "store", "zone", key=thief.public)
            add_member(closed, rogue)
            wait_until(lambda: closed.epoch() > 1, PATIENCE, "the peer knows the topology")
            with closed.client("reader", timeout=3) as client:
                members = {member.id: member.key for member in client.topology().members}
                assert members == {"p1": closed.server_key("p1"), "rogue": ""}
                with suppress(DStashError):
                    client.lookup("i", "k")
        assert door.refused == 0
        assert router.receive() is None
    finally:
        router.close_after(0)
        context.close()


def add_member(closed: Closed, member: Member) -> None:
    """Act like an attacker with write access to the membership only."""
    membership = LocalMembership(closed.folder / "membership", "dstash")
    try:
        while True:
            stored = membership.read()
            assert stored.topology is not None
            grown = stored.topology.with_member(member).next()
            if membership.compare_and_set(grown, stored.token):
                return
    finally:
        membership.close()


def test_secret_keys_stay_out_of_logs_and_pages(closed: Closed) -> None:
    text = text_of(closed.peers["p1"])
    for name in ("p1", "p2", "writer"):
        assert closed.keys(name).secret not in text
