"""The page for the docs: the template ``page.md`` with the figures of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Template
from typing import Final

from bench.memory import MIB
from bench.parts import batches, calls, registers, singles, squeeze, stages, upkeep
from bench.parts.batches import most_bytes
from bench.report.tables import Table, crossed, figure, listed
from bench.report.targets import Verdict, rows
from bench.work import Case, Unit, Work, find, known
from dstash import loops

_WORDS: Final = Path(__file__).with_suffix(".md")
_ONE: Final = "dstash N=3 one"
_QUORUM: Final = "dstash N=3 quorum"
_NOTHING: Final = "(not measured)"
_CALLS: Final = (
    singles.ONE,
    singles.THREADS,
    singles.CONCURRENT,
    singles.PUT_ONE,
    singles.DURABLE,
    registers.SET_OWN,
    registers.ADD_NEW,
)
_SHARES: Final = (stages.WALL, stages.CLIENT, stages.SERVERS)

#: Figures within the text, by their name in the template.
_FIGURES: Final[Mapping[str, tuple[Work, str]]] = {
    "lookup_wall": (stages.share("lookup", stages.WALL), _ONE),
    "lmdb_lookup": stages.stage("lookup", stages.LMDB),
    "peer_lookup": stages.stage("lookup", stages.PEER),
    "lmdb_random": (batches.lookup(), "lmdb"),
    "lmdb_single": (batches.put(1), "lmdb"),
    "lmdb_hundred": (batches.put(100), "lmdb"),
    "echo_single": (singles.ONE, "echo"),
    "redis_single": (singles.ONE, "redis"),
    "single": (singles.ONE, _ONE),
    "single_quorum": (singles.ONE, _QUORUM),
    "concurrent": (singles.CONCURRENT, _ONE),
    "durable": (singles.DURABLE, _QUORUM),
    "echo_concurrent": (singles.CONCURRENT, "echo"),
    "redis_concurrent": (singles.CONCURRENT, "redis"),
    "redis_random": (batches.lookup(), "redis"),
    "redis_ordered": (batches.lookup_in_order(), "redis"),
    "put_one": (singles.PUT_ONE, _QUORUM),
    "syncs": (singles.PUT_ONE, singles.SYNCS),
    "idle": (upkeep.IDLE, upkeep.PEER),
    "loaded": (upkeep.DISK, upkeep.LOADED),
    "compacted": (upkeep.DISK, upkeep.COMPACTED),
}


def outcome(verdicts: Sequence[Verdict]) -> Table:
    """Return the table of targets."""
    return Table(["work", "target", "reached", ""], list(rows(verdicts)))


def write(
    machine: Mapping[str, str],
    parts: Mapping[str, Sequence[Case]],
    verdicts: Sequence[Verdict],
    remarks: Sequence[str],
    *,
    options: str,
    full: bool,
) -> str:
    """Return the page, which names the parts that did not run."""
    cases = [case for part in parts.values() for case in part]
    tables = {name: crossed(parts.get(name, ())).markdown() for name in _tables()}
    return Template(_WORDS.read_text()).substitute(
        tables,
        options=options,
        loops="compiled" if loops.IS_COMPILED else "in Python",
        machine="\n".join(f"| {name} | {text} |" for name, text in machine.items()),
        targets=outcome(verdicts).markdown(),
        shares=_shares(cases).markdown(),
        costs=_costs(cases).markdown(),
        call_stages=listed(_of(cases, calls.STAGE.action)).markdown(),
        call_work=_text(_sum(_of(cases, calls.STAGE.action))),
        over_limits=_over_limits(cases),
        lookup_stages=listed(_of(cases, "stage of lookup")).markdown(),
        put_stages=listed(_of(cases, "stage of put")).markdown(),
        most_bytes=f"{most_bytes(full=full) // MIB} MiB",
        remarks=" ".join(remarks),
        **{name: _each(find(cases, *subject)) for name, subject in _FIGURES.items()},
        lookup_total=_text(_total(cases, partial(stages.share, "lookup"), _ONE)),
        **_halved("durable", _processors(cases, singles.DURABLE, _QUORUM)),
        **_halved("concurrent", _processors(cases, singles.CONCURRENT, _ONE)),
        **_halved("set_own", _processors(cases, registers.SET_OWN, _QUORUM)),
        **_halved("add_new", _processors(cases, registers.ADD_NEW, _QUORUM)),
        set_etcd_total=_text(_processors(cases, registers.SET_OWN, "etcd")),
        etcd_total=_text(_processors(cases, singles.DURABLE, "etcd")),
    )


def _tables() -> Sequence[str]:
    return ("batches", "sizes", "singles", "upkeep", "registers", "clients", "growth", "squeeze")


def _of(cases: Sequence[Case], action: str) -> list[Case]:
    return [case for case in cases if case.work.action == action]


def _shares(cases: Sequence[Case]) -> Table:
    """Return a line for each batch: elapsed, client and server time."""
    lines = []
    for action in ("lookup", "put"):
        walls = [case for case in cases if case.work == stages.share(action, stages.WALL)]
        for wall in walls:
            shares = [find(cases, stages.share(action, name), wall.store) for name in _SHARES]
            lines.append([f"{action}, {wall.store}", *map(_each, shares)])
    return Table(["batch", *_SHARES], lines)


def _costs(cases: Sequence[Case]) -> Table:
    """Return a line for each kind of call and system: elapsed, client and server time."""
    lines = []
    for work in _CALLS:
        for wall in (case for case in cases if case.work == calls.share(work, stages.WALL)):
            shares = [find(cases, calls.share(work, name), wall.store) for name in _SHARES]
            lines.append([f"{work.action}, {wall.store}", *map(_each, shares)])
    return Table(["call", *_SHARES], lines)


def _processors(cases: Sequence[Case], work: Work, store: str) -> float | None:
    """Return the processor time of one call."""
    return _total(cases, partial(calls.share, work), store)


def _halved(name: str, total: float | None) -> dict[str, str]:
    """Return a processor time, and the least elapsed time on two processors."""
    half = None if total is None else total / 2
    return {f"{name}_total": _text(total), f"{name}_half": _text(half)}


def _total(cases: Sequence[Case], share: Callable[[str], Work], store: str) -> float | None:
    """Return the processor time of client and servers."""
    return _sum([find(cases, share(name), store) for name in (stages.CLIENT, stages.SERVERS)])


def _sum(parts: Sequence[Case | None]) -> float | None:
    measured = [case.middle for case in parts if case is not None]
    return sum(measured) if measured and len(measured) == len(parts) else None


def _over_limits(cases: Sequence[Case]) -> str:
    """Return the ratio of a single look-up to the limits, echo plus LMDB."""
    limits = _sum([find(cases, singles.ONE, "echo"), find(cases, batches.lookup(1), "lmdb")])
    single = find(cases, singles.ONE, _ONE)
    return _NOTHING if single is None or not limits else f"{single.middle / limits:.1f} times"


def _text(seconds: float | None) -> str:
    return _NOTHING if seconds is None else _time(seconds)


def _each(case: Case | None) -> str:
    """Return a time; for a rate, the time of each call."""
    if case is None:
        return _NOTHING
    return _time(1 / case.middle) if case.unit is Unit.RATE else figure(case)


def _time(seconds: float) -> str:
    return figure(known(squeeze.ONE, "", Unit.SECONDS, [seconds]))
