"""Figures of finished parts, kept so that an interrupted run can be resumed.

Each ratio compares cases of one part, and each part alternates its cases by itself. So the parts of
a page may be measured at different times, if code, options and machine are the same.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.stores.servers import ROOT
from bench.work import Case, Unit, Work, known


class Part(NamedTuple):
    """The figures of a part, and remarks on how it was measured."""

    cases: Sequence[Case]
    remarks: Sequence[str]


class KeptParts:
    """Parts in a folder, a file each.

    Args:
        folder: is created.
        terms: what must be the same for all parts of a run: code, options, machine.
    """

    def __init__(self, folder: Path, terms: Mapping[str, object]) -> None:
        self._folder = folder
        self._terms = dict(terms)
        folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Remove all parts, because another run begins."""
        for path in self._folder.glob("*.json"):
            path.unlink()

    def keep(self, name: str, part: Part) -> None:
        """Keep a part that has finished."""
        content = {"terms": self._terms, "remarks": [*part.remarks], "cases": plain(part.cases)}
        temporary = self._folder / f"{name}.part"
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.rename(self._folder / f"{name}.json")

    def find(self, name: str) -> Part | None:
        """Return a part that was measured under the same terms; None if there is none."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        if content["terms"] != self._terms:
            return None
        return Part([_case(**each) for each in content["cases"]], content["remarks"])


def plain(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return cases as JSON."""
    return [
        {**case.work._asdict(), "store": case.store, "unit": case.unit, "samples": case.samples}
        for case in cases
    ]


def _case(*, store: str, unit: str, samples: list[float], **work: Any) -> Case:
    return known(Work(**work), store, Unit(unit), samples)


def code() -> str:
    """Return the commit that is measured, and what is changed in it; empty outside of git."""
    said = []
    for command in (["rev-parse", "HEAD"], ["diff", "HEAD", "--", "dstash", "bench"]):
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
        said.append(done.stdout)
    return "\n".join(said).strip()
