"""``python -m bench``: measure dstash and alternatives, print tables and draw a plot.

Parts: batches (100,000 x 100 B at every level), sizes (10 B to 64 KiB, 1 to 100,000 keys), singles
(one key a call), upkeep (an idle peer, bytes on the disk), registers (atomic operations), clients
(1 to 16), growth (100,000 to 10,000,000 records), squeeze (more data than memory), stages (where
the time goes).
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console

from bench.kept import KeptParts, Part, code, plain
from bench.lab import Lab
from bench.parts import (
    batches,
    calls,
    clients,
    growth,
    registers,
    singles,
    squeeze,
    stages,
    upkeep,
)
from bench.report import page, plot
from bench.report.machine import describe
from bench.report.targets import judge
from bench.stores.servers import ROOT
from bench.work import Case

_WIDTH: Final = 110  # of the tables, also without a terminal
_KEPT: Final = ROOT / ".cache" / "bench"
_DOCS: Final = ROOT / "docs"
_PAGE: Final = "benchmarks.md"
_PLOT: Final = "benchmarks.png"

#: Measures a part with this number of rounds.
Measure = Callable[[Lab, int], list[Case]]

#: The parts in the order in which they run, with their number of rounds.
PARTS: Final[Mapping[str, tuple[Measure, int]]] = {
    # First, because the cost of a durable put depends on the stored data, and etcd stores only
    # this.
    "singles": (singles.measure, 9),
    "upkeep": (upkeep.measure, 5),
    "registers": (registers.measure, 5),
    "calls": (calls.measure, 5),
    "batches": (batches.measure, 7),
    "stages": (stages.measure, 5),
    "clients": (clients.measure, 3),
    "sizes": (batches.measure_sizes, 2),
    "squeeze": (squeeze.measure, 3),
    "growth": (growth.measure, 5),
}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="make bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="PART", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, help="in place of each part's own number")
    parser.add_argument("--save", action="store_true", help=f"write docs/{_PAGE} and docs/{_PLOT}")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="measure only the parts that an interrupted run of this code has not finished",
    )
    parser.add_argument(
        "--full", action="store_true", help="also 10,000,000 records, 2 GiB of data, large batches"
    )
    return parser.parse_args()


def run(options: argparse.Namespace, folder: Path, note: Callable[[str], None]) -> _Outcome:
    """Measure the requested parts, or take those that an interrupted run has finished."""
    machine = describe()
    terms = {"code": code(), "full": options.full, "rounds": options.rounds, **machine}
    kept = KeptParts(_KEPT / "parts", {**terms, "date": ""})
    if not options.resume:
        kept.clear()
    parts: dict[str, Part] = {}
    with ExitStack() as stack:
        lab = Lab(folder, stack, note, full=options.full)
        for name, (measure, rounds) in PARTS.items():
            if name not in options.only:
                continue
            found = kept.find(name)
            note(f"part {name}{' was measured before' if found else ''}")
            if found is None:
                earlier = len(lab.remarks)
                cases = measure(lab, options.rounds or rounds)
                found = Part(cases, lab.remarks[earlier:])
                kept.keep(name, found)
            parts[name] = found
    remarks = [remark for part in parts.values() for remark in part.remarks]
    return _Outcome({name: part.cases for name, part in parts.items()}, remarks, machine)


class _Outcome:
    """The result of a run."""

    def __init__(
        self,
        parts: Mapping[str, Sequence[Case]],
        remarks: Sequence[str],
        machine: Mapping[str, str],
    ) -> None:
        self.parts, self.remarks, self.machine = parts, remarks, machine
        self.cases = [case for part in parts.values() for case in part]
        self.verdicts = judge(self.cases)

    def keep(self, options: argparse.Namespace) -> Path:
        """Write page, plot and figures; return their paths."""
        folder = _KEPT / self.machine["date"]
        folder.mkdir(parents=True, exist_ok=True)
        plot.draw(self.cases, folder / _PLOT)
        said = " ".join(sys.argv[1:])
        text = page.write(
            self.machine,
            self.parts,
            self.verdicts,
            self.remarks,
            options=said,
            full=options.full,
        )
        (folder / _PAGE).write_text(text)
        (folder / "figures.json").write_text(json.dumps(self._plain(), indent=1) + "\n")
        if options.save:
            for name in (_PAGE, _PLOT):
                shutil.copy(folder / name, _DOCS / name)
        return folder

    def _plain(self) -> dict[str, object]:
        return {"machine": self.machine, "figures": plain(self.cases), "remarks": self.remarks}


def main() -> int:
    """Run. A missed target is reported, but does not fail the run."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # this also ends servers
    progress, began = Console(stderr=True), time.monotonic()

    def note(text: str) -> None:
        progress.print(f"{time.monotonic() - began:5.0f} s  {text}", highlight=False)

    with tempfile.TemporaryDirectory(prefix="dstash-bench-") as folder:
        outcome = run(options, Path(folder), note)
    kept = outcome.keep(options)
    page.outcome(outcome.verdicts).show(Console(width=_WIDTH))
    note(f"page, plot and figures: {_DOCS if options.save else kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
