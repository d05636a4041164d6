"""The page for the docs: the words of ``page.md``, and figures that all come from one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Final

from tests.bench import batches, singles, squeeze, stages
from tests.bench.batches import most_bytes
from tests.bench.memory import MIB
from tests.bench.tables import Table, crossed, figure, listed
from tests.bench.targets import Verdict, rows
from tests.bench.work import Case, Unit, Work, find, known

_WORDS: Final = Path(__file__).with_suffix(".md")
_ONE: Final = "dstash N=3 one"
_NOTHING: Final = "(not measured)"
_SHARES: Final = (stages.WALL, stages.CLIENT, stages.SERVERS)

#: Figures within the text, by their place in it.
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
    "single_quorum": (singles.ONE, "dstash N=3 quorum"),
    "concurrent": (singles.CONCURRENT, _ONE),
    "echo_concurrent": (singles.CONCURRENT, "echo"),
    "redis_concurrent": (singles.CONCURRENT, "redis"),
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
    """Return the page. Parts that did not run are missing, and the page says so."""
    cases = [case for part in parts.values() for case in part]
    tables = {name: crossed(parts.get(name, ())).markdown() for name in _tables()}
    return Template(_WORDS.read_text()).substitute(
        tables,
        options=options,
        machine="\n".join(f"| {name} | {text} |" for name, text in machine.items()),
        targets=outcome(verdicts).markdown(),
        shares=_shares(cases).markdown(),
        lookup_stages=listed(_of(cases, "stage of lookup")).markdown(),
        put_stages=listed(_of(cases, "stage of put")).markdown(),
        most_bytes=f"{most_bytes(full=full) // MIB} MiB",
        remarks=" ".join(remarks),
        **{name: _each(find(cases, *subject)) for name, subject in _FIGURES.items()},
        lookup_total=_total(cases),
    )


def _tables() -> Sequence[str]:
    return ("batches", "sizes", "singles", "clients", "growth", "squeeze")


def _of(cases: Sequence[Case], action: str) -> list[Case]:
    return [case for case in cases if case.work.action == action]


def _shares(cases: Sequence[Case]) -> Table:
    """Return a line for each batch: from call to answer, client, servers."""
    lines = []
    for action in ("lookup", "put"):
        walls = [case for case in cases if case.work == stages.share(action, stages.WALL)]
        for wall in walls:
            shares = [find(cases, stages.share(action, name), wall.store) for name in _SHARES]
            lines.append([f"{action}, {wall.store}", *map(_each, shares)])
    return Table(["batch", *_SHARES], lines)


def _total(cases: Sequence[Case]) -> str:
    names = (stages.CLIENT, stages.SERVERS)
    shares = [find(cases, stages.share("lookup", name), _ONE) for name in names]
    if not all(shares):
        return _NOTHING
    return _time(sum(case.middle for case in shares if case is not None))


def _each(case: Case | None) -> str:
    """Return a time; of a rate what each takes."""
    if case is None:
        return _NOTHING
    return _time(1 / case.middle) if case.unit is Unit.RATE else figure(case)


def _time(seconds: float) -> str:
    return figure(known(squeeze.ONE, "", Unit.SECONDS, [seconds]))
