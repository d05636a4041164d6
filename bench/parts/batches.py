"""Parts ``batches`` and ``sizes``: one client, one batch at a time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bench import data
from bench.lab import RELAXED, Lab
from bench.stores.store import Pairs, Store
from bench.work import Case, Work, use_time_slice

#: The batch of the targets.
KEYS: Final = 100_000
VALUE_BYTES: Final = 100

_SIZES: Final = (10, 100, 1024, 65_536)
_BATCHES: Final = (1, 100, 10_000, 100_000)
_STORES: Final = (
    "redis",
    "redis cluster",
    "memcached",
    "dstash N=1",
    "dstash N=3 one",
    "dstash N=3 quorum",
    "lmdb",
)
#: Those that look keys up in the order of storing, too.
_ORDERED: Final = ("redis", "dstash N=3 one", "dstash N=3 quorum")
#: Combinations with more bytes are omitted.
_MOST_BYTES: Final = 128 << 20
_MOST_BYTES_FULL: Final = 700 << 20
#: A sample of a small batch is the mean over this many keys, or this many batches.
_KEYS_A_SAMPLE: Final = 2000
_BATCHES_A_SAMPLE: Final = 20
_CHECKED: Final = 1000


def lookup(keys: int = KEYS, value_bytes: int = VALUE_BYTES) -> Work:
    """Return the name of a batch look-up."""
    return Work("lookup", keys, value_bytes)


def lookup_in_order() -> Work:
    """Return the name of a batch look-up of keys in the order in which they were stored."""
    return Work("lookup in the order of storing", KEYS, VALUE_BYTES)


def put(keys: int = KEYS, value_bytes: int = VALUE_BYTES) -> Work:
    """Return the name of a batch put."""
    return Work("put", keys, value_bytes)


def measure(lab: Lab, rounds: int) -> list[Case]:
    """Measure the batch of the targets on every system at every level."""
    stores = [store for store in lab.stores.values() if store.name != RELAXED]
    pairs = data.fresh(KEYS, VALUE_BYTES)
    in_order = [
        _lookups(store, pairs, list(pairs), lookup_in_order())
        for store in stores
        if store.name in _ORDERED
    ]
    cases = [*_cases(stores, KEYS, VALUE_BYTES), *in_order]
    return list(use_time_slice(cases, rounds, lab.note))


def measure_sizes(lab: Lab, rounds: int) -> list[Case]:
    """Measure batches and values of many sizes."""
    measured: list[Case] = []
    for keys, value_bytes in combinations(most_bytes(full=lab.full)):
        lab.note(f"batches of {keys:,} x {value_bytes:,} B")
        cases = _cases([lab.stores[name] for name in _STORES], keys, value_bytes)
        few = 1 if keys * value_bytes > _MOST_BYTES else rounds
        measured += use_time_slice(cases, few, lambda text: None)
    return measured


def most_bytes(*, full: bool) -> int:
    """Return the highest number of bytes of a measured batch."""
    return _MOST_BYTES_FULL if full else _MOST_BYTES


def combinations(most: int) -> Iterator[tuple[int, int]]:
    """Yield the batches to measure."""
    for value_bytes in _SIZES:
        for keys in _BATCHES:
            if keys * (value_bytes + data.KEY_BYTES) <= most:
                yield keys, value_bytes


def _cases(stores: Sequence[Store], keys: int, value_bytes: int) -> list[Case]:
    known = data.fresh(keys, value_bytes)
    order = data.shuffled(known)
    work = lookup(keys, value_bytes)
    lookups = [_lookups(store, known, order, work) for store in stores]
    return [*lookups, *(_puts(store, keys, value_bytes) for store in stores)]


def _lookups(store: Store, known: Pairs, order: Sequence[str], work: Work) -> Case:
    store.fill(known)
    assert store.found(store.get(order), order) == known, f"{store.name} answered wrongly"
    keys = len(order)
    times = _times(keys)

    def take() -> float:
        answers: list[object] = [None]

        def look_up() -> None:
            for _ in range(times):
                answers[0] = store.get(order)

        seconds = timed(look_up)
        assert store.found(answers[0], order) == known, f"{store.name} answered wrongly"
        return seconds / times

    return Case(work, store.name, take)


def _puts(store: Store, keys: int, value_bytes: int) -> Case:
    times = _times(keys)

    def take() -> float:
        batches = [data.fresh(keys, value_bytes) for _ in range(times)]
        seconds = timed(lambda: [store.put(pairs) for pairs in batches])
        store.settle()
        _check(store, batches[-1])
        return seconds / times

    return Case(put(keys, value_bytes), store.name, take)


def _check(store: Store, pairs: Pairs) -> None:
    some = list(pairs)[:: max(1, len(pairs) // _CHECKED)]
    found = store.found(store.get_surely(some), some)
    assert found == {key: pairs[key] for key in some}, f"{store.name} lost what was put"


def _times(keys: int) -> int:
    return max(1, min(_KEYS_A_SAMPLE // keys, _BATCHES_A_SAMPLE))


def timed(action: Callable[[], object]) -> float:
    """Return the duration of a call in seconds, without garbage collection."""
    gc.collect()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
