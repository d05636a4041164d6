"""Part ``singles``: one key a call.

Look-ups of one blocking caller, of 16 threads on one client, of 256 callers on an event loop; puts
of one caller, and of 64.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, Final

import redis.asyncio

from bench import data
from bench.lab import LOCAL, RELAXED, Lab
from bench.parts.batches import KEYS, VALUE_BYTES
from bench.stores import etcd
from bench.stores.dstash_store import INDEX
from bench.stores.echo import EchoClient
from bench.stores.store import Store
from bench.work import Case, Unit, Work, use_time_slice
from dstash import AsyncClient, Level

ONE: Final = Work("lookup, one caller", 1, VALUE_BYTES)
THREADS: Final = Work("lookups of threads on one client", 1, VALUE_BYTES, 16)
PUT_ONE: Final = Work("put, one caller", 1, VALUE_BYTES)
CONCURRENT: Final = Work("lookups on an event loop", 1, VALUE_BYTES, 256)
DURABLE: Final = Work("durable puts", 1, VALUE_BYTES, 64)

CALLS: Final = 500
PUT_CALLS: Final = 200
THREAD_CALLS: Final = 8000
CONCURRENT_CALLS: Final = 20_000
DURABLE_CALLS: Final = 3000
_ASKED: Final = ("redis", "redis cluster", "memcached", "dstash N=3 one", "dstash N=3 quorum")
_ALONE: Final = (*_ASKED, LOCAL)
_FILLED: Final = (*_ASKED, "dstash N=1")
_QUORUM: Final = "dstash N=3 quorum"
#: What no put with three copies on one disk can avoid: the limit of ``PUT_ONE``.
SYNCS: Final = "three syncs and an echo"

#: Yields a function that starts a call for a key.
Ask = Callable[[str], Awaitable[Any]]


def measure(lab: Lab, rounds: int) -> list[Case]:
    """Measure all cases."""
    with asyncio.Runner() as runner, callers(lab, runner) as cases:
        return list(use_time_slice(cases, rounds, lab.note))


@contextmanager
def callers(lab: Lab, runner: asyncio.Runner) -> Iterator[list[Case]]:
    """Yield all cases for every system that takes part."""
    pairs = data.fresh(KEYS, VALUE_BYTES)
    keys = data.shuffled(pairs)
    for name in _FILLED:
        lab.stores[name].fill(pairs)
    runner.run(etcd.put_all(lab.etcd.port, iter(pairs.items()), DURABLE.clients))
    echo = EchoClient(lab.echo.port)
    try:
        alone = [*_one(lab, echo, keys), *_puts_alone(lab, echo)]
        together = [*_threads(lab, keys), *_concurrent(lab, echo, runner, keys)]
        yield [*alone, *together, *_durable(lab, runner)]
    finally:
        echo.close()


def _one(lab: Lab, echo: EchoClient, keys: list[str]) -> Iterator[Case]:
    yield Case(ONE, "echo", lambda: _middle(lambda key: echo.round_trip(), keys))
    for name in _ALONE:
        yield Case(ONE, name, partial(_middle, lab.stores[name].get_one, keys))


def _middle(ask: Callable[[str], object], keys: list[str]) -> float:
    """Return the median of many sequential calls (seconds)."""
    samples = []
    for key in keys[:CALLS]:
        began = time.perf_counter()
        ask(key)
        samples.append(time.perf_counter() - began)
    return median(samples)


def _puts_alone(lab: Lab, echo: EchoClient) -> Iterator[Case]:
    def put_three_times(key: str) -> None:
        for disk in lab.disks:
            disk.put({key: bytes(VALUE_BYTES)})
        echo.round_trip()

    yield Case(PUT_ONE, SYNCS, partial(_middle_put, put_three_times))
    for name in (_QUORUM, RELAXED):
        store = lab.stores[name]
        put = partial(_put_one, store)
        yield Case(PUT_ONE, name, partial(_middle_put, put))


def _put_one(store: Store, key: str) -> None:
    store.put_one(key, bytes(VALUE_BYTES))


def _middle_put(put: Callable[[str], object]) -> float:
    """Return the median of many sequential puts of new keys (seconds)."""
    return _middle(put, list(data.fresh(PUT_CALLS, 1)))


def _threads(lab: Lab, keys: list[str]) -> Iterator[Case]:
    for name in ("redis", "dstash N=3 one"):
        yield Case(THREADS, name, partial(_by_threads, lab.stores[name].get_one, keys), Unit.RATE)


def _by_threads(ask: Callable[[str], object], keys: list[str]) -> float:
    """Let threads look up single keys; return look-ups a second."""
    share = THREAD_CALLS // THREADS.clients

    def call(number: int) -> None:
        for key in keys[number * share : (number + 1) * share]:
            assert ask(key) is not None

    with ThreadPoolExecutor(THREADS.clients) as pool:
        list(pool.map(call, range(THREADS.clients)))  # starts the threads, and connects
        began = time.perf_counter()
        list(pool.map(call, range(THREADS.clients)))
        return THREAD_CALLS / (time.perf_counter() - began)


def _concurrent(
    lab: Lab, echo: EchoClient, runner: asyncio.Runner, keys: list[str]
) -> Iterator[Case]:
    def sample(connect: Callable[[], Any]) -> float:
        return runner.run(_lookups(connect(), keys))

    yield Case(CONCURRENT, "echo", lambda: echo.rate(CONCURRENT_CALLS), Unit.RATE)
    port = lab.redis.port
    yield Case(CONCURRENT, "redis", lambda: sample(partial(_redis, port)), Unit.RATE)
    for level in ("one", "quorum"):
        connect = partial(_dstash, lab.three_copies.addresses, level)
        take = partial(sample, connect)
        yield Case(CONCURRENT, f"dstash N=3 {level}", take, Unit.RATE)


class _Asked:
    """A minimal client on an event loop."""

    def __init__(self, client: Any, get: Ask, close: Callable[[], Awaitable[Any]]) -> None:
        self.client, self.get, self.close = client, get, close


def _redis(port: int) -> _Asked:
    client = redis.asyncio.Redis(host="127.0.0.1", port=port, max_connections=CONCURRENT.clients)
    return _Asked(client, client.get, client.aclose)


def _dstash(addresses: list[str], level: str) -> _Asked:
    client = AsyncClient(
        *addresses, read=Level(level), write=Level(level), timeout=60, local_reads="off"
    )
    return _Asked(client, partial(client.lookup, INDEX), client.close)


async def _lookups(asked: _Asked, keys: list[str]) -> float:
    """Let 256 callers look up single keys; return look-ups a second."""
    try:
        await asyncio.gather(*map(asked.get, keys[: CONCURRENT.clients]))  # connects
        order = iter(range(CONCURRENT_CALLS))

        async def call() -> None:
            for number in order:
                assert await asked.get(keys[number % KEYS]) is not None

        began = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(CONCURRENT.clients)))
        return CONCURRENT_CALLS / (time.perf_counter() - began)
    finally:
        await asked.close()


def _durable(lab: Lab, runner: asyncio.Runner) -> Iterator[Case]:
    def sample(put_all: Callable[[Iterator[tuple[str, bytes]]], Any]) -> float:
        pairs = data.fresh(DURABLE_CALLS, VALUE_BYTES)
        began = time.perf_counter()
        runner.run(put_all(iter(pairs.items())))
        return DURABLE_CALLS / (time.perf_counter() - began)

    async def to_etcd(pairs: Iterator[tuple[str, bytes]]) -> None:
        await etcd.put_all(lab.etcd.port, pairs, DURABLE.clients)

    yield Case(DURABLE, "etcd", lambda: sample(to_etcd), Unit.RATE)
    for name, cluster, level in (
        ("dstash N=1", lab.one_copy, "one"),
        ("dstash N=3 quorum", lab.three_copies, "quorum"),
    ):
        put_all = partial(_puts, cluster.addresses, level)
        yield Case(DURABLE, name, partial(sample, put_all), Unit.RATE)


async def _puts(addresses: list[str], level: str, pairs: Iterator[tuple[str, bytes]]) -> None:
    async with AsyncClient(*addresses, write=Level(level), timeout=60) as client:

        async def call() -> None:
            for key, value in pairs:
                await client.put(INDEX, key, value)

        await asyncio.gather(*(call() for _ in range(DURABLE.clients)))
