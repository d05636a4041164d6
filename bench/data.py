"""The data: keys of 17 bytes, values of an exact size, and no key twice."""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Iterator
from typing import Final

from bench.stores.store import Pairs
from dstash.limits import PARTITIONS
from dstash.store.record import partition_of

KEY_BYTES: Final = 17
_DIGITS: Final = KEY_BYTES - 7

_series = itertools.count(1)
_random = random.Random(2)


def key(series: int, number: int) -> str:
    """Return a key; no two series have a key in common."""
    return f"{series:06d}:{number:0{_DIGITS}d}"


def value(of: str, size: int) -> bytes:
    """Return the value of a key, which starts with as much of the key as fits."""
    return of.encode().ljust(size, b".")[:size]


def pairs(series: int, count: int, size: int, first: int = 0) -> Pairs:
    """Return ``count`` pairs of a series, starting at number ``first``."""
    keys = [key(series, number) for number in range(first, first + count)]
    return {name: value(name, size) for name in keys}


def fresh(count: int, size: int) -> Pairs:
    """Return pairs with keys that are new in this run."""
    return pairs(next(_series), count, size)


def shuffled(some: Pairs) -> list[str]:
    """Return the keys in a fixed random order."""
    return random.Random(1).sample(sorted(some), len(some))


def chunks(series: int, count: int, size: int, about: int = 100_000) -> Iterator[Pairs]:
    """Yield ``count`` pairs of a series in batches of approximately this size.

    A batch has neighbouring partitions, as in a restore: filling a large store with random keys
    would write each of its pages many times.
    """
    batches = [array("I") for _ in range(-(-count // about))]
    for number in range(count):
        place = partition_of(key(series, number).encode()) * len(batches) // PARTITIONS
        batches[place].append(number)
    for numbers in batches:
        yield {name: value(name, size) for name in (key(series, number) for number in numbers)}


def scattered(count: int, below: int) -> list[int]:
    """Return distinct numbers, new ones at each call."""
    return _random.sample(range(below), count)
