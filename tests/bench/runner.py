"""Takes turns between stores, times them, and checks every answer.

One round runs every case once, beginning with another one each time; the first round warms up and
is not counted. Puts store keys that are new, so that no store gets by with overwriting.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.bench.store import Pairs, Store

KEY_BYTES = 17

Note = Callable[[str], None]


class Shape(NamedTuple):
    """How much is stored and looked up, in one batch."""

    keys: int = 100_000
    value_bytes: int = 100


@dataclass
class Case:
    """One kind of work on one store, and how long it took each time (seconds)."""

    work: str
    store: Store
    samples: list[float] = field(default_factory=list)


def data(shape: Shape, series: int) -> Pairs:
    """Return pairs of exact sizes; no two series share a key."""
    keys = [f"{series:04d}:{number:0{KEY_BYTES - 5}d}" for number in range(shape.keys)]
    return {key: key.encode().ljust(shape.value_bytes, b".")[: shape.value_bytes] for key in keys}


class Runner:
    """Runs ``put`` and ``get`` on each store, for a number of rounds."""

    def __init__(self, stores: Sequence[Store], shape: Shape, note: Note) -> None:
        self._shape = shape
        self._note = note
        self._series = iter(range(1, 10_000))
        self._known = data(shape, 0)
        self._order = random.Random(1).sample(sorted(self._known), shape.keys)
        self.cases = [Case(work, store) for work in ("put", "get") for store in stores]

    def run(self, rounds: int) -> None:
        """Fill ``samples`` of every case with one sample a round."""
        for store in {id(case.store): case.store for case in self.cases}.values():
            store.put(self._known)
            store.settle()
        for number in range(rounds + 1):
            self._note(f"round {number} of {rounds}" if number else "warming up")
            for case in self._in_turn(number):
                seconds = self._put(case.store) if case.work == "put" else self._get(case.store)
                if number:
                    case.samples.append(seconds)

    def _in_turn(self, number: int) -> Iterator[Case]:
        first = number % len(self.cases)
        yield from self.cases[first:] + self.cases[:first]

    def _put(self, store: Store) -> float:
        pairs = data(self._shape, next(self._series))
        seconds = _timed(lambda: store.put(pairs))
        store.settle()
        some = list(pairs)[:: max(1, len(pairs) // 1000)]
        found = store.found(store.get(some), some)
        assert found == {key: pairs[key] for key in some}, f"{store.name} lost what was put"
        return seconds

    def _get(self, store: Store) -> float:
        answers = []
        seconds = _timed(lambda: answers.append(store.get(self._order)))
        found = store.found(answers[0], self._order)
        assert found == self._known, f"{store.name} answered wrongly"
        return seconds


def _timed(action: Callable[[], None]) -> float:
    gc.collect()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
