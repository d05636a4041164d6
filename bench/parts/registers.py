"""Part ``registers``: atomic operations on one key, compared with etcd and Redis.

One caller, then 64 on an event loop: a compare-and-set of a key that the caller has changed before,
an add of a new key, an increment of one counter. Redis compares in a script; etcd increments by
reading and comparing, until no other caller came between. A batch of puts is compared with plain
puts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from statistics import median
from typing import Any, Final

import redis.asyncio

from bench import data
from bench.lab import Lab
from bench.parts.batches import KEYS, VALUE_BYTES, timed
from bench.stores.dstash_store import INDEX
from bench.stores.etcd import EtcdCaller
from bench.work import Case, Unit, Work, use_time_slice
from dstash import AsyncClient, Client, Level

PUT_ONE: Final = Work("plain put, one caller", 1, VALUE_BYTES)
SET_ONE: Final = Work("compare-and-set, one caller", 1, VALUE_BYTES)
ADD_ONE: Final = Work("add, one caller", 1, VALUE_BYTES)
SET_OWN: Final = Work("compare-and-set, own keys", 1, VALUE_BYTES, 64)
ADD_NEW: Final = Work("adds of new keys", 1, VALUE_BYTES, 64)
COUNT: Final = Work("increments of one counter", 1, 0, 64)
BATCH: Final = Work("put into registers", KEYS, VALUE_BYTES)
PLAIN_BATCH: Final = Work("put into a plain index", KEYS, VALUE_BYTES)
RATES: Final = (SET_OWN, ADD_NEW, COUNT)

QUORUM: Final = "dstash N=3 quorum"
_REGISTERS: Final = "@bench"
_ONE_CALLS: Final = 200
SET_CALLS: Final = 3000
_COUNT_CALLS: Final = 2000
_VALUE: Final = bytes(VALUE_BYTES)
#: Stores a value if the key has another one: redis-py sends its hash.
_SCRIPT: Final = (
    "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end "
    "redis.call('SET', KEYS[1], ARGV[2]) return 1"
)

_fresh: Final = count()

#: Makes one call of a caller, given its number and that of the call.
Act = Callable[[int, int], Awaitable[Any]]


def measure(lab: Lab, rounds: int) -> list[Case]:
    """Measure all cases."""
    with asyncio.Runner() as runner, callers(lab, runner) as cases:
        return list(use_time_slice(cases, rounds, lab.note))


@contextmanager
def callers(lab: Lab, runner: asyncio.Runner) -> Iterator[list[Case]]:
    """Yield all cases."""
    bench = _Bench(lab, runner)
    try:
        yield list(bench.cases())
    finally:
        bench.close()


class _Bench:
    """The clients of this part."""

    def __init__(self, lab: Lab, runner: asyncio.Runner) -> None:
        self._lab, self._runner = lab, runner
        self._client = Client(*lab.three_copies.addresses, write=Level.QUORUM, timeout=60)

    def close(self) -> None:
        """Close the clients that live as long as the part."""
        self._client.close()

    def cases(self) -> Iterator[Case]:
        """Yield the cases."""
        client = self._client
        yield Case(PUT_ONE, QUORUM, partial(_middle, self._put))
        client.put(_REGISTERS, "hot", _VALUE)
        yield Case(SET_ONE, QUORUM, self._set_one)
        yield Case(ADD_ONE, QUORUM, partial(_middle, self._add))
        for name, run in (("etcd", self._in_etcd), ("redis", self._in_redis)):
            for work in (SET_ONE, ADD_ONE):
                yield Case(work, name, partial(run, work))
        for work in RATES:
            for name, run in (
                ("etcd", self._in_etcd),
                ("redis", self._in_redis),
                (QUORUM, self._in_dstash),
            ):
                yield Case(work, name, partial(run, work), Unit.RATE)
        yield Case(PLAIN_BATCH, QUORUM, partial(self._batch, INDEX))
        yield Case(BATCH, QUORUM, partial(self._batch, _REGISTERS))

    def _new(self) -> str:
        return f"register-{next(_fresh):08}"

    def _put(self) -> None:
        self._client.put(INDEX, self._new(), _VALUE)

    def _add(self) -> None:
        assert self._client.add(_REGISTERS, self._new(), _VALUE)

    def _set_one(self) -> float:
        entry = self._client.lookup_entry(_REGISTERS, "hot")
        assert entry is not None
        version = entry.version

        def act() -> None:
            nonlocal version
            version = self._client.compare_and_set(_REGISTERS, "hot", _VALUE, version)

        return _middle(act)

    def _batch(self, index: str) -> float:
        pairs = data.fresh(KEYS, VALUE_BYTES)
        return timed(lambda: self._client.batch_put(index, pairs))

    def _in_dstash(self, work: Work) -> float:
        return self._runner.run(self._dstash(work))

    async def _dstash(self, work: Work) -> float:
        addresses = self._lab.three_copies.addresses
        async with AsyncClient(*addresses, write=Level.QUORUM, timeout=60) as client:
            versions: list[int] = []

            async def compare_and_set(caller: int, _: int) -> None:
                key = f"own-{caller}"
                versions[caller] = await client.compare_and_set(
                    _REGISTERS, key, _VALUE, versions[caller]
                )

            async def add(_: int, __: int) -> None:
                assert await client.add(_REGISTERS, self._new(), _VALUE)

            async def increment(_: int, __: int) -> None:
                await client.increment(_REGISTERS, "counter")

            for caller in range(work.clients):
                await client.put(_REGISTERS, f"own-{caller}", _VALUE)
                entry = await client.lookup_entry(_REGISTERS, f"own-{caller}")
                assert entry is not None
                versions.append(entry.version)
            acts: dict[Work, Act] = {SET_OWN: compare_and_set, ADD_NEW: add, COUNT: increment}
            return await _spread(work, acts[work])

    def _in_redis(self, work: Work) -> float:
        return self._runner.run(self._redis(work))

    async def _redis(self, work: Work) -> float:
        callers = max(1, work.clients)
        client = redis.asyncio.Redis(
            host="127.0.0.1", port=self._lab.redis.port, max_connections=callers
        )
        script = client.register_script(_SCRIPT)

        async def compare_and_set(caller: int, _: int) -> None:
            assert await script([f"own-{caller}"], [_VALUE, _VALUE])

        async def add(_: int, __: int) -> None:
            assert await client.set(self._new(), _VALUE, nx=True)

        async def increment(_: int, __: int) -> None:
            await client.incr("counter")

        try:
            for caller in range(callers):
                await client.set(f"own-{caller}", _VALUE)
            acts: dict[Work, Act] = {
                SET_ONE: compare_and_set,
                SET_OWN: compare_and_set,
                ADD_ONE: add,
                ADD_NEW: add,
                COUNT: increment,
            }
            return await _spread(work, acts[work])
        finally:
            await client.aclose()

    def _in_etcd(self, work: Work) -> float:
        return self._runner.run(self._etcd(work))

    async def _etcd(self, work: Work) -> float:
        connect = partial(EtcdCaller.connect, self._lab.etcd.port)
        callers = [await connect() for _ in range(max(1, work.clients))]
        revisions: list[int] = []

        async def compare_and_set(caller: int, _: int) -> None:
            revisions[caller] = await callers[caller].compare_and_set(
                f"own-{caller}", _VALUE, revisions[caller]
            )
            assert revisions[caller]

        async def add(caller: int, _: int) -> None:
            assert await callers[caller].compare_and_set(self._new(), _VALUE, 0)

        async def increment(caller: int, _: int) -> None:
            etcd = callers[caller]
            while True:
                value, revision = await etcd.get("counter")
                if await etcd.compare_and_set("counter", b"%d" % (int(value) + 1), revision):
                    return

        try:
            await callers[0].put("counter", b"0")
            for number, caller in enumerate(callers):
                revisions.append(await caller.put(f"own-{number}", _VALUE))
            acts: dict[Work, Act] = {
                SET_ONE: compare_and_set,
                SET_OWN: compare_and_set,
                ADD_ONE: add,
                ADD_NEW: add,
                COUNT: increment,
            }
            return await _spread(work, acts[work])
        finally:
            for caller in callers:
                await caller.close()


def _middle(act: Callable[[], object]) -> float:
    """Return the median of many sequential calls (seconds)."""
    samples = []
    for _ in range(_ONE_CALLS):
        began = time.perf_counter()
        act()
        samples.append(time.perf_counter() - began)
    return median(samples)


async def _spread(work: Work, act: Act) -> float:
    """Let the callers make calls; return calls a second, or of one caller the median time."""
    if not work.clients:
        return median([await _timed(act, number) for number in range(_ONE_CALLS)])
    calls = _COUNT_CALLS if work == COUNT else SET_CALLS
    order = iter(range(calls))

    async def call(caller: int) -> None:
        for number in order:
            await act(caller, number)

    began = time.perf_counter()
    await asyncio.gather(*map(call, range(work.clients)))
    return calls / (time.perf_counter() - began)


async def _timed(act: Act, number: int) -> float:
    began = time.perf_counter()
    await act(0, number)
    return time.perf_counter() - began
