"""Real sockets in one process: a message is delivered, or the sender gets an error."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from unittest.mock import ANY

import pytest

from dstash.errors import UsageError
from dstash.limits import MAX_FRAME_BYTES
from dstash.waker import Waker
from dstash.wire.router import Received, Router
from dstash.wire.sockets import Context, DescriptorPoller, Link, LinkState, Poller
from tests.harness.ports import free_port
from tests.harness.waiting import PATIENCE, wait_until

GREETING = [b"hello"]


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    yield context
    context.close()  # hangs if a socket is still open


@pytest.fixture
def router(context: Context) -> Iterator[Router]:
    router = Router(context, f"tcp://127.0.0.1:{free_port()}")
    yield router
    router.close_after(0)


@pytest.fixture
def link(context: Context, router: Router) -> Iterator[Link]:
    link = Link(context, router.address, lambda: GREETING)
    yield link
    link.close()


def states(link: Link, *wanted: LinkState) -> None:
    """Wait until a link has had these states."""
    seen: list[LinkState] = []

    def look() -> bool:
        seen.extend(link.changes())
        return [item for item in seen if item in wanted] == list(wanted)

    wait_until(look, PATIENCE, f"link goes through {wanted}, not {seen}")


def take(receive: Callable[[], object]) -> object:
    return wait_until(receive, PATIENCE, "a message arrives")


def test_greeting_is_sent_before_waiting_messages(link: Link, router: Router) -> None:
    assert link.send([b"one"])
    assert link.send([b"two", b"frames"])
    states(link, LinkState.UP)
    received = [take(router.receive) for _ in range(3)]
    assert [message.parts for message in received] == [[b"hello"], [b"one"], [b"two", b"frames"]]  # type: ignore[attr-defined]


def test_answers_reach_their_client(link: Link, router: Router) -> None:
    states(link, LinkState.UP)
    received = take(router.receive)
    assert isinstance(received, Received)
    assert router.send(received.sender, [b"answer"])
    assert take(link.receive) == [b"answer"]
    assert link.receive() is None


def test_send_to_unknown_client_fails_at_once(router: Router) -> None:
    assert not router.send(b"unknown", [b"answer"])


def test_send_fails_while_peer_is_down(context: Context) -> None:
    link = Link(context, f"tcp://127.0.0.1:{free_port()}", lambda: GREETING)
    try:
        assert link.send([b"waits for the first connection"])
        states(link, LinkState.DOWN)
        assert not link.send([b"refused"])
    finally:
        link.close()


def test_reconnected_link_sends_greeting_and_no_old_messages(context: Context) -> None:
    port = free_port()
    link = Link(context, f"tcp://127.0.0.1:{port}", lambda: GREETING)
    try:
        link.send([b"old"])
        states(link, LinkState.DOWN)
        router = Router(context, f"tcp://127.0.0.1:{port}")
        states(link, LinkState.UP)
        assert link.send([b"new"])
        first, second = take(router.receive), take(router.receive)
        assert [first[1], second[1]] == [[b"hello"], [b"new"]]  # type: ignore[index]
        router.close_after(0)
        states(link, LinkState.DOWN)
        assert not link.send([b"lost"])
    finally:
        link.close()


def test_message_beyond_the_limit_ends_only_its_connection(
    context: Context, link: Link, router: Router
) -> None:
    states(link, LinkState.UP)
    assert link.send([bytes(MAX_FRAME_BYTES + 1)])
    states(link, LinkState.DOWN)
    other = Link(context, router.address, lambda: GREETING)
    try:
        states(other, LinkState.UP)
        assert take(router.receive)
    finally:
        other.close()


def test_silent_raw_connections_are_dropped(router: Router) -> None:
    host, port = router.address.removeprefix("tcp://").rsplit(":", 1)
    # The timeout of ZeroMQ is 30 s.
    with socket.create_connection((host.strip("[]"), int(port)), timeout=20) as raw:
        while raw.recv(1000):  # the greeting of ZMTP, then end of file
            continue


def test_garbage_on_the_port_is_dropped(context: Context, link: Link, router: Router) -> None:
    host, port = router.address.removeprefix("tcp://").rsplit(":", 1)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 100):
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as raw:
            raw.sendall(garbage)
    states(link, LinkState.UP)
    assert take(router.receive)


@pytest.mark.parametrize(
    "address", ["tcp://256.0.0.1:5", "nonsense", "tcp://127.0.0.1", "tcp://192.0.2.1:5000"]
)
def test_address_that_cannot_be_bound_is_named(context: Context, address: str) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on .*"):
        Router(context, address)


def test_port_in_use_is_named(context: Context, router: Router) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on .*: Address already in use$"):
        Router(context, router.address)


def test_malformed_address_is_named(context: Context) -> None:
    with pytest.raises(UsageError, match="cannot connect to 'nonsense'"):
        Link(context, "nonsense", lambda: GREETING)


class TestDescriptorPoller:
    @pytest.fixture
    def poller(self) -> DescriptorPoller:
        return DescriptorPoller()

    def test_arrival_of_a_message_ends_the_wait(
        self, poller: DescriptorPoller, router: Router, link: Link
    ) -> None:
        poller.watch(router.socket)
        link.send([b"request"])
        states(link, LinkState.UP)
        for wanted in (GREETING, [b"request"]):
            while not router.has_message:
                assert poller.wait(5000) == [router.socket]
            assert router.receive() == Received(ANY, wanted, None)
        assert not router.has_message
        assert poller.wait(0) == []

    def test_use_of_a_socket_hides_what_has_arrived(
        self, poller: DescriptorPoller, router: Router, link: Link
    ) -> None:
        poller.watch(router.socket)
        states(link, LinkState.UP)
        wait_until(lambda: router.has_message, PATIENCE, "the greeting arrives")
        assert poller.wait(0) == [], "which is why the owner has to look before it waits"
        assert router.has_message

    def test_forgotten_sockets_are_not_waited_for(self, poller: DescriptorPoller) -> None:
        waker = Waker()
        poller.watch(waker)
        waker.wake()
        assert poller.wait(5000) == [waker]
        poller.forget(waker, object())
        waker.close()
        assert poller.wait(0) == []


class TestWaker:
    @pytest.fixture
    def waker(self) -> Iterator[Waker]:
        waker = Waker()
        yield waker
        waker.close()

    def test_waker_wakes_a_poller_from_another_thread(self, waker: Waker) -> None:
        poller = Poller()
        poller.watch(waker.handle)
        assert poller.wait(0) == []
        thread = threading.Thread(target=waker.wake)
        thread.start()
        assert poller.wait(5000) == [waker.handle]
        thread.join()
        waker.clear()
        assert poller.wait(0) == []
        waker.clear()  # without pending wakes it does nothing

    def test_waker_may_be_called_from_a_signal_handler(self, waker: Waker) -> None:
        caught = 0

        def handler(number: int, frame: FrameType | None) -> None:
            nonlocal caught
            caught += 1
            waker.wake()

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        try:
            deadline = time.monotonic() + 20
            while caught < 500:  # deadlocks here if a wake cannot interrupt a wake
                waker.wake()
                assert time.monotonic() < deadline
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def test_closed_waker_does_nothing(self) -> None:
        waker = Waker()
        waker.close()
        waker.wake()
        waker.close()


def test_forked_child_does_not_close_context_of_parent(context: Context) -> None:
    context.pid += 1  # as if this were a forked child
    context.close()
    context.pid -= 1
    Router(context, "tcp://127.0.0.1:*").close_after(0)  # still usable
