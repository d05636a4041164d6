"""A load on a cluster: which keys, how many callers, and a record of how long each call took."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dstash.errors import DStashError, UsageError

if TYPE_CHECKING:
    from dstash.client.asyncio import AsyncClient

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)

#: Of mixed work, the part that reads.
_READS: Final = 0.9
#: The exponent of YCSB's zipfian workloads (Cooper et al., 2010).
_ZIPF: Final = 0.99
#: What a histogram can hold (microseconds), to three digits.
_LONGEST: Final = 600_000_000
_DRAWN_AT_ONCE: Final = 4096
#: What is stored is gone after that many seconds.
_TTL: Final = 3600


class Work(StrEnum):
    """What is done."""

    PUT = "put"
    GET = "get"
    MIXED = "mixed"
    BATCH = "batch"


class Distribution(StrEnum):
    """Which keys are asked for how often."""

    UNIFORM = "uniform"
    ZIPF = "zipf"


@dataclass(frozen=True)
class Shape:
    """How much of what."""

    work: Work
    index: str
    seconds: float
    concurrency: int
    value_bytes: int
    keys: int
    batch: int
    distribution: Distribution


class Second(NamedTuple):
    """What happened in one second of a run; times in microseconds."""

    calls: int
    p50: int
    p99: int


@dataclass
class Record:
    """What happened so far. Times are kept in HdrHistograms (Gil Tene): exact to three digits."""

    kinds: dict[str, Any] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    timeline: list[Second] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._now = new_histogram()

    def add(self, kind: str, microseconds: int) -> None:
        """Count one call."""
        histogram = self.kinds.get(kind)
        if histogram is None:
            histogram = self.kinds[kind] = new_histogram()
        taken = min(max(1, microseconds), _LONGEST)
        histogram.record_value(taken)
        self._now.record_value(taken)

    def close_second(self) -> Second:
        """Begin a new second; returns the one that ended."""
        now = self._now
        percentile = now.get_value_at_percentile
        calls = now.get_total_count()
        second = Second(calls, percentile(50), percentile(99)) if calls else Second(0, 0, 0)
        now.reset()
        self.timeline.append(second)
        return second


def new_histogram() -> Any:
    """Return an empty histogram of microseconds.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError:
        raise UsageError(
            "bench needs the package hdrhistogram: pip install 'dstash[bench]'"
        ) from None
    return HdrHistogram(1, _LONGEST, 3)


def draw(shape: Shape, seed: int) -> Iterator[int]:
    """Yield numbers of keys, for ever."""
    order = random.Random(seed)  # noqa: S311  # no secret
    numbers = range(shape.keys)
    weights = None
    if shape.distribution is Distribution.ZIPF:
        weights = list(itertools.accumulate((one + 1) ** -_ZIPF for one in numbers))
    while True:
        yield from order.choices(numbers, cum_weights=weights, k=_DRAWN_AT_ONCE)


class Load:
    """Runs a shape of work with a client until its time is over.

    Args:
        tick: called once a second with what happened in it.
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
        """Store all keys, where the work reads."""
        if self._shape.work is Work.PUT:
            return
        pairs = ((_key(number), self._value) for number in range(self._shape.keys))
        result = await self._client.batch_put(self._shape.index, pairs, ttl=_TTL, write="all")
        result.raise_for_failures()

    async def run(self) -> None:
        """Work; what was recorded stands in ``record``, also when it is cancelled."""
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
        return "put", self._client.put(self._shape.index, key, self._value, _TTL)

    def _get(self) -> tuple[str, Awaitable[Any]]:
        return "get", self._client.lookup(self._shape.index, _key(next(self._keys)))

    def _put_or_get(self) -> tuple[str, Awaitable[Any]]:
        return self._get() if self._reads.random() < _READS else self._put()

    def _batch(self) -> tuple[str, Awaitable[Any]]:
        keys: Sequence[str] = [_key(one) for one in itertools.islice(self._keys, self._shape.batch)]
        if self._reads.random() < _READS:
            return "batch lookup", self._client.batch_lookup(self._shape.index, set(keys))
        pairs = dict.fromkeys(keys, self._value)
        return "batch put", self._put_all(pairs)

    async def _put_all(self, pairs: dict[str, bytes]) -> None:
        result = await self._client.batch_put(self._shape.index, pairs, _TTL)
        result.raise_for_failures()


def _key(number: int) -> str:
    return f"bench-{number:011d}"
