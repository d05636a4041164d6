"""Runs many seeds: ``python -m tests.simulation.soak --seeds 2000 [--first N] [--jobs 2]``.

A seed means the same only with the same code, calls and partitions. One that fails prints a line
that runs it again.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.simulation.partitions import shrink

if TYPE_CHECKING:
    from tests.simulation.world import Report


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--only", type=int, nargs="+", metavar="SEED", help="these, and no others")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--calls", type=int, default=200, help="calls of clients a seed, about")
    parser.add_argument("--partitions", type=int, default=64, help="a power of two, up to 4096")
    parser.add_argument("--planted", metavar="FAULT", help="in a world with a fault of planted.py")
    parser.add_argument("--with", dest="more", default="", metavar="FAULT,...", help="always")
    parser.add_argument("--stop", action="store_true", help="stop at the first that fails")
    parser.add_argument("--brief", action="store_true", help="no traces")
    parser.add_argument("--digests", action="store_true", help="print the hash of every trace")
    return parser.parse_args()


def _run(task: tuple[int, int, str | None, str]) -> Report:
    # Imported here, for the number of partitions must be known before.
    from tests.simulation.planted import PLANTED
    from tests.simulation.world import World

    seed, calls, planted, more = task
    always = tuple(filter(None, more.split(",")))
    gc.disable()  # nearly all that a world makes lives as long as the world
    try:
        return PLANTED[planted](seed).run() if planted else World(seed, calls, always=always).run()
    finally:
        gc.enable()
        gc.collect()


def _show(report: Report, arguments: argparse.Namespace) -> None:
    lines = str(report).splitlines()
    if arguments.brief:
        lines = [line for line in lines if not line.startswith("    ")]
    again = f"--only {report.seed} --calls {arguments.calls} --partitions {arguments.partitions}"
    again += f" --planted {arguments.planted}" if arguments.planted else ""
    again += f" --with {arguments.more}" if arguments.more else ""
    _say("\n".join([*lines, f"  again: python -m tests.simulation {again}", ""]))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # a command line


def main() -> int:
    """Run the seeds; returns 1 when one failed."""
    arguments = _arguments()
    if arguments.partitions != 4096:
        shrink(arguments.partitions)
    seeds = arguments.only or range(arguments.first, arguments.first + arguments.seeds)
    began = time.monotonic()
    failed: list[int] = []
    counts: Counter[str] = Counter()
    done = 0
    with multiprocessing.Pool(arguments.jobs) as pool:
        tasks = [(seed, arguments.calls, arguments.planted, arguments.more) for seed in seeds]
        for report in pool.imap_unordered(_run, tasks, chunksize=2):
            done += 1
            counts.update(report.counts)
            if arguments.digests:
                _say(f"{report.seed} {report.digest}")
            if not report.ok:
                failed.append(report.seed)
                _show(report, arguments)
                if arguments.stop:
                    pool.terminate()
                    break
    seconds = time.monotonic() - began
    _say(
        f"{done} seeds in {seconds:.0f} s ({done / seconds:.1f}/s), {len(failed)} failed"
        f"{f': {sorted(failed)}' if failed else ''}; {dict(sorted(counts.items()))}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
