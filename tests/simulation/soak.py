"""Run the simulation for many seeds: ``python -m tests.simulation --seeds 2000``.

A seed gives the same run only with the same code, calls and partitions. A failed seed prints the
command that runs it again.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.partitions import shrink

if TYPE_CHECKING:
    from tests.simulation.world import Report


class _Task(NamedTuple):
    seed: int
    calls: int
    planted: str | None
    more: str
    profile: str
    check: str


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--only", type=int, nargs="+", metavar="SEED", help="these, and no others")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--calls", type=int, default=200, help="calls of clients a seed, about")
    parser.add_argument("--partitions", type=int, default=64, help="a power of two, up to 4096")
    parser.add_argument("--planted", metavar="FAULT", help="in worlds with this fault of planted/")
    parser.add_argument(
        "--with", dest="more", default="", metavar="KIND,...", help="fault kinds of every run"
    )
    parser.add_argument(
        "--profile", default="", metavar="PROFILE,...", help="profiles of every run"
    )
    parser.add_argument(
        "--check",
        default="",
        metavar="CHECK,...",
        help="pending checks to run",
    )
    parser.add_argument("--list", action="store_true", help="list kinds, profiles, planted faults")
    parser.add_argument("--stop", action="store_true", help="stop at the first that fails")
    parser.add_argument("--brief", action="store_true", help="no traces")
    parser.add_argument("--digests", action="store_true", help="print the hash of every trace")
    return parser.parse_args()


def _run(task: _Task) -> Report:
    # Imported here, because the number of partitions must be set before.
    from tests.simulation.planted import PLANTED
    from tests.simulation.world import World

    always = tuple(filter(None, task.more.split(",")))
    profiles = tuple(filter(None, task.profile.split(",")))
    checks = tuple(filter(None, task.check.split(",")))
    gc.disable()  # nearly all that a world makes lives as long as the world
    try:
        if task.planted:
            return PLANTED[task.planted].world(task.seed).run()
        world = World(task.seed, task.calls, always=always, profiles=profiles)
        world.also_checked = checks
        return world.run()
    finally:
        gc.enable()
        gc.collect()


def _check_names(arguments: argparse.Namespace) -> str:
    """Return the error about the names in the arguments; empty if there is none."""
    from tests.simulation.checks import CHECKS
    from tests.simulation.faults import KINDS
    from tests.simulation.planted import PLANTED
    from tests.simulation.profiles import PROFILES

    for option, names, known in (
        ("--with", arguments.more, KINDS),
        ("--profile", arguments.profile, PROFILES),
        ("--planted", arguments.planted or "", PLANTED),
        ("--check", arguments.check, CHECKS),
    ):
        for name in filter(None, names.split(",")):
            if name not in known:
                return f"{option} {name}: unknown; known are {', '.join(sorted(known))}"
    return ""


def _listing() -> str:
    from tests.simulation.checks import CHECKS, CHECKS_PENDING
    from tests.simulation.faults import KINDS, KINDS_PENDING
    from tests.simulation.planted import PLANTED
    from tests.simulation.profiles import PROFILES, PROFILES_PENDING

    lines = []
    for title, known, pending in (
        ("fault kinds", KINDS, KINDS_PENDING),
        ("profiles", PROFILES, PROFILES_PENDING),
        ("planted faults", PLANTED, {}),
        ("checks", CHECKS, CHECKS_PENDING),
    ):
        waits = {name: f" (pending: {reason})" for name, reason in pending.items()}
        lines += [f"{title}:", *(f"  {name}{waits.get(name, '')}" for name in sorted(known))]
    return "\n".join(lines)


def _show(report: Report, arguments: argparse.Namespace) -> None:
    lines = str(report).splitlines()
    if arguments.brief:
        lines = [line for line in lines if not line.startswith("    ")]
    again = f"--only {report.seed} --calls {arguments.calls} --partitions {arguments.partitions}"
    again += f" --planted {arguments.planted}" if arguments.planted else ""
    again += f" --with {arguments.more}" if arguments.more else ""
    again += f" --profile {arguments.profile}" if arguments.profile else ""
    again += f" --check {arguments.check}" if arguments.check else ""
    _say("\n".join([*lines, f"  again: python -m tests.simulation {again}", ""]))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # a command line


def main() -> int:
    """Run the seeds; returns 1 when one failed."""
    arguments = _arguments()
    if arguments.partitions != 4096:
        shrink(arguments.partitions)
    wrong = _check_names(arguments)
    if wrong or arguments.list:
        _say(wrong or _listing())
        return 2 if wrong else 0
    seeds = arguments.only or range(arguments.first, arguments.first + arguments.seeds)
    began = time.monotonic()
    failed: list[int] = []
    counts: Counter[str] = Counter()
    done = 0
    with multiprocessing.Pool(arguments.jobs) as pool:
        more = (
            arguments.calls,
            arguments.planted,
            arguments.more,
            arguments.profile,
            arguments.check,
        )
        tasks = [_Task(seed, *more) for seed in seeds]
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
