"""``python -m tests.bench``: run, show, save."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tests.bench.dstash_store import DStash, DStashCluster
from tests.bench.footprint import Footprint, measure
from tests.bench.machine import describe
from tests.bench.redis_store import Redis, RedisCluster, RedisClustered, RedisServer
from tests.bench.report import Report
from tests.bench.runner import Case, Note, Runner, Shape
from tests.bench.servers import ROOT
from tests.bench.store import Store
from tests.bench.targets import judge

_WIDTH = 100  # of the tables, also where there is no terminal
_LEVELS = ("one", "quorum", "all")
_JSON = ROOT / ".cache" / "bench"
_PAGE = ROOT / "docs" / "benchmarks.md"


def compare(folder: Path, shape: Shape, rounds: int, note: Note) -> list[Case]:
    """Start every system, take turns between them, and return what was measured."""
    with ExitStack() as stack:
        note("starting the servers")
        stores = start_stores(folder, stack)
        for store in stores:
            stack.callback(store.close)
        runner = Runner(stores, shape, note)
        runner.run(rounds)
        return runner.cases


def start_stores(folder: Path, stack: ExitStack) -> list[Store]:
    """Start the servers; the stack stops them."""
    single, clustered = RedisServer(folder), RedisCluster(folder)
    one_copy, three_copies = DStashCluster(folder, 1), DStashCluster(folder, 3)
    for system in (single, clustered, one_copy, three_copies):
        stack.enter_context(system)
    return [
        Redis(single),
        RedisClustered(clustered),
        DStash(one_copy, "one"),
        *(DStash(three_copies, level) for level in _LEVELS),
    ]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--keys", type=int, default=100_000, help="keys in a batch")
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7, help="0: no times")
    parser.add_argument("--footprint-keys", type=int, default=1_000_000, help="0: no footprint")
    parser.add_argument("--save", action="store_true", help="write docs/benchmarks.md")
    return parser.parse_args()


def main() -> int:
    """Run; the exit code says whether every target was reached."""
    options = parse()
    shape = Shape(options.keys, options.value_bytes)
    console, progress = Console(width=_WIDTH), Console(stderr=True)
    cases: list[Case] = []
    footprint: Footprint | None = None
    with tempfile.TemporaryDirectory(prefix="dstash-bench-") as folder:
        if options.rounds:
            cases = compare(Path(folder), shape, options.rounds, progress.print)
    with tempfile.TemporaryDirectory(prefix="dstash-bench-") as folder:
        if options.footprint_keys:
            footprint = measure(Path(folder), options.footprint_keys, progress.print)
    machine = describe()
    report = Report(machine, shape, cases, footprint, judge(cases, footprint))
    report.show(console)
    report.save_json(_JSON / f"{machine['date']}.json")
    if options.save:
        _PAGE.write_text(report.markdown())
    return 0 if all(one.met for one in report.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
