"""The counters of a connection: bytes given, bytes taken by the kernel, and debt."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import pytest
import zmq

from dstash.limits import MIB
from dstash.wire.connections.connection import Connection
from dstash.wire.connections.connections import Limits
from dstash.wire.router import Received, Router
from dstash.wire.sockets import Context
from tests.harness.waiting import wait_until


def connection() -> Connection:
    return Connection(fd=-1, inode=0, since=0.0)


def test_large_message_counts_in_full_until_sent() -> None:
    link = connection()
    link.give(100_000)
    link.give(50_000)
    assert link.debt == 150_000
    link.left = 99_999
    assert link.debt == 150_000, "libzmq keeps the first one"
    link.left = 100_000
    assert link.debt == 50_000
    link.left = 150_000
    assert link.debt == 0


def test_small_messages_count_by_the_byte() -> None:
    link = connection()
    for _ in range(10):
        link.give(1000)
    link.left = 2500
    assert link.debt == 7500


def test_message_that_was_not_given_is_not_counted() -> None:
    link = connection()
    link.give(100_000)
    link.give(70_000)
    link.take_back(70_000)
    assert link.debt == 100_000
    link.left = 100_000
    assert link.debt == 0


def test_bytes_sent_without_give_add_no_debt() -> None:
    link = connection()
    link.left, link.correction_out = 300, 300  # a handshake
    link.give(100_000)
    assert link.debt == 100_000
    link.left = 100_300
    assert link.debt == 0


def test_finished_messages_are_forgotten() -> None:
    link = connection()
    for _ in range(1000):
        link.give(20_000)
        link.left = link.given
    assert len(link.large) <= 2


def test_connection_has_stalled_after_two_seconds_without_reading() -> None:
    link = connection()
    assert not link.has_stalled(9.9)
    link.give(1_000_000)
    assert not link.has_stalled(11.8)
    assert link.has_stalled(12.0)
    link.left = 70_000
    assert not link.has_stalled(12.1), "it reads, if slowly"
    link.left = link.given
    assert not link.has_stalled(30.0)


def test_forgive_is_limited_to_backlog() -> None:
    link = connection()
    link.received, link.taken = 1000, 900
    link.forgive(60)
    assert link.backlog == 40
    link.forgive(60)
    assert link.backlog == 0


def test_large_message_counts_while_kernel_is_full() -> None:
    link = connection()
    link.give(100_000)
    link.left, link.is_full = 100_000, True
    assert link.debt == 100_000, "libzmq frees it only when it may write again"
    link.give(50_000)
    assert link.debt == 150_000
    link.left = 100_001
    assert link.debt == 50_000, "libzmq has begun to write the next one"
    link.left, link.is_full = 150_000, False
    assert link.debt == 0


def test_sample_reports_whether_kernel_is_full() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as reader,
        listening.accept()[0] as writer,
    ):
        link = Connection(writer.fileno(), os.fstat(writer.fileno()).st_ino, since=0.0)
        writer.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                link.give(writer.send(bytes(1_000_000)))
        assert link.sample()
        assert link.is_full
        assert link.left == link.given, "the kernel has all of it"
        assert link.debt > 0
        reader.settimeout(10)
        unread = link.given
        while unread:
            unread -= len(reader.recv(1_000_000))
        wait_until(lambda: link.sample() and not link.is_full, 10, "the kernel takes more")
        assert link.debt == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_address_of_a_client_is_that_of_its_connection(host: str) -> None:
    context = Context()
    limits = Limits.of(100, 32 * MIB)
    router = Router(context, f"tcp://{host}:*", limits=limits)
    client = context.socket(zmq.DEALER)
    try:
        client.connect(router.address)
        client.send(b"hello")
        received: list[Received] = []

        def has_received() -> bool:
            received.extend(filter(None, [router.receive()]))
            return bool(received)

        wait_until(has_received, 10, "the message has come")
        address = router.address_of(received[0].sender)
        assert address.rpartition(":")[0] == host
        assert int(address.rpartition(":")[2]) > 0
        assert router.address_of(b"another") == ""
        client.close()
        wait_until(lambda: not router.address_of(received[0].sender), 10, "it is closed")
    finally:
        client.close()
        router.close_after(0)
        context.close()
