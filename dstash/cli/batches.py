"""The importer: stores records in batches and accounts for every line of the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from dstash.cli.console.progress import Progress
from dstash.cli.formats import BadRow, Row
from dstash.cli.invocation import PartlyFailed
from dstash.errors import DStashError, UsageError
from dstash.limits import MIB
from dstash.types import AnyOnError
from dstash.wire.keys import Key

if TYPE_CHECKING:
    from dstash.client.results import BatchResult

#: Large, because a group commit of many records costs about as much as a commit of few.
MAX_BATCH_RECORDS: Final = 50_000
#: Bounds memory use if values are large.
MAX_BATCH_BYTES: Final = 16 * MIB
_MAX_SHOWN_RANGES: Final = 20


class OnError(StrEnum):
    """The reaction to a record that cannot be stored."""

    STOP = "stop"
    SKIP = "skip"


class Target(Protocol):
    """The part of the client that stores a batch."""

    def batch_put(
        self,
        index: str,
        entries: Iterable[tuple[Key, Any]],
        ttl: float | None = None,
        *,
        timeout: float | None = None,
        on_error: AnyOnError = "raise",
    ) -> BatchResult:
        """Store many values."""
        ...


class BadLine(DStashError):
    """A line that holds no valid record, with ``--on-error stop``."""


class _Waiting(NamedTuple):
    value: Any
    ttl: float | None
    lines: list[int]


@dataclass
class Lines:
    """Line numbers (of msgpack and parquet: record numbers): their count and first ranges."""

    noun: str = "line"
    count: int = 0
    reason: str = ""
    _ranges: list[tuple[int, int]] = field(default_factory=list)
    _more: bool = False

    def add(self, line: int, reason: str) -> None:
        """Add a line, with the reason."""
        if not self.count:
            self.reason = f"{self.noun} {line}: {reason}"
        self.count += 1
        if self._ranges and self._ranges[-1][1] == line - 1 and not self._more:
            self._ranges[-1] = (self._ranges[-1][0], line)
        elif len(self._ranges) < _MAX_SHOWN_RANGES:
            self._ranges.append((line, line))
        else:
            self._more = True

    def __str__(self) -> str:
        noun = self.noun if self.count == 1 else f"{self.noun}s"
        shown = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self._ranges)
        more = ", ..." if self._more else ""
        return f"{self.count} ({noun} {shown}{more}; {self.reason})"


class _Batch(NamedTuple):
    """Records that are sent together, and the number of their lines."""

    records: dict[Key, _Waiting]
    lines: int

    def groups(self) -> dict[float | None, list[tuple[Key, Any]]]:
        """Return the pairs by time to live, because each call of the client takes one."""
        groups: dict[float | None, list[tuple[Key, Any]]] = defaultdict(list)
        for key, record in self.records.items():
            groups[record.ttl].append((key, record.value))
        return groups


class Importer:
    """Stores records in batches, and counts every line as stored, skipped or failed.

    One batch is sent while the next is read, never more. So memory is bounded, and a key that
    appears again later in the file is stored later.
    """

    def __init__(
        self,
        target: Target,
        index: str,
        ttl: float | None,
        on_error: OnError,
        noun: str = "line",
        timeout: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._target = target
        self._index = index
        self._ttl = ttl
        self._on_error = on_error
        self._waiting: dict[Key, _Waiting] = {}
        self._lines = self._bytes = 0
        self._in_flight: Future[None] | None = None
        self.unconfirmed = 0
        self.stored = 0
        self.skipped = Lines(noun)
        self.failed = Lines(noun)

    def run(self, rows: Iterable[Row | BadRow], progress: Progress) -> None:
        """Store all records; with ``--on-error stop``, those before the first bad line.

        Raises:
            BadLine, PartlyFailed: with ``--on-error stop``.
            UsageError: the rest of the file cannot be read.
        """
        with ThreadPoolExecutor(1, "import") as pool:
            try:
                for row in rows:
                    self._take(row, pool)
                    progress(self.stored)
            except KeyboardInterrupt:
                self._settle()
                raise
            except (BadLine, UsageError):
                self._send(pool)
                self._settle()
                raise
            self._send(pool)
            self._settle()

    def settled(self) -> float:
        """Return the share of the lines read that are stored, skipped or failed by now."""
        settled = self.stored + self.skipped.count + self.failed.count
        return settled / max(1, settled + self.unconfirmed + self._lines)

    def _take(self, row: Row | BadRow, pool: Executor) -> None:
        if isinstance(row, BadRow):
            self._refuse(row)
            return
        earlier = self._waiting.pop(row.key, None)  # the last line of a key wins
        lines = [*(earlier.lines if earlier else []), row.line]
        ttl = self._ttl if row.ttl is None else row.ttl
        self._waiting[row.key] = _Waiting(row.value, ttl, lines)
        self._lines += 1
        self._bytes += row.size
        if self._lines >= MAX_BATCH_RECORDS or self._bytes >= MAX_BATCH_BYTES:
            self._send(pool)

    def _refuse(self, row: BadRow) -> None:
        if self._on_error is OnError.STOP:
            raise BadLine(f"{self.skipped.noun} {row.line}: {row.text}")
        self.skipped.add(row.line, row.text)

    def _send(self, pool: Executor) -> None:
        """Send the waiting records once the previous batch is settled."""
        self._settle()
        batch = _Batch(self._waiting, self._lines)
        self._waiting, self._lines, self._bytes = {}, 0, 0
        self.unconfirmed = batch.lines
        self._in_flight = pool.submit(self._store, batch)

    def _settle(self) -> None:
        """Wait for the batch in flight. After an error, ``unconfirmed`` counts its lines."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()
        if self.failed.count and self._on_error is OnError.STOP:
            raise PartlyFailed(f"not stored: {self.failed}")

    def _store(self, batch: _Batch) -> None:
        for ttl, pairs in batch.groups().items():
            result = self._target.batch_put(
                self._index, pairs, ttl, timeout=self._timeout, on_error="return"
            )
            for key, _ in pairs:
                reason = str(result.errors.get(key, ""))
                self._account(batch.records[key].lines, result.outcomes.get(key), reason)

    def _account(self, lines: list[int], outcome: str | None, reason: str) -> None:
        self.unconfirmed -= len(lines)
        if outcome is None:
            self.stored += len(lines)
            return
        for line in lines:
            self.failed.add(line, f"{outcome}: {reason}")
