"""Tables for the terminal, JSON for machines, Markdown for the docs: the same figures in each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.footprint import MIB, Footprint
from tests.bench.runner import Case, Shape
from tests.bench.targets import Verdict, ratio

_AGAINST = ("redis", "redis cluster")

Rows = list[list[str]]


@dataclass(frozen=True)
class Report:
    """Everything one run has found out."""

    machine: dict[str, str]
    shape: Shape
    cases: Sequence[Case]
    footprint: Footprint | None
    verdicts: Sequence[Verdict]

    # -- as rows

    def times(self) -> tuple[list[str], Rows]:
        """Return headings and rows of the times."""
        headings = ["batch", "store", "ms", "middle half", "keys/s"]
        headings += [f"x {name}" for name in _AGAINST]
        return headings, [self._times_of(case) for case in self.cases if case.samples]

    def _times_of(self, case: Case) -> list[str]:
        middle = median(case.samples)
        low, _, high = quantiles(case.samples, n=4) if len(case.samples) > 1 else [middle] * 3
        ratios = [ratio(self.cases, case.work, case.store.name, name) for name in _AGAINST]
        return [
            case.work,
            case.store.name,
            f"{middle * 1000:.0f}",
            f"{low * 1000:.0f}-{high * 1000:.0f}",
            f"{self.shape.keys / middle:,.0f}",
            *("" if one is None else f"{one:.2f}" for one in ratios),
        ]

    def costs(self) -> tuple[list[str], Rows]:
        """Return headings and rows of what a peer costs."""
        headings = ["a peer", "own memory MiB", "resident MiB", "start s"]
        if self.footprint is None:
            return headings, []
        one = self.footprint
        full = f"with {one.keys:,} keys"
        return headings, [
            ["idle, empty", *_mib(one.idle), f"{one.first_start:.2f}"],
            [f"{full}, after storing them", *_mib(one.loaded), ""],
            [f"{full}, started anew", *_mib(one.restarted), f"{one.restart:.2f}"],
        ]

    def outcome(self) -> tuple[list[str], Rows]:
        """Return headings and rows of the targets."""
        rows = [[one.what, one.target, one.reached, _word(one)] for one in self.verdicts]
        return ["work", "target", "reached", ""], rows

    # -- as something to read

    def show(self, console: Console) -> None:
        """Print tables."""
        for headings, rows in (self.times(), self.costs(), self.outcome()):
            if rows:
                console.print(_rich(headings, rows))

    def save_json(self, file: Path) -> None:
        """Write all figures, each sample included."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self._plain(), indent=1) + "\n")

    def markdown(self) -> str:
        """Return a page for the docs."""
        facts = [f"- {name}: {text}" for name, text in self.machine.items()]
        tables = [_markdown(*part) for part in (self.outcome(), self.times(), self.costs())]
        shape = f"{self.shape.keys:,} keys of 17 bytes, values of {self.shape.value_bytes} bytes"
        return "\n".join(
            [
                "# Benchmarks",
                "",
                "Written by `make bench ARGS=--save`; do not edit.",
                "",
                f"One batch of {shape}, by one client on the machine of the servers. Three dstash",
                "peers, which sync before they ack; one Redis, and a Redis Cluster of three",
                "masters without replicas, both with an append-only file synced every second. All",
                "take turns in one run: a ratio is the median over the rounds, and is all that",
                "counts; milliseconds depend on what else the machine does.",
                "",
                *facts,
                "",
                "## Targets",
                "",
                tables[0],
                "",
                "## Times",
                "",
                "With one copy (N=1) all levels are the same.",
                "",
                tables[1],
                "",
                "## What a peer costs",
                "",
                "Own memory is what no other process shares, without the pages of LMDB's file,",
                "which are the page cache's.",
                "",
                tables[2],
                "",
            ]
        )

    def _plain(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "shape": self.shape._asdict(),
            "cases": [
                {"work": case.work, "store": case.store.name, "seconds": case.samples}
                for case in self.cases
            ],
            "footprint": None if self.footprint is None else self.footprint._asdict(),
            "targets": [one._asdict() for one in self.verdicts],
        }


def _mib(memory: tuple[int, int]) -> list[str]:
    return [f"{amount / MIB:.0f}" for amount in memory]


def _word(verdict: Verdict) -> str:
    return "reached" if verdict.met else "missed"


def _rich(headings: Sequence[str], rows: Rows) -> Table:
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(headings: Sequence[str], rows: Rows) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else "Not measured."
