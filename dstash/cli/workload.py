"""The load of ``dstash bench``: its keys, its concurrent callers, and the latency of each call."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dstash.cli.histogram import Histogram
from dstash.errors import DStashError

if TYPE_CHECKING:
    from dstash.client.asyncio import AsyncClient

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)

#: The share of reads in mixed and batch work.
_READ_SHARE: Final = 0.9
#: The exponent of YCSB's zipfian workloads (Cooper et al., 2010).
_ZIPF_EXPONENT: Final = 0.99
_KEYS_PER_DRAW: Final = 4096
#: The time to live of all records of a load.
_TTL_S: Final = 3600


class Work(StrEnum):
    """The kind of calls."""

    PUT = "put"
    GET = "get"
    MIXED = "mixed"
    BATCH = "batch"


class Distribution(StrEnum):
    """The distribution of calls over keys."""

    UNIFORM = "uniform"
    ZIPF = "zipf"


@dataclass(frozen=True)
class Shape:
    """The parameters of a load."""

    work: Work
    index: str
    seconds: float
    concurrency: int
    value_bytes: int
    keys: int
    batch: int
    distribution: Distribution


class Second(NamedTuple):
    """The calls of one second of a run; times in microseconds."""

    calls: int
    p50: int
    p99: int


@dataclass
class Record:
    """The calls of a run; times in microseconds, exact to a tenth of a percent."""

    kinds: dict[str, Histogram] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    timeline: list[Second] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._now = Histogram()

    def add(self, kind: str, microseconds: int) -> None:
        """Count one call."""
        histogram = self.kinds.get(kind)
        if histogram is None:
            histogram = self.kinds[kind] = Histogram()
        histogram.add(microseconds)
        self._now.add(microseconds)

    def close_second(self) -> Second:
        """End the current second and return it; the next one begins."""
        now = self._now
        second = Second(now.count, now.percentile(50), now.percentile(99))
        now.clear()
        self.timeline.append(second)
        return second


def draw(shape: Shape, seed: int) -> Iterator[int]:
    """Yield numbers of keys without end."""
    order = random.Random(seed)  # noqa: S311  # no secret
    numbers = range(shape.keys)
    weights = None
    if shape.distribution is Distribution.ZIPF:
        weights = list(itertools.accumulate((n + 1) ** -_ZIPF_EXPONENT for n in numbers))
    while True:
        yield from order.choices(numbers, cum_weights=weights, k=_KEYS_PER_DRAW)


class Load:
    """Runs a load with a client until its time is over.

    Args:
        tick: called once a second with the calls of that second.
    """

    def __init__(self, client: AsyncClient, shape: Shape, tick: Callable[[Second], None]) -> None:
        self.record = Record()
        self._client = client
        self._shape = shape
        self._tick = tick
        self._keys = draw(shape, seed=1)
        self._value = random.Random(2).randbytes(shape.value_bytes)  # noqa: S311  # no secret
        self._reads = random.Random(3)  # noqa: S311  # no secret
        self._end = 0.0

    async def fill(self) -> None:
        """Store all keys, unless the work only writes."""
        if self._shape.work is Work.PUT:
            return
        pairs = ((_key(number), self._value) for number in range(self._shape.keys))
        await self._client.batch_put(self._shape.index, pairs, ttl=_TTL_S, write="all")

    async def run(self) -> None:
        """Run the load. ``record`` has the calls, even if the run is cancelled."""
        import asyncio  # slow to load; every command imports this module

        began = time.perf_counter()
        self._end = began + self._shape.seconds
        callers = [asyncio.create_task(self._call()) for _ in range(self._shape.concurrency)]
        watcher = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*callers)
        finally:
            self.record.seconds = time.perf_counter() - began
            for task in (*callers, watcher):
                task.cancel()
            await asyncio.gather(*callers, watcher, return_exceptions=True)

    async def _watch(self) -> None:
        import asyncio

        for second in itertools.count(1):
            await asyncio.sleep(self._end - self._shape.seconds + second - time.perf_counter())
            self._tick(self.record.close_second())

    async def _call(self) -> None:
        record, choose = self.record, self._chooser()
        while (began := time.perf_counter()) < self._end:
            kind, call = choose()
            try:
                await call
            except DStashError as error:
                record.errors[type(error).__name__] += 1
            else:
                record.add(kind, round((time.perf_counter() - began) * 1e6))

    def _chooser(self) -> Callable[[], tuple[str, Awaitable[Any]]]:
        return {
            Work.PUT: self._put,
            Work.GET: self._get,
            Work.MIXED: self._put_or_get,
            Work.BATCH: self._batch,
        }[self._shape.work]

    def _put(self) -> tuple[str, Awaitable[Any]]:
        key = _key(next(self._keys))
        return "put", self._client.put(self._shape.index, key, self._value, _TTL_S)

    def _get(self) -> tuple[str, Awaitable[Any]]:
        return "get", self._client.lookup(self._shape.index, _key(next(self._keys)))

    def _put_or_get(self) -> tuple[str, Awaitable[Any]]:
        return self._get() if self._reads.random() < _READ_SHARE else self._put()

    def _batch(self) -> tuple[str, Awaitable[Any]]:
        numbers = itertools.islice(self._keys, self._shape.batch)
        keys: Sequence[str] = [_key(number) for number in numbers]
        if self._reads.random() < _READ_SHARE:
            return "batch lookup", self._client.batch_lookup(self._shape.index, set(keys))
        pairs = dict.fromkeys(keys, self._value)
        return "batch put", self._client.batch_put(self._shape.index, pairs, _TTL_S)


def _key(number: int) -> str:
    return f"bench-{number:011d}"
