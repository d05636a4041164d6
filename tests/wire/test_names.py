"""Host names: resolved in threads, cached, with all addresses tried; libzmq gets addresses only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from dstash.errors import UsageError
from dstash.wire.links import Links
from dstash.wire.names import Answer, Place, Resolver, listening_places, named_place
from dstash.wire.router import Received, Router
from dstash.wire.sockets import Context, Poller
from tests.harness.ports import free_port
from tests.harness.waiting import PATIENCE, wait_until


@pytest.mark.parametrize(
    ("endpoint", "place"),
    [
        ("tcp://db.example:5000", Place("db.example", "5000")),
        ("tcp://localhost:1", Place("localhost", "1")),
        ("tcp://127.0.0.1:5000", None),
        ("tcp://[::1]:5000", None),
        ("tcp://*:5000", None),
        ("ipc:///tmp/socket", None),
        ("nonsense", None),
    ],
)
def test_only_names_are_looked_up(endpoint: str, place: Place | None) -> None:
    assert named_place(endpoint) == place


def test_place_brackets_ipv6() -> None:
    assert Place("db", "5").at("::1") == "tcp://[::1]:5"
    assert Place("db", "5").at("10.0.0.1") == "tcp://10.0.0.1:5"


class Directory:
    """A name server of the test; its look-ups may hang."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[str]] = {}
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()

    def look_up(self, host: str) -> list[str]:
        self.asked += 1
        numbers = self.numbers.get(host)
        assert self.answers.wait(PATIENCE)
        if not numbers:
            raise OSError(-2, "Name or service not known")
        return numbers


@pytest.fixture
def directory() -> Iterator[Directory]:
    directory = Directory()
    yield directory
    directory.answers.set()


class TestResolver:
    def test_first_lookup_answers_later(self, directory: Directory) -> None:
        directory.numbers["db"] = ["10.0.0.1", "10.0.0.2"]
        heard = threading.Event()
        resolver = Resolver(directory.look_up)
        directory.answers.clear()
        assert resolver.ask("db", heard.set) is None
        assert resolver.known("db") is None
        directory.answers.set()
        assert heard.wait(PATIENCE)
        assert resolver.known("db") == Answer(("10.0.0.1", "10.0.0.2"))

    def test_fresh_answer_is_not_asked_again(self, directory: Directory) -> None:
        directory.numbers["db"] = ["10.0.0.1"]
        now = 100.0
        resolver = Resolver(directory.look_up, lambda: now)
        ask_and_wait(resolver, "db")
        assert resolver.ask("db", pytest.fail) == Answer(("10.0.0.1",))
        now = 102.0
        directory.numbers["db"] = ["10.0.0.9"]
        ask_and_wait(resolver, "db")
        assert resolver.known("db") == Answer(("10.0.0.9",))
        assert directory.asked == 2

    def test_last_good_answer_outlives_failure(self, directory: Directory) -> None:
        directory.numbers["db"] = ["10.0.0.1"]
        now = 100.0
        resolver = Resolver(directory.look_up, lambda: now)
        ask_and_wait(resolver, "db")
        now, directory.numbers = 200.0, {}
        ask_and_wait(resolver, "db")
        answer = resolver.known("db")
        assert answer is not None
        assert answer.numbers == ("10.0.0.1",)
        assert "the name 'db' does not resolve (Name or service not known)" in answer.failure

    def test_hanging_lookup_runs_once_and_wakes_all_callers(self, directory: Directory) -> None:
        directory.answers.clear()
        directory.numbers["db"] = ["10.0.0.1"]
        resolver = Resolver(directory.look_up)
        heard = [threading.Event() for _ in range(5)]
        for event in heard:
            assert resolver.ask("db", event.set) is None
        directory.answers.set()
        assert all(event.wait(PATIENCE) for event in heard)
        assert directory.asked == 1


def ask_and_wait(resolver: Resolver, host: str) -> None:
    """Ask, and wait for the look-up that this starts."""
    heard = threading.Event()
    resolver.ask(host, heard.set)
    assert heard.wait(PATIENCE)


class World:
    """Links to echoing routers, with names that the test resolves."""

    def __init__(self, directory: Directory) -> None:
        self.stack = ExitStack()
        self.context = Context()
        self.poller = Poller()
        self.links = Links(
            self.context, self.poller, lambda: [b"hello"], Resolver(directory.look_up)
        )
        self.lost = 0

    def listen(self, host: str, port: int) -> Router:
        router = Router(self.context, f"tcp://{host}:{port}")
        self.stack.callback(router.close_after, 0)
        return router

    def close(self) -> None:
        self.links.close()
        self.stack.close()
        self.context.close()

    def pump(self) -> None:
        for ready in self.poller.wait(10):
            for event in self.links.events(ready):
                self.lost += event.parts is None

    def reaches(self, router: Router, address: str, text: bytes) -> bool:
        """Send again and again until a router has heard it."""
        got: list[Received] = []

        def look() -> bool:
            if not self.links.moved("p", address):
                self.links.send("p", address, [text])
            self.pump()
            while (received := router.receive()) is not None:
                got.append(received)
            return any(message.parts == [text] for message in got)

        return bool(wait_until(look, PATIENCE, f"{router.address} is reached"))


@pytest.fixture
def world(directory: Directory) -> Iterator[World]:
    world = World(directory)
    yield world
    world.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("numbers", [["::1", "127.0.0.1"], ["127.0.0.1", "::1"]])
def test_peer_is_reached_on_either_address(
    world: World, directory: Directory, host: str, numbers: list[str]
) -> None:
    directory.numbers["db"] = numbers
    port = free_port()
    router = world.listen(host, port)
    assert world.links.send("p", f"tcp://db:{port}", [b"first"])
    received: list[list[bytes]] = []

    def look() -> bool:
        world.pump()
        while (message := router.receive()) is not None:
            received.append(message.parts)
        return len(received) == 2

    wait_until(look, PATIENCE, "what was sent first arrives")
    assert received == [[b"hello"], [b"first"]]
    assert world.lost == 0


def test_other_peers_are_reached_while_a_name_hangs(world: World, directory: Directory) -> None:
    directory.answers.clear()
    router = world.listen("127.0.0.1", free_port())
    assert world.links.send("q", "tcp://gone.example:5000", [b"lost"])
    began = time.monotonic()
    assert world.reaches(router, router.address, b"here")
    assert time.monotonic() - began < PATIENCE / 2


def test_name_without_address_is_reported_once(world: World, directory: Directory) -> None:
    directory.answers.clear()
    assert world.links.send("p", "tcp://nowhere:5000", [b"lost"])
    directory.answers.set()
    wait_until(lambda: world.pump() or world.lost, PATIENCE, "the loss is reported")
    assert "the name 'nowhere' does not resolve" in world.links.reasons["p"]
    assert not world.links.send("p", "tcp://nowhere:5000", [b"again"])


def test_peer_that_moved_to_another_address_is_found(world: World, directory: Directory) -> None:
    port = free_port()
    address = f"tcp://db:{port}"
    directory.numbers["db"] = ["127.0.0.2"]
    before = world.listen("127.0.0.2", port)
    assert world.reaches(before, address, b"before")
    after = world.listen("127.0.0.3", port)
    directory.numbers["db"] = ["127.0.0.3"]
    before.close_after(0)
    assert world.reaches(after, address, b"after")
    assert world.lost >= 1


def test_last_good_address_serves_while_names_fail(world: World, directory: Directory) -> None:
    port = free_port()
    address = f"tcp://db:{port}"
    directory.numbers["db"] = ["127.0.0.1"]
    before = world.listen("127.0.0.1", port)
    assert world.reaches(before, address, b"before")
    directory.numbers = {}
    before.close_after(0)
    wait_until(lambda: world.pump() or world.lost, PATIENCE, "the loss is reported")
    again = bound_again(world, port)
    assert world.reaches(again, address, b"after")


def bound_again(world: World, port: int) -> Router:
    """Bind to an address that another socket is about to release."""

    def attempt() -> Router | None:
        try:
            return world.listen("127.0.0.1", port)
        except UsageError:
            return None

    router: Router = wait_until(attempt, PATIENCE, "the port is free again")
    return router


def test_listening_at_a_name_takes_an_address_that_can_be_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers: Callable[[str], list[str]] = lambda host: ["192.0.2.1", "127.0.0.1"]  # noqa: E731
    monkeypatch.setattr("dstash.wire.names.look_up", numbers)
    assert listening_places("tcp://db:0") == ["tcp://192.0.2.1:0", "tcp://127.0.0.1:0"]
    context = Context()
    router = Router(context, "tcp://db:0")
    assert "127.0.0.1" in router.address
    router.close_after(0)
    context.close()


def test_listening_at_a_name_without_address_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot listen on .*'nowhere\.invalid' does not resolve"):
        listening_places("tcp://nowhere.invalid:1")
