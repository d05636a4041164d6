"""Tests that no two writes get the same version: in threads, signal handlers and forks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dstash import AsyncClient, Client
from dstash.client.session import Session
from dstash.errors import UsageError
from dstash.store.record import Record
from dstash.types import Level
from dstash.version import Clock, stamp_at, unpack

NOW = 1_700_000_000_000


def in_child(work: Callable[[], Any]) -> str:
    """Return the result of ``work`` in a forked child as text, or the error that it raises."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return text


class TestClock:
    def test_nested_tick_gets_a_different_stamp(self) -> None:
        inner: list[int] = []

        def wall() -> int:
            if not inner:  # as another thread or a signal handler may at this point
                inner.append(0)
                inner[0] = clock.tick()
            return 5

        clock = Clock(wall)
        outer = clock.tick()
        assert outer != inner[0]
        assert clock.tick() > max(outer, inner[0])

    def test_observe_during_tick_is_kept(self) -> None:
        def wall() -> int:
            clock.observe(stamp_at(9))
            return 5

        clock = Clock(wall)
        assert clock.tick() > stamp_at(9)

    def test_threads_get_unique_increasing_stamps(self) -> None:
        clock = Clock(lambda: 5)
        stamps: list[list[int]] = [[] for _ in range(4)]

        def work(mine: list[int]) -> None:
            mine.extend(clock.tick() for _ in range(20_000))

        threads = [threading.Thread(target=work, args=(mine,)) for mine in stamps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(mine == sorted(mine) for mine in stamps)
        assert max(Counter(stamp for mine in stamps for stamp in mine).values()) == 1

    def test_signal_handler_gets_unique_increasing_stamps(self) -> None:
        clock, stamps = Clock(lambda: 5), [0]
        handled: list[int] = []

        def handler(number: int, frame: object) -> None:
            before = stamps[-1]
            handled.append(clock.tick())
            assert handled[-1] > before

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            while len(handled) < 200:
                stamps.append(clock.tick())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert stamps == sorted(stamps)
        assert max(Counter(stamps + handled).values()) == 1


class TestSession:
    def session(self, process: list[int], now: list[int]) -> Session:
        made = iter(range(1, 100))
        return Session(
            lambda: now[0],
            random_bytes=lambda size: next(made).to_bytes(size, "big"),
            process=lambda: process[0],
        )

    def test_forked_child_stamps_with_its_own_writer(self) -> None:
        process, now = [1], [NOW]
        session = self.session(process, now)
        in_parent = session.new_version()
        process[0] = 2
        child = [session.new_version(), session.new_version()]
        assert unpack(child[0])[1] == unpack(child[1])[1] != unpack(in_parent)[1]
        assert in_parent < child[0] < child[1]

    def test_clock_set_back_changes_the_writer(self) -> None:
        process, now = [1], [NOW]
        session = self.session(process, now)
        session.learn_clock("a", NOW + 60_000, NOW, NOW)  # a peer with a wrong clock
        ahead = session.new_version()
        session.learn_clock("a", NOW, NOW, NOW)
        later = session.new_version()
        assert later < ahead
        assert unpack(later)[1] != unpack(ahead)[1]

    def test_writer_is_constant_within_a_process(self) -> None:
        session = self.session([1], [NOW])
        writers = {unpack(session.new_version())[1] for _ in range(100)}
        assert len(writers) == 1


def record_of(client: Client, index: str, key: str) -> Record:
    """Return the records of a key on the replicas."""
    from dstash.client.operations.reads import RecordOperation

    decode = client.types.decode_values
    found = client.run(
        lambda session, deadline: RecordOperation(
            session, deadline, index, [key], Level.ALL, decode
        )
    )
    record: Record = found[key]
    return record


class TestFork:
    def test_put_in_forked_child_has_a_different_writer(self, seeds: list[str], index: str) -> None:
        with Client(*seeds, timeout=20) as client:
            client.put(index, "parent", 1)
            for number in range(3):  # each child makes its first call
                assert in_child(lambda key=f"child{number}": client.put(index, key, 1)) == "None"  # type: ignore[misc]
            names = ["parent", "child0", "child1", "child2"]
            writers = {unpack(record_of(client, index, key).version)[1] for key in names}
        assert len(writers) == 4

    def test_client_works_when_first_used_in_forked_child(
        self, seeds: list[str], index: str
    ) -> None:
        with Client(*seeds, timeout=20) as client:
            assert in_child(lambda: client.put(index, "a", 1)) == "None"
            assert in_child(lambda: client.lookup(index, "a")) == "1"

    def test_close_in_forked_child_does_not_affect_parent(
        self, seeds: list[str], index: str
    ) -> None:
        with Client(*seeds, timeout=20) as client:
            client.put(index, "a", 1)
            assert in_child(client.close) == "None"
            assert client.lookup(index, "a") == 1

    def test_async_client_first_used_in_children_has_a_writer_per_child(
        self, seeds: list[str], index: str
    ) -> None:
        client = AsyncClient(*seeds, timeout=20)

        async def put(key: str) -> None:
            async with client:
                await client.put(index, key, 1)

        for key in ("a", "b"):
            assert in_child(lambda key=key: asyncio.run(put(key))) == "None"  # type: ignore[misc]
        with Client(*seeds, timeout=20) as reader:
            writers = {unpack(record_of(reader, index, key).version)[1] for key in ("a", "b")}
        assert len(writers) == 2

    def test_used_async_client_raises_in_forked_child(self, seeds: list[str], index: str) -> None:
        async def run() -> tuple[str, int]:
            async with AsyncClient(*seeds, timeout=20) as client:
                await client.put(index, "a", 1)
                text = in_child(lambda: asyncio.new_event_loop().run_until_complete(look(client)))
                return text, await client.lookup(index, "a")

        async def look(client: AsyncClient) -> Any:
            return await client.lookup(index, "a")

        text, value = asyncio.run(run())
        assert text == (
            "UsageError: this AsyncClient was used in the parent process; make one in each process"
        )
        assert value == 1


def test_second_event_loop_in_a_thread_raises_at_once(seeds: list[str], index: str) -> None:
    """The first loop was stopped with pending calls, as after a KeyboardInterrupt."""
    client = AsyncClient(*seeds, timeout=20)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def stop_after_a_call() -> None:
        first.stop()
        await client.put(index, "a", 1)

    async def call() -> None:
        await asyncio.wait_for(client.put(index + "2", "b", 1), 10)

    task = first.create_task(stop_after_a_call())
    first.run_forever()
    with pytest.raises(UsageError, match="belongs to another event loop"):
        second.run_until_complete(call())
    first.run_until_complete(task)
    first.run_until_complete(client.close())
    first.close()
    second.close()
