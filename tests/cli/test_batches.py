"""The importer: every line is counted as stored, skipped or failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from dstash.cli import batches
from dstash.cli.batches import BadLine, Importer, OnError
from dstash.cli.formats import BadRow, Row
from dstash.cli.invocation import PartlyFailed
from dstash.client.results import BatchResult
from dstash.errors import NoPeers, Unavailable, UsageError
from dstash.types import Outcome
from dstash.wire.keys import Key


class Target:
    """Stores in a dictionary; fails for given keys."""

    def __init__(self, failing: Iterable[Key] = (), dead_after: int = 1000) -> None:
        self.data: dict[Key, Any] = {}
        self.ttls: dict[Key, float | None] = {}
        self.calls: list[int] = []
        self.failing = frozenset(failing)
        self.dead_after = dead_after

    def batch_put(
        self,
        index: str,
        entries: Iterable[tuple[Key, Any]],
        ttl: float | None = None,
        *,
        timeout: float | None = None,
        on_error: str = "raise",
    ) -> BatchResult:
        assert on_error == "return"
        if len(self.calls) == self.dead_after:
            raise NoPeers("no peer")
        pairs = list(entries)
        self.calls.append(len(pairs))
        stored = {key: value for key, value in pairs if key not in self.failing}
        self.data |= stored
        self.ttls |= dict.fromkeys(stored, ttl)
        result = BatchResult(len(stored))
        if failed := [key for key, _ in pairs if key in self.failing]:
            result.give_up(failed, Outcome.FAILED, Unavailable("no quorum"))
        return result


def rows(*keys: Key, ttl: float | None = None) -> list[Row | BadRow]:
    return [Row(line, key, f"v{line}", ttl, 10) for line, key in enumerate(keys, start=1)]


def run(
    target: Target, lines: Iterable[Row | BadRow], on_error: OnError = OnError.STOP, **more: Any
) -> Importer:
    importer = Importer(target, "i", more.get("ttl"), on_error)
    importer.run(lines, lambda records: None)
    return importer


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_BATCH_RECORDS", 10)


@pytest.mark.usefixtures("_small")
def test_importer_bounds_batches_by_records() -> None:
    target = Target()
    importer = run(target, rows(*range(25)))
    assert (importer.stored, target.calls) == (25, [10, 10, 5])
    assert importer.settled() == 1


def test_importer_bounds_batches_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", 35)
    target = Target()
    run(target, rows(*range(10)))
    assert target.calls == [4, 4, 2]


@pytest.mark.usefixtures("_small")
def test_importer_stores_the_last_line_of_a_key() -> None:
    target = Target()
    importer = run(target, rows("a", "b", "a", *range(20), "b"))
    assert target.data["a"] == "v3"
    assert target.data["b"] == "v24"
    assert importer.stored == 24


def test_importer_makes_one_call_per_time_to_live() -> None:
    target = Target()
    lines = [*rows("a", "b"), *rows("c", "a", ttl=5)]
    run(target, lines, ttl=9.0)
    assert target.ttls == {"b": 9.0, "c": 5, "a": 5}


def test_importer_with_stop_stores_records_before_the_bad_line() -> None:
    target = Target()
    lines = [*rows("a", "b"), BadRow(3, "broken"), *rows("c")]
    importer = Importer(target, "i", None, OnError.STOP)
    with pytest.raises(BadLine, match=r"^line 3: broken$"):
        importer.run(lines, lambda records: None)
    assert importer.stored == 2
    assert list(target.data) == ["a", "b"]


def test_importer_with_skip_counts_and_lists_the_bad_lines() -> None:
    target = Target()
    broken = [BadRow(line, "broken") for line in (*range(100, 110), *range(200, 260, 2))]
    importer = run(target, [*rows("a"), *broken, *rows("b")], OnError.SKIP)
    assert (importer.stored, importer.skipped.count) == (2, 40)
    text = str(importer.skipped)
    assert text.startswith("40 (lines 100-109, 200, 202, ")
    assert text.endswith(" 236, ...; line 100: broken)")


@pytest.mark.usefixtures("_small")
def test_importer_counts_refused_records_by_line() -> None:
    target = Target(failing=[3, 4])
    importer = run(target, rows(*range(15), 3), OnError.SKIP)
    assert (importer.stored, importer.failed.count) == (13, 3)
    assert str(importer.failed) == "3 (lines 4-5, 16; line 4: failed: no quorum)"


@pytest.mark.usefixtures("_small")
def test_importer_with_stop_ends_at_a_refused_record() -> None:
    target = Target(failing=[3])
    importer = Importer(target, "i", None, OnError.STOP)
    with pytest.raises(PartlyFailed, match=r"not stored: 1 \(line 4; line 4: failed: no quorum\)"):
        importer.run(rows(*range(100)), lambda records: None)
    assert importer.stored == 9
    assert target.calls == [10]


@pytest.mark.usefixtures("_small")
def test_importer_error_leaves_only_the_batch_in_flight_unconfirmed() -> None:
    target = Target(dead_after=2)
    importer = Importer(target, "i", None, OnError.STOP)
    with pytest.raises(NoPeers):
        importer.run(rows(*range(100)), lambda records: None)
    assert (importer.stored, importer.unconfirmed) == (20, 10)


@pytest.mark.usefixtures("_small")
def test_importer_waits_for_the_batch_in_flight_on_ctrl_c() -> None:
    def interrupted() -> Iterator[Row | BadRow]:
        yield from rows(*range(25))
        raise KeyboardInterrupt

    target = Target()
    importer = Importer(target, "i", None, OnError.STOP)
    with pytest.raises(KeyboardInterrupt):
        importer.run(interrupted(), lambda records: None)
    assert (importer.stored, importer.unconfirmed, len(target.data)) == (20, 0, 20)


def test_importer_stores_complete_records_of_a_truncated_file() -> None:
    def cut_short() -> Iterator[Row | BadRow]:
        yield from rows("a", "b")
        raise UsageError("record 3: truncated")

    target = Target()
    importer = Importer(target, "i", None, OnError.SKIP)
    with pytest.raises(UsageError, match="truncated"):
        importer.run(cut_short(), lambda records: None)
    assert importer.stored == 2
