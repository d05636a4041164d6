"""Finished parts of a benchmark, kept until a run is complete."""

from __future__ import annotations

from pathlib import Path

from bench.kept import KeptParts, Part
from bench.parts import singles
from bench.work import Unit, known

TERMS = {"code": "1234", "full": True, "rounds": None}


def test_part_is_found_again_with_its_figures_and_remarks(tmp_path: Path) -> None:
    case = known(singles.ONE, "redis", Unit.SECONDS, [0.25, 0.5])
    KeptParts(tmp_path, TERMS).keep("singles", Part([case], ["Why."]))
    found = KeptParts(tmp_path, TERMS).find("singles")
    assert found is not None
    [again] = found.cases
    facts = (again.work, again.store, again.unit, again.samples)
    assert facts == (singles.ONE, "redis", Unit.SECONDS, [0.25, 0.5])
    assert found.remarks == ["Why."]


def test_part_of_other_code_is_measured_again(tmp_path: Path) -> None:
    KeptParts(tmp_path, TERMS).keep("singles", Part([], []))
    assert KeptParts(tmp_path, TERMS | {"code": "5678"}).find("singles") is None
    assert KeptParts(tmp_path, TERMS).find("clients") is None


def test_another_run_removes_the_parts(tmp_path: Path) -> None:
    kept = KeptParts(tmp_path, TERMS)
    kept.keep("singles", Part([], []))
    kept.clear()
    assert kept.find("singles") is None
