"""What is measured: a kind of work, at a size, on a system; and the samples that came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import NamedTuple

Note = Callable[[str], None]


class Unit(StrEnum):
    """What a sample counts. Of times less is better, of rates more."""

    SECONDS = "s"
    RATE = "/s"
    BYTES = "B"


class Work(NamedTuple):
    """A kind of work. What does not matter for it is 0."""

    action: str
    keys: int = 0
    value_bytes: int = 0
    clients: int = 0
    records: int = 0

    def __str__(self) -> str:
        words = [self.action]
        if self.keys:
            words.append(f"{self.keys:,}")
        if self.value_bytes:
            words.append(f"x {size(self.value_bytes)}")
        if self.clients:
            words.append(f"by {self.clients} clients" if self.clients > 1 else "by 1 client")
        if self.records:
            words.append(f"of {self.records:,} records")
        return " ".join(words)


@dataclass
class Case:
    """One kind of work on one system: how to take a sample, and those that were taken."""

    work: Work
    store: str
    take: Callable[[], float]
    unit: Unit = Unit.SECONDS
    samples: list[float] = field(default_factory=list)

    @property
    def middle(self) -> float:
        """The median."""
        return median(self.samples)


def known(work: Work, store: str, unit: Unit, samples: Iterable[float]) -> Case:
    """Return a case whose samples were taken already."""
    return Case(work, store, lambda: 0.0, unit, list(samples))


def use_time_slice(cases: Sequence[Case], rounds: int, note: Note) -> Sequence[Case]:
    """Take one sample of each case a round, beginning with another one each time.

    So whatever else the machine does falls on all alike. The first round warms up, and does not
    count.
    """
    for number in range(rounds + 1):
        note(f"round {number} of {rounds}" if number else "warming up")
        first = number % max(1, len(cases))
        for case in (*cases[first:], *cases[:first]):
            sample = case.take()
            if number:
                case.samples.append(sample)
    return cases


def find(cases: Iterable[Case], work: Work, store: str) -> Case | None:
    """Return the case of some work on a system, if it was measured."""
    for case in cases:
        if case.work == work and case.store == store and case.samples:
            return case
    return None


def ratio(case: Case, other: Case) -> float:
    """Return how much more one case shows than another, as the median over their rounds."""
    if len(case.samples) == len(other.samples):
        return median(a / b for a, b in zip(case.samples, other.samples, strict=True))
    return case.middle / other.middle


def size(count: int) -> str:
    """Return bytes as people write them."""
    return f"{count // 1024} KiB" if count % 1024 == 0 and count else f"{count} B"
