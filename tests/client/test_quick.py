"""Tests of look-ups in one round trip, and of those that continue as a general look-up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dstash import Client, ClosedError
from dstash.client.operations.short.lookup import ShortLookup
from dstash.client.transport import quick
from dstash.errors import LimitError, UndecodableValue, UnsupportedType, UsageError
from tests.harness.peers import Peers
from tests.harness.waiting import wait_until


@pytest.fixture
def client(peers: Peers) -> Iterator[Client]:
    with peers.client() as made:
        yield made


@pytest.fixture
def general(monkeypatch: pytest.MonkeyPatch) -> list[ShortLookup]:
    """Return the list of quick look-ups that continued as general ones."""
    made: list[ShortLookup] = []

    class Counted(ShortLookup):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(quick, "ShortLookup", Counted)
    return made


def warm_up(client: Client, index: str) -> None:
    """Connect to all peers."""
    for number in range(30):
        client.put(index, f"warm {number}", number, write="all")
        assert client.lookup(index, f"warm {number}", read="all") == number


@pytest.mark.parametrize("level", ["one", "quorum", "all", None])
def test_plain_look_ups_take_one_round_trip(
    client: Client, index: str, general: list[ShortLookup], level: str | None
) -> None:
    warm_up(client, index)
    general.clear()
    for number in range(30):
        assert client.lookup(index, f"warm {number}", read=level) == number
        assert client.lookup(index, f"missing {number}", "default", read=level) == "default"
    # Other sockets are polled now and then.
    assert len(general) <= 6


def test_look_up_after_put_finds_the_value_before_late_acks_are_read(
    client: Client, index: str, general: list[ShortLookup]
) -> None:
    warm_up(client, index)
    general.clear()
    for number in range(100):
        client.put(index, "key", number)
        assert client.lookup(index, "key") == number
    assert len(general) < 50


def test_look_ups_continue_while_a_peer_is_frozen(peers: Peers, client: Client, index: str) -> None:
    warm_up(client, index)
    peers["b"].freeze()
    try:
        for number in range(30):
            began = time.monotonic()
            assert client.lookup(index, f"warm {number}", read="quorum") == number
            assert time.monotonic() - began < 2
    finally:
        peers["b"].thaw()


def test_replicas_that_differ_are_compared(
    peers: Peers, client: Client, index: str, general: list[ShortLookup]
) -> None:
    warm_up(client, index)
    peers["c"].freeze()
    try:
        for number in range(30):
            client.put(index, f"warm {number}", -number)
    finally:
        peers["c"].thaw()
    for number in range(30):
        assert client.lookup(index, f"warm {number}", read="quorum") == -number
        assert client.lookup(index, f"warm {number}", read="all") == -number


def test_value_that_cannot_be_decoded_is_named(
    client: Client, index: str, general: list[ShortLookup]
) -> None:
    class Point:
        pass

    client.types.register(Point, code=7, encode=lambda point: b"", decode=lambda data: Point())
    warm_up(client, index)
    client.put(index, "point", Point())
    assert isinstance(client.lookup(index, "point"), Point)
    general.clear()
    with Client(client.settings.peers, cluster=client.settings.cluster) as other:
        warm_up(other, index)
        with pytest.raises(UndecodableValue, match="point"):
            other.lookup(index, "point")
    assert general


@pytest.mark.parametrize(
    ("look_up", "error"),
    [
        (lambda client: client.lookup("i", ""), LimitError),
        (lambda client: client.lookup("i", "k" * 401), LimitError),
        (lambda client: client.lookup("i", 1.5), UnsupportedType),
        (lambda client: client.lookup("", "k"), LimitError),
        (lambda client: client.lookup("@", "k"), LimitError),
        (lambda client: client.lookup("@", "k", read="one"), LimitError),
        (lambda client: client.lookup("\ud800", "k", read="one"), LimitError),
        (lambda client: client.lookup("i" * 300, "k", read="one"), LimitError),
        (lambda client: client.lookup("i", "k", read="two"), UsageError),
        (lambda client: client.lookup("i", "k", read=["one"]), UsageError),
        (lambda client: client.lookup("i", "\ud800"), LimitError),
    ],
)
def test_wrong_arguments_are_refused(
    client: Client, look_up: Callable[[Client], Any], error: type[Exception]
) -> None:
    warm_up(client, "i")
    with pytest.raises(error):
        look_up(client)


def test_look_up_ends_in_time_while_signals_arrive(
    peers: Peers, client: Client, index: str
) -> None:
    warm_up(client, index)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    peers["a"].freeze()
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        for number in range(30):
            began = time.monotonic()
            assert client.lookup(index, f"warm {number}", read="one") == number
            assert time.monotonic() - began < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        peers["a"].thaw()
        signal.signal(signal.SIGALRM, before)


def test_keys_of_other_types_and_texts_are_found(client: Client, index: str) -> None:
    warm_up(client, index)
    for key in (b"bytes", 7, "é", "k" * 400):
        client.put(index, key, [key])
        assert client.lookup(index, key) == [key]


def test_look_ups_of_a_client_that_is_closed_meanwhile_fail(peers: Peers, index: str) -> None:
    client = peers.client()
    warm_up(client, index)
    failures: list[BaseException] = []
    looked_up: list[int] = []

    def look_up(thread: int) -> None:
        try:
            while True:
                assert client.lookup(index, "warm 1") == 1
                looked_up.append(thread)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=look_up, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(set(looked_up)) == 4, 10, "each thread has looked up")
    client.close()
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in failures] == [ClosedError] * 4
