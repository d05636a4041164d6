"""The read transactions on a store, of all processes, and how long each has held its snapshot.

Pages that a snapshot uses are not used again. A process that stands still in the middle of a read,
because it was suspended, keeps its snapshot, and the data file grows with every commit.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Snapshots that are held for longer (seconds) are too old. A read takes microseconds.
MAX_SNAPSHOT_AGE_S: Final = 30.0

_FIELDS: Final = 3
_NO_TRANSACTION: Final = "-"


class Holder(NamedTuple):
    """A thread that has a read transaction: its process and thread, and what it holds."""

    process: int
    thread: str
    transaction: int


class Readers(NamedTuple):
    """What is known of the readers of a store.

    Attributes:
        known: entries in use of the table of readers.
        oldest_s: how long (seconds) the oldest snapshot has been held that is not the newest one; 0
            if there is none.
        process: the process that holds it; 0 if there is none.
    """

    known: int = 0
    oldest_s: float = 0.0
    process: int = 0

    @property
    def is_too_old(self) -> bool:
        """Whether a reader keeps the data file from using its free pages again."""
        return self.oldest_s > MAX_SNAPSHOT_AGE_S


class ReaderTable:
    """Follows the readers of one store; it reads no clock."""

    def __init__(self) -> None:
        #: When each outdated snapshot was seen first.
        self._since: dict[Holder, float] = {}

    def take(self, table: str, last: int, now: float) -> Readers:
        """Take LMDB's table of readers.

        A reader of the newest snapshot keeps no page from being used again, so its age counts from
        when it was first seen with an older one.

        Args:
            table: the table as text, with a line for each reader: process, thread, transaction.
            last: the number of the last transaction.
            now: a time in seconds that never goes back.
        """
        rows = [line.split() for line in table.splitlines()[1:]]
        rows = [row for row in rows if len(row) == _FIELDS and row[0].isdigit()]
        outdated = [
            Holder(int(process), thread, int(number))
            for process, thread, number in rows
            if number != _NO_TRANSACTION and int(number) < last
        ]
        self._since = {holder: self._since.get(holder, now) for holder in outdated}
        if not outdated:
            return Readers(len(rows))
        oldest = min(outdated, key=self._since.__getitem__)
        return Readers(len(rows), now - self._since[oldest], oldest.process)
