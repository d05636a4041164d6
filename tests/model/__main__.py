"""Explores the model: ``python -m tests.model --seconds 60 [--scenario S] [--broken RULE]``."""

from __future__ import annotations

import argparse
import time

from tests.model.placements import SCENARIOS
from tests.model.walk import Walk


def main() -> None:
    """Walk from one seed after the other, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, default="stable")
    parser.add_argument("--broken", default="")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="do not stop at the first violation")
    given = parser.parse_args()
    end, seed, found, seen, collected, last = (
        time.monotonic() + given.seconds,
        given.seed,
        0,
        0,
        0,
        0,
    )
    while time.monotonic() < end:
        walk = Walk(given.scenario, given.broken, seed)
        violation = walk.run()
        seen += len(walk.world.observations)
        collected += bool(walk.world.collected)
        last += walk.world.newest_epoch == walk.world.scenario.last
        if violation:
            found += 1
            print(f"seed {seed}: {violation}", flush=True)  # noqa: T201
            if not given.all:
                break
        seed += 1
    print(  # noqa: T201
        f"{given.scenario} {given.broken or '-'}: {seed - given.seed} worlds, {seen} observations, "
        f"{found} violations; tombstones collected in {collected}, last epoch in {last}"
    )


if __name__ == "__main__":
    main()
