"""The report of a run with invented figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.parts import batches, calls, registers, singles, stages
from bench.report import page, plot
from bench.report.targets import TARGETS, Ratio, judge
from bench.work import Case, Unit, Work, find, known, ratio, use_time_slice

MACHINE = {"date": "2024-02-29", "processor": "2 cores"}


def made_up() -> dict[str, list[Case]]:
    parts: dict[str, list[Case]] = {}
    rates = (singles.THREADS, singles.CONCURRENT, singles.DURABLE, *registers.RATES)
    for target in TARGETS:
        subjects = [target.of, target.to] if isinstance(target, Ratio) else [target.of]
        for work, store in subjects:
            unit = Unit.RATE if work in rates else Unit.SECONDS
            parts.setdefault("batches", []).append(known(work, store, unit, [2.0, 1.0, 3.0]))
    stage = stages.stage("lookup", stages.LMDB)
    parts["stages"] = [known(*stage, Unit.SECONDS, [0.042])]
    parts["sizes"] = [known(batches.lookup(1), "lmdb", Unit.SECONDS, [0.5])]
    parts["calls"] = [known(calls.STAGE, name, Unit.SECONDS, [0.001]) for name in calls.STAGES]
    for name, seconds in ((stages.CLIENT, 0.007), (stages.SERVERS, 0.009)):
        share = calls.share(singles.DURABLE, name)
        parts["calls"].append(known(share, "etcd", Unit.SECONDS, [seconds]))
    return parts


def write(parts: dict[str, list[Case]]) -> str:
    cases = [case for part in parts.values() for case in part]
    return page.write(MACHINE, parts, judge(cases), ["A remark."], options="--save", full=False)


def test_page_has_all_figures() -> None:
    text = " ".join(write(made_up()).split())
    assert "$" not in text
    assert "42 ms of the" in text
    assert "this is 3 ms in total" in text
    assert "take 16 ms. On two processors" in text
    assert (
        "0.8 times the time of the limits" in text
    )  # 2 s, where the echo takes 2 s and LMDB 0.5 s
    assert "A remark." in text


def test_page_of_empty_run_states_that_it_is_empty() -> None:
    text = write({})
    assert "$" not in text
    assert "Not measured in this run." in text
    assert text.count("not measured") > len(TARGETS)


@pytest.mark.parametrize(("measured", "other", "met"), [(0.7, 1.0, True), (0.8, 1.0, False)])
def test_target_is_met_at_its_limit(measured: float, other: float, met: bool) -> None:
    of = known(batches.lookup(), "dstash N=3 one", Unit.SECONDS, [measured])
    to = known(batches.lookup(), "redis", Unit.SECONDS, [other])
    verdict = judge([of, to])[0]
    assert (verdict.met, verdict.reached) == (met, f"{measured:.2f}x")
    assert {verdict.met for verdict in judge([of])} == {None}


def test_higher_rate_meets_target() -> None:
    of = known(singles.DURABLE, "dstash N=3 quorum", Unit.RATE, [50.0])
    to = known(singles.DURABLE, "etcd", Unit.RATE, [10.0])
    assert [verdict.met for verdict in judge([of, to]) if verdict.met is not None] == [True]


def test_ratio_is_computed_per_round() -> None:
    work = Work("look")
    of = known(work, "a", Unit.SECONDS, [2.0, 20.0, 9.0])
    to = known(work, "b", Unit.SECONDS, [1.0, 10.0, 3.0])
    assert ratio(of, to) == 2.0
    assert find([of, to], work, "b") is to


def test_cases_alternate_after_warm_up() -> None:
    taken: list[str] = []

    def take(name: str) -> float:
        taken.append(name)
        return 1.0

    cases = [Case(Work("look"), name, lambda name=name: take(name)) for name in "ab"]  # type: ignore[misc]
    use_time_slice(cases, 2, lambda text: None)
    assert "".join(taken) == "ab" + "ba" + "ab"
    assert [case.samples for case in cases] == [[1.0, 1.0]] * 2


def test_draw_writes_a_png(tmp_path: Path) -> None:
    cases = [case for part in made_up().values() for case in part]
    plot.draw(cases, tmp_path / "times.png")
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
