"""Calls of many threads are combined; none is lost, even if the thread that works fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dstash import Client
from dstash.client.local.batches import ASK
from dstash.client.transport.combining import Combiner, WaitingCall
from dstash.client.transport.quick import QuickLookups
from tests.harness.peers import Peers
from tests.harness.waiting import wait_until

THREADS = 16


class Work:
    """Doubles numbers; ``gate`` holds back those who work."""

    def __init__(self, patience: float = 0.1) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.sizes: list[int] = []
        self.entered = 0
        self.fails = False
        self.combiner = Combiner(self.work, patience)

    def alone(self, number: int) -> int:
        self.entered += 1
        self.gate.wait(10)
        return 2 * number

    def work(self, calls: list[WaitingCall]) -> None:
        self.sizes.append(len(calls))
        if self.fails:
            raise RuntimeError("the connection broke")
        for call in calls:
            call.outcome = 2 * call.wanted

    def call(self, number: int) -> Any:
        return self.combiner.call(number, self.alone)


def in_threads(call: Callable[[int], Any], numbers: range) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    return threads


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_call_of_one_thread_is_made_alone() -> None:
    work = Work()
    assert [work.call(number) for number in range(10)] == list(range(0, 20, 2))
    assert work.entered == 10
    assert not work.sizes


def test_calls_that_wait_are_made_together() -> None:
    work, found = Work(patience=10), dict[int, Any]()
    work.gate.clear()
    threads = in_threads(lambda number: found.update({number: work.call(number)}), range(12))
    wait_until(lambda: len(work.combiner._waiting) == 10, 10, "ten calls wait")
    assert work.entered == 2
    work.gate.set()
    joined(threads)
    assert found == {number: 2 * number for number in range(12)}
    assert sum(work.sizes) == 10
    assert len(work.sizes) <= 2
    assert not work.combiner._leaders


def test_calls_by_many_threads_are_all_answered() -> None:
    work, failures = Work(), []

    def call(thread: int) -> None:
        for number in range(3000):
            outcome = work.call(thread + number)
            if outcome != 2 * (thread + number) and outcome is not ASK:
                failures.append((thread, number, outcome))

    joined(in_threads(call, range(THREADS)))
    assert not failures
    assert not work.combiner._leaders
    assert not [call for call in work.combiner._waiting if call.claim()]


def test_failure_of_the_thread_that_works_leaves_the_others_to_themselves() -> None:
    work, found = Work(patience=10), []
    work.gate.clear()
    work.fails = True

    def call(number: int) -> None:
        try:
            found.append(work.call(number))
        except RuntimeError:
            found.append("failed")

    threads = in_threads(call, range(8))
    wait_until(lambda: len(work.combiner._waiting) == 6, 10, "six calls wait")
    work.gate.set()
    joined(threads)
    assert len(found) == 8
    assert "failed" in found, "the thread that works gets the error"
    assert found.count(ASK) == 8 - 2 - found.count("failed")
    assert not work.combiner._leaders


def test_call_that_no_thread_takes_is_left_to_its_own() -> None:
    work = Work()
    now = time.monotonic()
    work.combiner._leaders.update({-1: now, -2: now})  # threads that stand still
    began = time.monotonic()
    assert work.call(7) is ASK
    assert 0.05 < time.monotonic() - began < 5


def test_threads_that_were_interrupted_are_forgotten() -> None:
    work = Work()
    long_ago = time.monotonic() - 10
    work.combiner._leaders.update({-1: long_ago, -2: long_ago})
    assert work.call(7) is ASK
    assert work.call(7) == 14


def test_handler_of_a_signal_makes_its_call_alone() -> None:
    work = Work()
    work.combiner._leaders[-1] = time.monotonic()

    def alone(number: int) -> list[Any]:
        return [number, work.call(number + 1)]  # as a handler that interrupts this thread

    assert work.combiner.call(1, alone) == [1, 4]


def test_interrupted_thread_passes_on_what_it_was_woken_for() -> None:
    work = Work()
    now = time.monotonic()
    work.combiner._leaders.update({-1: now, -2: now})

    class Interrupted:
        """A lock that is released and whose thread is interrupted before it continues."""

        def acquire(self, timeout: float = 0) -> bool:
            if timeout:
                work.combiner._end(-1)  # a thread stops and wakes this one
                raise KeyboardInterrupt
            return True

        def release(self) -> None:
            pass

    call = WaitingCall(7, threading.get_ident())
    call.woken = Interrupted()  # type: ignore[assignment]  # has all that is used
    with pytest.raises(KeyboardInterrupt):
        work.combiner._join(call)
    assert threading.get_ident() not in work.combiner._leaders
    assert work.call(8) == 16


# -- look-ups


@pytest.fixture
def client(peers: Peers) -> Iterator[Client]:
    with peers.client(local_reads="off") as made:
        yield made


@pytest.fixture
def combined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the sizes of combined look-ups."""
    sizes: list[int] = []
    look_up_all = QuickLookups._look_up_all

    def counted(self: QuickLookups, calls: list[WaitingCall]) -> None:
        look_up_all(self, calls)
        sizes.append(sum(call.outcome is not ASK for call in calls))

    monkeypatch.setattr(QuickLookups, "_look_up_all", counted)
    return sizes


def look_up_by_threads(client: Client, index: str, seconds: float, **how: Any) -> list[str]:
    """Look keys up by many threads; return what was wrong."""
    wrong: list[str] = []
    end = time.monotonic() + seconds

    def look_up(thread: int) -> None:
        number = thread
        while time.monotonic() < end:
            number = (number + 7) % 200
            try:
                found = client.lookup(index, f"key {number}", "default", **how)
            except Exception as error:
                wrong.append(repr(error))
                return
            expected: Any = {"number": number} if number < 150 else "default"
            if found != expected:
                wrong.append(f"{number}: {found}")
            elif number < 150:
                found["number"] = -1  # each caller has a value of its own

    joined(in_threads(look_up, range(THREADS)))
    return wrong


@pytest.mark.parametrize("level", ["one", "quorum", "all"])
def test_threads_find_their_own_values(
    combined: list[int], client: Client, index: str, level: str
) -> None:
    client.batch_put(
        index, {f"key {number}": {"number": number} for number in range(150)}, write="all"
    )
    assert not look_up_by_threads(client, index, 1.0, read=level)
    assert max(combined) > 2
    assert sum(combined) > 100


def test_threads_find_their_values_while_a_peer_is_frozen_and_others_write(
    peers: Peers, client: Client, index: str
) -> None:
    values = {f"key {number}": {"number": number} for number in range(150)}
    client.batch_put(index, values, write="all")
    stop = threading.Event()

    def write() -> None:
        with peers.client() as other:
            while not stop.is_set():
                other.batch_put(index, values)

    [writer] = in_threads(lambda _: write(), range(1))
    freezer = threading.Timer(0.5, peers["b"].freeze)
    freezer.start()
    try:
        assert not look_up_by_threads(client, index, 2.0)
    finally:
        freezer.join()
        peers["b"].thaw()
        stop.set()
        joined([writer])


def test_value_that_cannot_be_decoded_fails_only_its_own_look_up(
    peers: Peers, client: Client, index: str
) -> None:
    class Point:
        pass

    client.types.register(Point, code=7, encode=lambda point: b"", decode=lambda data: Point())
    client.put(index, "point", Point())
    client.put(index, "plain", 1)
    results: dict[str, set[str]] = {"point": set(), "plain": set()}
    end = time.monotonic() + 1

    with peers.client(local_reads="off") as other:

        def look_up(thread: int) -> None:
            key = "point" if thread % 2 else "plain"
            while time.monotonic() < end:
                try:
                    results[key].add(repr(other.lookup(index, key)))
                except Exception as error:
                    results[key].add(type(error).__name__)

        joined(in_threads(look_up, range(8)))
    assert results == {"point": {"UndecodableValue"}, "plain": {"1"}}
