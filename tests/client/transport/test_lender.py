"""The channels of a client: their bound, the order of waiting calls, and idle ones."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest

from dstash import TimedOut
from dstash.client.session import Session
from dstash.client.transport import lender as lending
from dstash.client.transport.channel import Channel
from dstash.client.transport.lender import KEPT_CHANNELS, Lender
from dstash.errors import ClosedError
from tests.harness.waiting import wait_until


class FakeChannel:
    """A channel without connections."""

    def __init__(self, closed: list[int]) -> None:
        self.thread = 0
        self.idle_since = 0.0
        self._closed = closed

    def close(self) -> None:
        self._closed.append(id(self))


class Lending:
    """A lender of fake channels, at most ``bound`` of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
        monkeypatch.setattr(lending, "MAX_CHANNELS", bound)
        monkeypatch.setattr(lending, "open_files_limit", lambda: -1)
        self.session = Session(lambda: round(time.monotonic() * 1000))
        self.closed: list[int] = []
        self.lender = Lender(self.session, 0)
        self.lender.new_channel = lambda: self.new_channel()

    def new_channel(self) -> Channel:
        channel: Any = FakeChannel(self.closed)
        return channel  # type: ignore[no-any-return]

    def borrow(self, seconds: float = 10) -> Channel:
        """Borrow a channel as a call does."""
        try:
            channel = self.lender.idle.pop()
        except IndexError:
            channel = self.lender.open_or_wait(self.session.wall() + round(seconds * 1000))
        channel.thread = threading.get_ident()
        return channel

    def borrow_elsewhere(self, count: int = 1) -> list[Channel]:
        """Borrow channels in threads of their own, which keep them."""
        found: list[Channel] = []
        for _ in range(count):
            thread = threading.Thread(target=lambda: found.append(self.borrow()))
            thread.start()
            thread.join()
        for channel in found:
            channel.thread = -1  # the number of a thread that has ended is used again
        return found

    def waits(self, number: int, found: list[Any]) -> threading.Thread:
        """Start a call that waits; it notes its number and its channel, or its error."""

        def call() -> None:
            try:
                found.append((number, self.borrow()))
            except Exception as error:
                found.append((number, error))

        thread = threading.Thread(target=call)
        count = len(self.lender.waiting)
        thread.start()
        wait_until(lambda: len(self.lender.waiting) > count, 10, "the call waits")
        return thread


def test_calls_beyond_the_bound_wait_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = Lending(monkeypatch, 2), list[Any]()
    first, second = made.borrow_elsewhere(2)
    threads = [made.waits(number, found) for number in range(3)]
    for expected, channel in ((0, first), (1, second), (2, first)):
        made.lender.give_back(channel)
        threads[expected].join(10)
        assert found[-1] == (expected, channel)
    assert len(found) == 3
    assert not made.lender.idle


def test_call_that_gets_no_channel_raises_timed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Lending(monkeypatch, 1)
    [kept] = made.borrow_elsewhere()
    began = time.monotonic()
    with pytest.raises(TimedOut, match="waited for other calls of this client, of which 1 run"):
        made.borrow(0.1)
    assert 0.05 < time.monotonic() - began < 5
    made.lender.give_back(kept)
    assert made.borrow(0) is kept


def test_nested_call_of_a_thread_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Lending(monkeypatch, 1)
    outer = made.borrow()
    inner = made.borrow(0)  # as a signal handler, or the decoder of a type
    assert inner is not outer
    found = list[Any]()
    thread = made.waits(0, found)
    made.lender.give_back(inner)
    assert made.closed == [id(inner)], "the bound holds again"
    made.lender.give_back(outer)
    thread.join(10)
    assert found == [(0, outer)]


def test_interrupted_call_leaves_its_place_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = Lending(monkeypatch, 1), list[Any]()
    [broken] = made.borrow_elsewhere()
    thread = made.waits(0, found)
    made.lender.discard(broken)
    thread.join(10)
    assert made.closed == [id(broken)]
    assert isinstance(found[0][1], FakeChannel)
    assert found[0][1] is not broken


def test_channel_that_an_interrupt_lost_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Lending(monkeypatch, 1)
    lost = made.borrow_elsewhere()
    lost.clear()
    gc.collect()
    assert made.borrow(0)


def test_interrupt_of_a_waiting_call_passes_its_channel_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Lending(monkeypatch, 1)
    [kept] = made.borrow_elsewhere()

    def interrupted(*_: Any) -> int:
        made.lender.give_back(kept)  # just before the interrupt
        raise KeyboardInterrupt

    monkeypatch.setattr(made.session, "wall", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.lender.open_or_wait(10**15)
    assert made.lender.idle == [kept]
    assert not kept.thread


def test_close_ends_the_calls_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = Lending(monkeypatch, 1), list[Any]()
    kept = made.borrow_elsewhere()
    threads = [made.waits(number, found) for number in range(2)]
    made.lender.close()
    for thread in threads:
        thread.join(10)
    assert [type(error) for _, error in found] == [ClosedError, ClosedError]
    assert kept


def test_surplus_channels_are_closed_when_idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    made, now = Lending(monkeypatch, 20), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    channels = [made.borrow() for _ in range(20)]
    for channel in channels:
        made.lender.give_back(channel)
    now[0] += lending.MAX_IDLE_S - 1
    made.lender.give_back(made.borrow())
    assert not made.closed
    now[0] += 2
    last = made.borrow()
    made.lender.give_back(last)
    assert len(made.closed) == 20 - KEPT_CHANNELS - 1
    assert made.lender.idle[-1] is last
    now[0] += lending.MAX_IDLE_S + 1
    made.lender.give_back(made.borrow())
    assert len(made.lender.idle) == KEPT_CHANNELS + 1, "the last used stays open"


@pytest.mark.parametrize(("limit", "bound"), [(-1, 32), (1_000_000, 32), (256, 16), (8, 2)])
def test_bound_follows_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, limit: int, bound: int
) -> None:
    made = Lending(monkeypatch, 32)
    monkeypatch.setattr(lending, "open_files_limit", lambda: limit)
    kept = made.borrow_elsewhere(bound)
    with pytest.raises(TimedOut, match=f"of which {bound} run at a time"):
        made.borrow(0)
    assert len(kept) == bound


def test_many_threads_share_few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    made, shared = Lending(monkeypatch, 3), list[Channel]()
    used: set[int] = set()

    def calls() -> None:
        for _ in range(300):
            channel = made.borrow()
            if id(channel) in used:
                shared.append(channel)
            used.add(id(channel))
            time.sleep(0)  # other threads run meanwhile
            used.discard(id(channel))
            made.lender.give_back(channel)

    threads = [threading.Thread(target=calls) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not shared, "no channel is used by two threads"
    assert len(made.lender.idle) <= 3
