"""The measured cases: a kind of work of a size on a system, and its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import NamedTuple

Note = Callable[[str], None]


class Unit(StrEnum):
    """The unit of a sample. Lower times and higher rates are better."""

    SECONDS = "s"
    RATE = "/s"
    BYTES = "B"
    SHARE = "%"


class Work(NamedTuple):
    """A kind of work. Irrelevant sizes are 0."""

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
    """A kind of work on a system: a function that takes a sample, and the samples."""

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
    """Return a case with existing samples."""
    return Case(work, store, lambda: 0.0, unit, list(samples))


def use_time_slice(cases: Sequence[Case], rounds: int, note: Note) -> Sequence[Case]:
    """Take a sample of each case per round, in rotating order.

    So other load on the machine affects all equally. The first round is a warm-up and does not
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
    """Return the case of a work on a system, if it was measured."""
    for case in cases:
        if case.work == work and case.store == store and case.samples:
            return case
    return None


def ratio(case: Case, other: Case) -> float:
    """Return the ratio of two cases, as the median over their rounds."""
    if len(case.samples) == len(other.samples):
        return median(a / b for a, b in zip(case.samples, other.samples, strict=True))
    return case.middle / other.middle


def size(count: int) -> str:
    """Return a number of bytes in readable units."""
    return f"{count // 1024} KiB" if count % 1024 == 0 and count else f"{count} B"
