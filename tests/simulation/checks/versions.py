"""Check that no two writes have the same version: I1 depends on it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.checks.registry import Run, Violation, check
from tests.simulation.history import Write, describe_write


@check()
def unique_versions(run: Run) -> Iterator[Violation]:
    """Check that no two writes of a key have the same version.

    A touch keeps the version of the write that it saw, and a restored record keeps its own.
    """
    for place, writes in run.history.writes.items():
        owners: dict[bytes, Write] = {}
        for write in writes:
            for version in write.versions if write.kind in ("put", "delete") else ():
                owner = owners.setdefault(version, write)
                if owner is not write:
                    text = f"{describe_write(owner)} and {describe_write(write)} share a version"
                    yield Violation("I1", place, text)
