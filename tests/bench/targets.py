"""What is to be reached: ratios to other systems in the same run, and bounds on a peer."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from tests.bench.footprint import MIB, Footprint
from tests.bench.runner import Case


class Target(NamedTuple):
    """``store`` takes at most ``limit`` times as long as ``against`` for ``work``."""

    work: str
    store: str
    against: str
    limit: float


TARGETS = (
    Target("get", "dstash N=3 one", "redis cluster", 0.4),
    Target("get", "dstash N=3 quorum", "redis cluster", 0.7),
    Target("put", "dstash N=3 quorum", "redis cluster", 3.0),
)

IDLE_MIB = 60.0
GROWTH_MIB = 10.0


class Verdict(NamedTuple):
    """A target, and what came of it."""

    what: str
    target: str
    reached: str
    met: bool


def ratio(cases: Sequence[Case], work: str, store: str, against: str) -> float | None:
    """Return the median over the rounds of how much longer ``store`` took; None if not run."""
    samples = {case.store.name: case.samples for case in cases if case.work == work}
    if store not in samples or against not in samples:
        return None
    return median(a / b for a, b in zip(samples[store], samples[against], strict=True))


def judge(cases: Sequence[Case], footprint: Footprint | None) -> list[Verdict]:
    """Compare what was measured with what is to be reached."""
    return [*_ratios(cases), *_bounds(footprint)]


def _ratios(cases: Sequence[Case]) -> list[Verdict]:
    verdicts = []
    for work, store, against, limit in TARGETS:
        reached = ratio(cases, work, store, against)
        if reached is not None:
            what = f"{work}: {store} / {against}"
            verdicts.append(Verdict(what, f"<= {limit:g}", f"{reached:.2f}", reached <= limit))
    return verdicts


def _bounds(footprint: Footprint | None) -> list[Verdict]:
    if footprint is None:
        return []
    idle = footprint.idle.private / MIB
    growth = (footprint.restarted.private - footprint.idle.private) / MIB
    name = f"growth of an idle peer by {footprint.keys:,} keys"
    return [
        Verdict("memory of an idle peer", f"<= {IDLE_MIB:g} MiB", f"{idle:.0f}", idle <= IDLE_MIB),
        Verdict(name, f"<= {GROWTH_MIB:g} MiB", f"{growth:.0f}", growth <= GROWTH_MIB),
    ]
