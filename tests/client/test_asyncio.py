"""Tests of the asyncio client: coalescing, cancellation, shared connections, event loops."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dstash import AsyncClient, Client
from dstash.client.operations import clock_reading, reads, writes
from dstash.client.operations.base import Operation
from dstash.client.operations.clock_reading import ClockReading
from dstash.client.operations.short.call import ShortCall
from dstash.client.operations.short.lookup import ShortLookup
from dstash.client.operations.short.write import ShortPut, ShortWrite
from dstash.client.session import Send
from dstash.errors import (
    ClosedError,
    DStashError,
    LimitError,
    TimedOut,
    UndecodableValue,
    UnsupportedType,
    UsageError,
)
from tests.harness.peers import Peers
from tests.harness.waiting import wait_until

Test = Callable[[AsyncClient], Awaitable[None]]


@pytest.fixture
def on_client(seeds: list[str]) -> Callable[[Test], None]:
    """Runs a coroutine function with a client, and checks that nothing is left over."""
    return lambda test: asyncio.run(_with_client(seeds, test))


async def _with_client(seeds: list[str], test: Test) -> None:
    async with AsyncClient(*seeds, timeout=20) as client:
        await test(client)
        assert _running_change(client) == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


def _running_change(client: AsyncClient) -> int:
    channel = client._dispatch._channel
    return len(channel._running) + len(channel._asker)


@pytest.fixture
def requests(blocking: Client) -> Callable[..., int]:
    """Returns how many requests of a kind the peers received since the last call for that kind.

    A write returns before the last replica has received it, so the caller may wait for a number.
    """
    seen: Counter[str] = Counter()

    def total(kind: str) -> int:
        members = blocking.status()["members"]
        return sum(member["counts"].get(kind, 0) for member in members)

    def count(kind: str, at_least: int = 0) -> int:
        what = f"the peers have received {at_least} requests {kind}"
        wait_until(lambda: total(kind) >= seen[kind] + at_least, 20, what)
        fresh = total(kind) - seen[kind]
        seen[kind] += fresh
        return fresh

    return count


@contextmanager
def standing_still(peers: Peers) -> Iterator[None]:
    """Freeze all peers: connections stay open, and nothing answers."""
    for peer in peers.all.values():
        peer.freeze()
    try:
        yield
    finally:
        for peer in peers.all.values():
            peer.thaw()


# -- coalescing


def test_lookups_in_one_iteration_are_one_message_per_peer(
    on_client: Any, blocking: Client, index: str, requests: Any
) -> None:
    entries = {f"key-{number}": number for number in range(256)}
    blocking.batch_put(index, entries)

    async def test(client: AsyncClient) -> None:
        await client.status()
        requests("Lookup")
        found = await asyncio.gather(*(client.lookup(index, key, read="one") for key in entries))
        assert found == list(entries.values())
        assert requests("Lookup") <= 3
        there = await asyncio.gather(*(client.exists(index, key) for key in [*entries, "missing"]))
        assert there == [True] * 256 + [False]
        assert requests("Lookup") <= 12

    on_client(test)


def test_writes_in_one_iteration_are_one_message_per_peer(
    on_client: Any, blocking: Client, index: str, requests: Any
) -> None:
    async def test(client: AsyncClient) -> None:
        await client.status()
        requests("Put")
        requests("Delete")
        await asyncio.gather(*(client.put(index, number, 1, write="all") for number in range(200)))
        assert requests("Put") == 3
        deleted = await asyncio.gather(
            *(client.delete(index, number, write="all") for number in range(100, 300))
        )
        assert deleted == [True] * 100 + [False] * 100
        assert requests("Delete") == 3

    on_client(test)
    assert sorted(blocking.keys(index)) == list(range(100))


def test_calls_with_different_arguments_are_not_coalesced(
    on_client: Any, index: str, requests: Any
) -> None:
    async def test(client: AsyncClient) -> None:
        await client.put(index, "key", 1, write="all")
        requests("Put")
        await asyncio.gather(
            client.put(index, "a", 1, ttl=60),
            client.put(index, "b", 1, ttl=70),
            client.put(f"{index}-other"[:64], "c", 1, ttl=60),
            client.put(index, "d", 1, ttl=60, write="all"),
            client.put(index, "e", 1, ttl=60, timeout=5),
            client.put(index, "f", 1, ttl=60),
        )
        assert requests("Put", at_least=5 * 3) == 5 * 3

    on_client(test)


def test_arguments_equal_to_valid_ones_are_refused_in_the_same_iteration(
    on_client: Any, index: str
) -> None:
    async def test(client: AsyncClient) -> None:
        results = await asyncio.gather(
            client.put(index, "a", 1, ttl=1),
            client.put(index, "b", 1, ttl=True),
            client.put(index, 1, 1, ttl=1),
            client.put(index, True, 1, ttl=1),  # type: ignore[arg-type]
            client.lookup(index, "c", timeout=1),
            client.lookup(index, "d", timeout=True),
            client.delete(index, "c", timeout=1),
            client.delete(index, "d", timeout=True),
            client.exists(index, "c", timeout=1),
            client.exists(index, "d", timeout=True),
            return_exceptions=True,
        )
        kinds = [type(result) for result in results[1::2]]
        assert kinds == [LimitError, UnsupportedType, LimitError, LimitError, LimitError]
        assert results[::2] == [None, None, None, False, False]

    on_client(test)


def test_calls_of_one_key_are_short(
    on_client: Any, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    continued: set[ShortCall] = set()
    hand_over = ShortCall._continued

    def note(call: ShortCall) -> Operation:
        continued.add(call)
        return hand_over(call)

    async def test(client: AsyncClient) -> None:
        await client.put(index, "found", 1)  # finds the cluster, and reads its clocks
        monkeypatch.setattr(ShortCall, "_continued", note)
        for _ in range(20):
            await client.put(index, "key", 1, write="all")  # so that the replicas agree
            assert await client.lookup(index, "key") == 1
            assert await client.lookup(index, "missing", 2) == 2
            assert await client.delete(index, "key", write="all")
        assert len(continued) < 20  # of 80: on a busy machine a peer may answer late
        kept = len(continued)
        assert await client.lookup(f"@{index}"[:64], "key", 3) == 3  # a register, never short
        assert len(continued) == kept

    on_client(test)


def test_short_calls_continue_when_the_answer_is_not_plain(
    on_client: Any, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(client: AsyncClient) -> None:
        await client.put(index, "key", 1)
        monkeypatch.setattr(ShortLookup, "_deliver", lambda call: False)
        monkeypatch.setattr(ShortWrite, "is_outdated", True)
        monkeypatch.setattr(ShortPut, "is_outdated", True)
        assert await client.lookup(index, "key") == 1
        await client.put(index, "key", 2)
        assert await client.lookup(index, "key") == 2
        assert await client.delete(index, "key")
        assert not await client.delete(index, "key")
        assert await client.lookup(index, "key", 3) == 3

    on_client(test)


def test_short_lookup_raises_the_error_of_its_operation(
    on_client: Any, blocking: Client, index: str
) -> None:
    blocking.types.register(
        range, code=7, encode=lambda value: b"%d" % value.stop, decode=lambda data: range(int(data))
    )
    blocking.put(index, "range", range(3))

    async def test(client: AsyncClient) -> None:
        await client.put(index, "key", 1)
        with pytest.raises(UndecodableValue, match="range"):
            await client.lookup(index, "range")

    on_client(test)


def test_last_write_of_a_key_in_one_iteration_wins(on_client: Any, index: str) -> None:
    async def test(client: AsyncClient) -> None:
        calls: list[Awaitable[Any]] = [client.put(index, "a", number) for number in range(20)]
        calls += [client.delete(index, "x"), client.put(index, "b", 1), client.delete(index, "b")]
        calls += [client.delete(index, "c"), client.put(index, "c", 1), client.put(index, "c", 2)]
        calls += [client.put(index, "d", 1), client.batch_put(index, {"d": 2})]
        await asyncio.gather(*calls)
        keys = ["a", "b", "c", "d"]
        found = await asyncio.gather(*(client.lookup(index, key) for key in keys))
        assert found == [19, None, 2, 2]

    on_client(test)


def test_writes_of_a_new_client_are_stamped_in_the_order_of_the_calls(
    on_client: Any, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[ClockReading] = []

    class FirstEndsLast(ClockReading):
        """The first reading waits for all peers, the others only for a majority."""

        def begin(self, now: int) -> list[Send]:
            readings.append(self)
            return super().begin(now)

        def _end_if_enough(self) -> None:
            if self is not readings[0] or not self._waiting:
                super()._end_if_enough()

    for module in (clock_reading, writes):
        monkeypatch.setattr(module, "ClockReading", FirstEndsLast)

    async def test(client: AsyncClient) -> None:
        calls: list[Awaitable[Any]] = [client.put(index, "a", number) for number in range(3)]
        calls += [client.put(index, "b", 1), client.batch_put(index, {"b": 2, "c": 1})]
        calls += [client.batch_put(index, {"c": 2})]
        await asyncio.gather(*calls)
        assert await client.batch_lookup(index, list("abc")) == {"a": 2, "b": 2, "c": 2}
        assert len(readings) == 1

    on_client(test)


def test_close_right_after_the_first_call_fails_that_call(seeds: list[str]) -> None:
    async def test() -> None:
        client = AsyncClient(*seeds, timeout=20)
        call = asyncio.ensure_future(client.put("index", "key", 1))
        while not client._dispatch._tasks:
            await asyncio.sleep(0)
        await client.close()  # its task has not made its first step
        with pytest.raises(ClosedError):
            await asyncio.wait_for(call, 5)

    asyncio.run(test())


def test_lookups_of_one_key_return_separate_mutable_values(on_client: Any, index: str) -> None:
    async def test(client: AsyncClient) -> None:
        await client.put(index, "key", {"list": [1], "tuple": (1, 2)})
        first, second = await asyncio.gather(*(client.lookup(index, "key") for _ in range(2)))
        first["list"].append(2)
        assert second == {"list": [1], "tuple": (1, 2)}
        assert await client.lookup(index, "key") == second

    on_client(test)


def test_coalesced_lookups_return_the_default_of_each_caller(on_client: Any, index: str) -> None:
    async def test(client: AsyncClient) -> None:
        calls = (client.lookup(index, "missing", number) for number in range(5))
        assert await asyncio.gather(*calls) == [0, 1, 2, 3, 4]

    on_client(test)


def test_error_about_one_key_reaches_only_its_caller(
    on_client: Any, blocking: Client, index: str
) -> None:
    blocking.types.register(
        range, code=7, encode=lambda value: b"%d" % value.stop, decode=lambda data: range(int(data))
    )
    blocking.batch_put(index, {"sound": 1, "strange": range(3), "sound too": 2})

    async def test(client: AsyncClient) -> None:
        keys: list[Any] = ["sound", "strange", "sound too", 1.5, "", "strange", "missing"]
        calls = [client.lookup(index, key) for key in keys]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [found[0], found[2], found[6]] == [1, 2, None]
        kinds = [type(found[place]) for place in (1, 3, 4, 5)]
        assert kinds == [UndecodableValue, UnsupportedType, LimitError, UndecodableValue]
        assert "key 'strange'" in str(found[1])
        assert found[1] is not found[5]

    on_client(test)


def test_value_whose_decoder_raises_fails_alone(on_client: Any, index: str) -> None:
    def explode(data: bytes) -> range:
        raise ZeroDivisionError

    async def test(client: AsyncClient) -> None:
        client.types.register(range, code=8, encode=lambda value: b"", decode=explode)
        await client.batch_put(index, {"bad": range(3), "good": 1})
        calls = (client.lookup(index, key) for key in ("bad", "good"))
        bad, good = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(bad, DStashError)
        assert good == 1

    on_client(test)


# -- concurrency


def test_client_serves_256_concurrent_tasks(on_client: Any, index: str) -> None:
    async def work(client: AsyncClient, number: int) -> None:
        order = random.Random(number)
        for iteration in range(8):
            await client.put(index, f"{number}", [number, iteration], write="all")
            await asyncio.sleep(order.random() / 500)
            assert await client.lookup(index, f"{number}") == [number, iteration]

    async def test(client: AsyncClient) -> None:
        await asyncio.gather(*(work(client, number) for number in range(256)))
        assert await client.count(index) == 256

    on_client(test)


def test_single_calls_proceed_during_a_batch(
    on_client: Any, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many more chunks than may be pending at once.
    monkeypatch.setattr(reads, "KEYS_PER_CHUNK", 20)
    monkeypatch.setattr("dstash.client.asyncio._BATCH_KEYS", 100)
    entries = {f"key-{number}": number for number in range(10_000)}

    async def test(client: AsyncClient) -> None:
        assert (await client.batch_put(index, entries, write="all")).ok
        batch = asyncio.create_task(client.batch_lookup(index, entries))
        for number in range(20):
            assert await client.lookup(index, f"key-{number}") == number
        assert await batch == entries
        walked = [pair async for pair in client.items(index)]
        assert dict(walked) == entries
        assert len(walked) == len(entries)

    on_client(test)


def test_scan_can_be_abandoned_early(on_client: Any, blocking: Client, index: str) -> None:
    blocking.batch_put(index, [(number, number) for number in range(100)])

    async def test(client: AsyncClient) -> None:
        async for key in client.index(index):
            assert key in range(100)
            break

    on_client(test)


# -- cancellation


def test_call_cancelled_early_is_not_sent(on_client: Any, index: str) -> None:
    async def test(client: AsyncClient) -> None:
        await client.put(index, "key", 1)
        calls = [asyncio.create_task(client.put(index, number, number)) for number in range(3)]
        await asyncio.sleep(0)  # the calls are made, but the iteration has not ended
        for call in calls[:2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
        found = await asyncio.gather(*(client.lookup(index, number) for number in range(3)))
        assert found == [None, None, 2]

    on_client(test)


def test_cancelled_call_does_not_affect_callers_of_the_same_key(on_client: Any, index: str) -> None:
    async def test(client: AsyncClient) -> None:
        await client.batch_put(index, [(number, number) for number in range(100)])
        calls = [asyncio.create_task(client.lookup(index, number % 50)) for number in range(100)]
        for _ in range(2):
            await asyncio.sleep(0)  # sent, not answered
        assert _running_change(client)
        for call in calls[10:]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results[:10] == list(range(10))
        assert all(isinstance(result, asyncio.CancelledError) for result in results[10:])

    on_client(test)


def test_call_without_callers_is_abandoned(on_client: Any, index: str) -> None:
    async def test(client: AsyncClient) -> None:
        await client.status()
        calls: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(client.lookup(index, "key")),
            asyncio.ensure_future(client.batch_lookup(index, range(1000))),
            asyncio.ensure_future(client.put(index, "key", 1)),
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert _running_change(client) == 0
        assert await client.lookup(index, "other") is None

    on_client(test)


# -- peers that do not answer


def test_call_fails_at_its_timeout(on_client: Any, index: str, peers: Peers) -> None:
    async def test(client: AsyncClient) -> None:
        await client.put(index, "key", 1)
        with standing_still(peers):
            calls: list[Awaitable[Any]] = [
                client.lookup(index, "key", timeout=0.2),
                client.put(index, "other", 1, timeout=0.2),
                client.batch_lookup(index, ["key"], timeout=0.2),
                asyncio.wait_for(client.lookup(index, "key"), 0.2),
            ]
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [TimedOut, TimedOut, TimedOut, TimeoutError]
        assert await client.lookup(index, "key") == 1

    on_client(test)


def test_blocked_loop_reads_answers_before_it_times_out(
    on_client: Any, index: str, peers: Peers
) -> None:
    def answered() -> int:
        return sum(peer.lookups() for peer in peers.all.values())

    async def test(client: AsyncClient) -> None:
        await client.put(index, "key", 1, write="all")
        before = answered()
        call = asyncio.create_task(client.lookup(index, "key", timeout=0.4, read="one"))
        for _ in range(2):
            await asyncio.sleep(0)
        # The loop is blocked for longer than the timeout; the answer arrives in this time.
        end = time.monotonic() + 0.6
        while time.monotonic() < end or answered() == before:
            pass
        assert await call == 1

    on_client(test)


def test_calls_succeed_when_a_peer_is_killed_under_load(
    on_client: Any, index: str, peers: Peers, blocking: Client
) -> None:
    stored: dict[str, int] = {}
    stop = asyncio.Event()

    async def work(client: AsyncClient, number: int) -> None:
        iteration = 0
        while not stop.is_set() or iteration < 2:
            iteration += 1
            key = f"{number}-{iteration}"
            await client.put(index, key, iteration)
            stored[key] = iteration
            assert await client.lookup(index, key) == iteration

    async def calls_return(count: int) -> None:
        while len(stored) < count:
            await asyncio.sleep(0.01)

    async def test(client: AsyncClient) -> None:
        tasks = [asyncio.create_task(work(client, number)) for number in range(32)]
        await calls_return(100)
        peers["b"].signal(signal.SIGKILL)
        await calls_return(len(stored) + 100)
        stop.set()
        await asyncio.gather(*tasks)
        assert await client.batch_lookup(index, list(stored)) == stored

    try:
        on_client(test)
    finally:
        peers["b"].wait_end()
        peers["b"].start()
        peers["b"].wait_ready()
    assert blocking.batch_lookup(index, list(stored)) == stored


# -- loops, and the end


def test_client_rejects_a_second_event_loop(seeds: list[str], index: str) -> None:
    client = AsyncClient(*seeds)

    async def first() -> None:
        await client.put(index, "key", 1)

    async def second() -> None:
        with pytest.raises(UsageError, match="another event loop"):
            await client.lookup(index, "key")
        with pytest.raises(UsageError, match="another event loop"):
            await client.close()

    with asyncio.Runner() as runner, asyncio.Runner() as other:
        runner.run(first())
        other.run(second())
        runner.run(client.close())


def test_close_fails_pending_calls(seeds: list[str], index: str, peers: Peers) -> None:
    async def test() -> None:
        client = AsyncClient(*seeds)
        await client.put(index, "key", 1)
        with standing_still(peers):
            calls = [asyncio.ensure_future(client.lookup(index, "key")) for _ in range(3)]
            calls.append(asyncio.ensure_future(client.batch_lookup(index, ["key"])))
            await asyncio.sleep(0.01)
            calls.append(asyncio.ensure_future(client.put(index, "late", 1)))
            await asyncio.sleep(0)
            await client.close()
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [ClosedError] * 5
        with pytest.raises(ClosedError):
            await client.lookup(index, "key")
        await client.close()

    asyncio.run(test())


def test_close_ends_a_search_for_the_cluster() -> None:
    async def test() -> None:
        client = AsyncClient("tcp://127.0.0.1:9", timeout=20)
        call = asyncio.ensure_future(client.lookup("i", "key"))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(ClosedError):
            await call
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(test())


def test_close_leaves_no_file_descriptor_open(seeds: list[str], index: str) -> None:
    async def use() -> None:
        async with AsyncClient(*seeds) as client:
            await asyncio.gather(*(client.put(index, number, 1) for number in range(10)))

    asyncio.run(use())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        asyncio.run(use())
    # The blocking client of these tests may reconnect to a peer in the meantime.
    assert len(os.listdir("/proc/self/fd")) < before + 10


def test_close_of_unused_client_succeeds() -> None:
    asyncio.run(AsyncClient("tcp://127.0.0.1:9").close())
