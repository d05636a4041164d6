"""``dstash bench`` on real peers: its report matches its calls."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dstash.cli.workload import Distribution, Record, Shape, Work, draw
from tests.harness.devcluster import InProcess

SHORT = ("--duration", "0.3", "--keys", "50", "--concurrency", "4")


def shape(distribution: Distribution, keys: int) -> Shape:
    return Shape(Work.GET, "bench", 1.0, 1, 10, keys, 1, distribution)


def test_draw_uniform_picks_keys_equally_often() -> None:
    numbers = draw(shape(Distribution.UNIFORM, 10), seed=1)
    seen = Counter(next(numbers) for _ in range(10_000))
    assert set(seen) == set(range(10))
    assert max(seen.values()) < 1.3 * min(seen.values())


def test_draw_zipf_picks_few_keys_often() -> None:
    numbers = draw(shape(Distribution.ZIPF, 1000), seed=1)
    seen = Counter(next(numbers) for _ in range(10_000))
    assert [number for number, _ in seen.most_common(2)] == [0, 1]
    assert seen[0] > 10 * seen[99]


def test_record_separates_seconds() -> None:
    record = Record()
    for microseconds in (100, 200, 300):
        record.add("get", microseconds)
    assert record.close_second() == (3, 200, 300)
    record.add("put", 10**12)
    assert record.close_second().calls == 1
    assert record.kinds["get"].count == 3
    assert record.close_second() == (0, 0, 0)


@pytest.mark.parametrize(
    ("work", "calls"),
    [
        ("put", {"put"}),
        ("get", {"get"}),
        ("mixed", {"get", "put"}),
        ("batch", {"batch lookup", "batch put"}),
    ],
)
def test_bench_runs_each_kind_of_work(
    inside: InProcess, index: str, work: str, calls: set[str]
) -> None:
    words = ("bench", work, *SHORT, "--index", index, "--batch", "20", "--size", "7")
    report: dict[str, Any] = json.loads(inside.out("-o", "json", "--read", "one", *words))
    assert set(report["calls"]) <= calls
    assert (report["work"], report["read"], report["write"]) == (work, "one", "quorum")
    assert report["errors"] == {}
    for figures in report["calls"].values():
        assert figures["calls"] > 0
        assert 0 < figures["p50"] <= figures["p99"] <= figures["max"]
    assert 1 <= int(inside.out("count", index)) <= 50


def test_bench_prints_a_table(inside: InProcess, index: str) -> None:
    lines = inside.out("bench", "get", *SHORT, "--index", index).splitlines()
    assert lines[0].split("  ")[0] == "call"
    assert lines[1].startswith("get")


def test_bench_draws_a_plot(inside: InProcess, index: str, tmp_path: Path) -> None:
    file = tmp_path / "times.png"
    inside.out("bench", "mixed", "--duration", "1.2", "--index", index, "--plot", str(file))
    assert file.read_bytes().startswith(b"\x89PNG")


def test_bench_counts_failed_calls(inside: InProcess, index: str) -> None:
    words = ("--timeout", "0.001", "bench", "put", *SHORT, "--size", "2000000", "--index", index)
    done = inside.run(*words)
    assert done.returncode in (5, 9)  # 5: no peer was found in time
    assert done.stderr.decode().startswith("dstash: ")


def test_bench_names_a_missing_package(inside: InProcess) -> None:
    with mock.patch.dict(sys.modules, {"matplotlib": None}):
        code, text = inside.refusal("bench", "get", *SHORT, "--plot", "x.png")
    assert code == 2
    assert "pip install 'dstash[" in text
