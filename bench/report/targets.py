"""The targets: ratios to other systems in the same run, and limits of a peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from bench.lab import LOCAL, RELAXED
from bench.memory import MIB
from bench.parts import batches, clients, growth, registers, singles, squeeze, stages, upkeep
from bench.work import Case, Work, find, ratio

#: A case, identified by work and system.
Subject = tuple[Work, str]

_ONE: Final = "dstash N=3 one"
_QUORUM: Final = "dstash N=3 quorum"
_LOOKUP: Final = batches.lookup()
_PUT: Final = batches.put()
_CLIENT: Final = stages.share("lookup", stages.CLIENT)
_STORED: Final = "after storing them"


class Ratio(NamedTuple):
    """``of`` is at most (with ``least``: at least) this multiple of ``to``."""

    what: str
    of: Subject
    to: Subject
    limit: float
    least: bool = False


class Bound(NamedTuple):
    """``of`` is at most this value."""

    what: str
    of: Subject
    limit: float
    scale: float
    unit: str


class Shown(NamedTuple):
    """``of`` succeeds; its duration is shown."""

    what: str
    of: Subject


class Verdict(NamedTuple):
    """A target and its result; ``met`` is None if it was not measured."""

    what: str
    target: str
    reached: str
    met: bool | None


TARGETS: Final[tuple[Ratio | Bound | Shown, ...]] = (
    Ratio("batch lookup, level one / Redis", (_LOOKUP, _ONE), (_LOOKUP, "redis"), 0.7),
    Ratio(
        "batch lookup, level one / Redis Cluster",
        (_LOOKUP, _ONE),
        (_LOOKUP, "redis cluster"),
        0.25,
    ),
    Ratio("batch lookup, quorum / Redis", (_LOOKUP, _QUORUM), (_LOOKUP, "redis"), 1.1),
    Ratio(
        "batch lookup, level one, processor time of the client / redis-py",
        (_CLIENT, _ONE),
        (_CLIENT, "redis"),
        1.0,
    ),
    Ratio("batch put, N=1, fsync / Redis", (_PUT, "dstash N=1"), (_PUT, "redis"), 1.2),
    Ratio("batch put, N=3, quorum, fsync / Redis", (_PUT, _QUORUM), (_PUT, "redis"), 1.6),
    Ratio(
        "batch put, N=3, quorum, fsync / Redis Cluster",
        (_PUT, _QUORUM),
        (_PUT, "redis cluster"),
        1.5,
    ),
    Ratio(
        "single lookup, blocking, level one, p50 / raw echo",
        (singles.ONE, _ONE),
        (singles.ONE, "echo"),
        1.4,
    ),
    Ratio(
        "single lookup, blocking, quorum, p50 / raw echo",
        (singles.ONE, _QUORUM),
        (singles.ONE, "echo"),
        2.0,
    ),
    Ratio(
        "single lookup, blocking, local reads, p50 / redis-py",
        (singles.ONE, LOCAL),
        (singles.ONE, "redis"),
        0.3,
    ),
    Ratio(
        "single lookups of 16 threads on one client / redis-py",
        (singles.THREADS, _ONE),
        (singles.THREADS, "redis"),
        1.2,
        least=True,
    ),
    Ratio(
        "single durable put, N=3 quorum, p50 / three LMDB syncs and an echo",
        (singles.PUT_ONE, _QUORUM),
        (singles.PUT_ONE, singles.SYNCS),
        1.3,
    ),
    Ratio(
        "single put, N=3 quorum, durability interval, p50 / raw echo",
        (singles.PUT_ONE, RELAXED),
        (singles.ONE, "echo"),
        3.0,
    ),
    Ratio(
        "256 concurrent lookups, AsyncClient / raw echo",
        (singles.CONCURRENT, _ONE),
        (singles.CONCURRENT, "echo"),
        3.0,
        least=True,
    ),
    Ratio(
        "256 concurrent lookups, AsyncClient / redis-py asyncio",
        (singles.CONCURRENT, _ONE),
        (singles.CONCURRENT, "redis"),
        13.0,
        least=True,
    ),
    Ratio(
        "single durable puts, 64 clients, N=3 quorum / etcd",
        (singles.DURABLE, _QUORUM),
        (singles.DURABLE, "etcd"),
        5.0,
        least=True,
    ),
    Ratio(
        "compare-and-set, one caller / put",
        (registers.SET_ONE, _QUORUM),
        (registers.PUT_ONE, _QUORUM),
        1.3,
    ),
    Ratio(
        "add of a new key, one caller / put",
        (registers.ADD_ONE, _QUORUM),
        (registers.PUT_ONE, _QUORUM),
        2.2,
    ),
    Ratio(
        "compare-and-set, 64 callers / etcd",
        (registers.SET_OWN, _QUORUM),
        (registers.SET_OWN, "etcd"),
        0.6,
        least=True,
    ),
    Ratio(
        "adds of new keys, 64 callers / etcd",
        (registers.ADD_NEW, _QUORUM),
        (registers.ADD_NEW, "etcd"),
        0.35,
        least=True,
    ),
    Ratio(
        "increments of one counter, 64 callers / etcd",
        (registers.COUNT, _QUORUM),
        (registers.COUNT, "etcd"),
        5.0,
        least=True,
    ),
    Ratio(
        "batch put into registers / into a plain index",
        (registers.BATCH, _QUORUM),
        (registers.PLAIN_BATCH, _QUORUM),
        4.0,
    ),
    Bound("an idle peer, of a core", (upkeep.IDLE, upkeep.PEER), 0.3, 0.01, "%"),
    Bound("a record of 100 B on the disk", (upkeep.DISK, upkeep.COMPACTED), 230, 1, "B"),
    Ratio(
        "lookup at 10,000,000 records / at 100,000",
        (growth.lookup(growth.LARGE), growth.STORE),
        (growth.lookup(growth.SMALL), growth.STORE),
        2.0,
    ),
    Shown(
        f"{squeeze.BATCH}, data twice the memory allowed",
        (squeeze.BATCH, squeeze.SQUEEZED),
    ),
    Bound(
        "a peer's private memory, 10,000,000 records",
        (growth.private(growth.LARGE), _STORED),
        100,
        MIB,
        "MB",
    ),
    Bound(
        "a peer's private memory, 1,000,000 records",
        (growth.private(growth.MIDDLE), _STORED),
        100,
        MIB,
        "MB",
    ),
    Bound("a peer's private memory, full load", (clients.FULL_LOAD, _QUORUM), 250, MIB, "MB"),
    Bound(
        "a peer's start with 10,000,000 records",
        (growth.start(growth.LARGE), growth.STORE),
        2,
        1,
        "s",
    ),
)


def judge(cases: Sequence[Case]) -> list[Verdict]:
    """Compare the figures with the targets."""
    return [_judged(target, cases) for target in TARGETS]


def _judged(target: Ratio | Bound | Shown, cases: Sequence[Case]) -> Verdict:
    subject = find(cases, *target.of)
    if isinstance(target, Shown):
        return _shown(target, subject)
    if isinstance(target, Bound):
        bound = f"< {target.limit:g} {target.unit}"
        if subject is None:
            return _not_measured(target.what, bound)
        value = subject.middle / target.scale
        return Verdict(target.what, bound, f"{value:.3g} {target.unit}", value < target.limit)
    sign = ">=" if target.least else "<="
    wanted = f"{sign} {target.limit:g}x"
    against = find(cases, *target.to)
    if subject is None or against is None:
        return _not_measured(target.what, wanted)
    reached = ratio(subject, against)
    met = reached >= target.limit if target.least else reached <= target.limit
    return Verdict(target.what, wanted, f"{reached:.2f}x", met)


def _shown(target: Shown, subject: Case | None) -> Verdict:
    if subject is None:
        return _not_measured(target.what, "works")
    return Verdict(target.what, "works", f"{subject.middle * 1000:,.0f} ms", met=True)


def _not_measured(what: str, wanted: str) -> Verdict:
    return Verdict(what, wanted, "not measured", None)


def rows(verdicts: Sequence[Verdict]) -> Iterator[list[str]]:
    """Yield rows of a table: work, target, result, and whether it is met."""
    words = {True: "reached", False: "missed", None: "-"}
    for verdict in verdicts:
        yield [verdict.what, verdict.target, verdict.reached, words[verdict.met]]
