"""Tables of figures: rows of work, columns of systems; for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from bench.memory import MIB
from bench.work import Case, Unit


class Table(NamedTuple):
    """A table: headings and rows."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self, console: Console) -> None:
        """Print it."""
        shown = RichTable()
        for number, heading in enumerate(self.headings):
            shown.add_column(heading, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            shown.add_row(*row)
        console.print(shown)

    def markdown(self) -> str:
        """Return it as Markdown."""
        if not self.rows:
            return "Not measured in this run."
        aligned = ["---", *["---:"] * (len(self.headings) - 1)]
        lines = [self.headings, aligned, *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def crossed(cases: Iterable[Case]) -> Table:
    """Return a table with a row for each work and a column for each system."""
    cases = [case for case in cases if case.samples]
    stores = list(dict.fromkeys(case.store for case in cases))
    works = list(dict.fromkeys(case.work for case in cases))
    cells = {(case.work, case.store): figure(case) for case in cases}
    rows = [[str(work), *(cells.get((work, store), "") for store in stores)] for work in works]
    return Table(["work", *stores], rows)


def listed(cases: Iterable[Case]) -> Table:
    """Return a table with a row for each case."""
    rows = [[case.store, figure(case)] for case in cases if case.samples]
    return Table(["stage", "median"], rows)


def figure(case: Case) -> str:
    """Return the median of a case in readable units."""
    middle = case.middle
    if case.unit is Unit.BYTES:
        return f"{middle / MIB:,.0f} MiB" if middle >= MIB else f"{middle:,.0f} B"
    if case.unit is Unit.SHARE:
        return f"{middle:.2%}"
    if case.unit is Unit.RATE:
        return f"{middle:,.0f}/s"
    if middle >= 1:
        return f"{middle:,.2f} s"
    return f"{middle * 1000:,.3g} ms" if middle >= 0.001 else f"{middle * 1e6:,.0f} us"
