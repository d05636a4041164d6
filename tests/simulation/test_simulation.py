"""Runs of the simulation: a hundred seeds, earlier failures, and planted faults.

Each test runs it in processes of its own, because clusters there have fewer partitions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import PLANTED

_ROOT = Path(__file__).parents[2]
_SEEDS = Path(__file__).with_name("seeds.txt")


def simulate(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run the simulation as from the command line."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=_ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )


def once_failed() -> list[tuple[str, ...]]:
    """Return (seed, calls, partitions, faults and +profiles...) of seeds that failed before."""
    lines = [line.split("#")[0].split() for line in _SEEDS.read_text().splitlines()]
    return [tuple(line) for line in lines if line]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_invariants_hold_for_a_hundred_seeds() -> None:
    run = simulate("--seeds", "100", "--calls", "100")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.timeout(300)
def test_invariants_hold_with_all_partitions() -> None:
    run = simulate("--seeds", "4", "--calls", "60", "--partitions", "4096")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.long
@pytest.mark.timeout(300)
def test_seeds_that_failed_before_pass() -> None:
    alike: dict[tuple[str, ...], list[str]] = {}
    for seed, *conditions in once_failed():
        alike.setdefault(tuple(conditions), []).append(seed)
    for (calls, partitions, *more), seeds in alike.items():
        faults = ",".join(word for word in more if word[0] != "+")
        profiles = ",".join(word[1:] for word in more if word[0] == "+")
        words = ["--only", *seeds, "--calls", calls, "--partitions", partitions]
        run = simulate(*words, "--with", faults, "--profile", profiles)
        assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.timeout(300)
def test_seed_replays_exactly() -> None:
    first = simulate("--seeds", "6", "--digests", "--jobs", "1", hash_seed="1")
    second = simulate("--seeds", "6", "--digests", "--jobs", "1", hash_seed="2")
    assert first.stdout.splitlines()[:6] == second.stdout.splitlines()[:6]


@pytest.mark.timeout(300)
def test_seed_with_several_corrupt_registers_replays_exactly() -> None:
    words = ("--with", "far_clock,lower_floors", "--profile", "registers,short_grace")
    runs = [simulate("--only", "73018", *words, "--digests", hash_seed=seed) for seed in "01"]
    first, second = (run.stdout.splitlines()[0] for run in runs)
    assert first == second


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(PLANTED))
def test_simulation_finds_planted_fault(name: str) -> None:
    planted = PLANTED[name]
    seeds = ("--seeds", str(planted.seeds), "--first", str(planted.first))
    run = simulate(*seeds, "--planted", name, "--stop", "--brief")
    assert run.returncode == 1, run.stdout + run.stderr
    found = {line.split()[0].strip(":") for line in run.stdout.splitlines() if line[:3] == "  I"}
    assert found, run.stdout + run.stderr
    assert found <= planted.invariants
