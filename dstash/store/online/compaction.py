"""Compaction of a store while its peer serves.

1. All databases are copied to a new file, a few records at a time, each time from a new snapshot:
   a long one would keep LMDB from using free pages, and the map from growing.
2. Meanwhile each commit notes the keys that it may have changed in a journal. A key that was copied
   already is copied again. A key that was not will be copied with what the commit has stored.
3. When all is copied and few keys wait, commits are held back for some milliseconds: the last keys
   and the data about the store are copied, the new file is synced, and takes the place of the old.

Until then the old file has all data, and the copy is only removed.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from dstash.errors import CorruptStore, StoreError
from dstash.limits import MIB
from dstash.store.directory import COMPACTING, DATA_FILE, remove_compacting
from dstash.store.disk_space import map_size_for
from dstash.store.environment.copy import Copy, count_entries
from dstash.store.environment.journal import Journal
from dstash.store.environment.opening import Opened
from dstash.store.environment.switch import Step, prepare_switch, switch
from dstash.store.lmdb_errors import translated
from dstash.store.reserve import free_bytes

_META: Final = b"meta"
_RECORDS: Final = b"records"

#: What is copied at once, at most: other threads wait for the interpreter meanwhile.
_PART_RECORDS: Final = 250
_PART_BYTES: Final = MIB // 8
#: The pause after each part, in which others have the interpreter: how many times as long as the
#: part took, and at least how long (seconds).
_PAUSE_RATIO: Final = 4.0
_MIN_PAUSE_S: Final = 0.001
#: Keys that wait while others are copied for the first time.
_MAX_WAITING: Final = 5000
#: How many rounds of keys that were changed are copied; after the first ones without pauses.
_ROUNDS: Final = 30
_PACED_ROUNDS: Final = 10
#: How long (seconds) the last keys may take, for which commits wait; and after all rounds.
_SHORT_S: Final = 0.02
_LONGEST_S: Final = 0.5
#: How long (seconds) a key is supposed to take as long as none was copied again.
_PER_KEY_S: Final = 0.000_02
#: What is copied at once while commits are held back.
_LAST_RECORDS: Final = 10_000
_LAST_BYTES: Final = 16 * MIB
#: What the new file needs beyond the pages in use, and what is left free on the disk.
_MARGIN_BYTES: Final = MIB


#: The name of a database, a key, and its value; None if the key was removed.
_Change = tuple[bytes, bytes, bytes | None]


class Compacted(NamedTuple):
    """The result of a compaction. ``before`` and ``after`` are bytes of the data file."""

    records: int
    before: int
    after: int
    #: Seconds in all, and seconds for which commits were held back.
    took: float
    held: float


@dataclass
class Progress:
    """How far a compaction is: its step, and how many of the records were copied."""

    step: Step = Step.BEGUN
    copied: int = 0
    of: int = 0


class Live(Protocol):
    """A store that is used meanwhile; see ``LiveEnvironment``."""

    directory: Path

    @property
    def syncs_commits(self) -> bool:
        """Whether each commit is synced."""
        ...

    def begin_journal(self, journal: Journal) -> dict[bytes, Any]:
        """Note the keys of all commits from now on; returns all databases, by name."""
        ...

    def end_journal(self) -> None:
        """Note no more keys."""
        ...

    def reading(self) -> AbstractContextManager[Any]:
        """Return a short read transaction."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Hold commits back."""
        ...

    def replace(self, opened: Opened, rename: Callable[[], None]) -> Any:
        """Use another environment from now on; returns the previous one."""
        ...


def compact(
    live: Live,
    progress: Progress,
    cancelled: threading.Event,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Compacted:
    """Copy a store to a new file without unused space, and switch to it.

    Args:
        live: the store.
        progress: is kept current.
        cancelled: ends the compaction when it is set.
        on_step: called at each step, and for each part that is copied.

    Raises:
        CorruptStore: LMDB cannot read the store, or its keys are not in order.
        StoreFailed: the disk failed; the store accepts no more writes.
        StoreError: the store is as it was; the text says why.
    """

    def at(step: Step) -> None:
        progress.step = step
        on_step(step)

    remove_compacting(live.directory)
    with translated(live.directory):
        before = (live.directory / DATA_FILE).stat().st_size
    journal = Journal()
    databases = live.begin_journal(journal)
    try:
        with translated(live.directory):
            return _Compaction(live, databases, journal, progress, cancelled, at).run(before)
    finally:
        live.end_journal()
        remove_compacting(live.directory)


class _Compaction:
    def __init__(
        self,
        live: Live,
        databases: dict[bytes, Any],
        journal: Journal,
        progress: Progress,
        cancelled: threading.Event,
        at: Callable[[Step], None],
    ) -> None:
        self._live = live
        self._databases = databases
        self._journal = journal
        self._progress = progress
        self._cancelled = cancelled
        self._at = at
        #: The last key that was copied of each database; None once all were.
        self._copied: dict[bytes, bytes | None] = dict.fromkeys(databases, b"")
        self._began = time.perf_counter()

    def run(self, before: int) -> Compacted:
        """Copy all, and switch."""
        directory = self._live.directory
        self._check_room(before)
        self._at(Step.BEGUN)
        copy = Copy(directory / COMPACTING, self._databases, map_size_for(directory / DATA_FILE))
        try:
            for name in self._databases:
                if name != _META:
                    self._copy_all(copy, name)
            self._catch_up(copy)
            opened = copy.open_as_store(syncs=self._live.syncs_commits)
            prepare_switch(directory)
            with self._live.held():
                began = time.perf_counter()
                records, previous = self._finish(copy, opened)
                held = time.perf_counter() - began
        except BaseException:
            copy.close()
            raise
        previous.close()
        self._at(Step.SWITCHED)
        after = (directory / DATA_FILE).stat().st_size
        return Compacted(records, before, after, time.perf_counter() - self._began, held)

    def _check_room(self, before: int) -> None:
        """Refuse to begin without room; also note how many records there are."""
        needed = _MARGIN_BYTES
        with self._live.reading() as transaction:
            self._progress.of = count_entries(transaction, self._databases)[_RECORDS]
            for database in self._databases.values():
                tree = transaction.stat(database)
                pages = tree["branch_pages"] + tree["leaf_pages"] + tree["overflow_pages"]
                needed += pages * tree["psize"]
        free = free_bytes(self._live.directory)
        if free < needed:
            raise StoreError(
                f"compacting {self._live.directory} ({before} bytes) needs {needed} bytes of free "
                f"space, and {free} are free; nothing was changed"
            )

    def _copy_all(self, copy: Copy, name: bytes) -> None:
        """Copy a database, in the order of its keys, so that its pages are full."""
        after = b""
        while True:
            began = time.perf_counter()
            part = self._read(name, after)
            if not part:
                break
            copy.append(name, part)
            after = self._copied[name] = part[-1][0]
            if name == _RECORDS:
                self._progress.copied += len(part)
            self._at(Step.COPYING)
            self._pause(began)
            if len(self._journal) > _MAX_WAITING:
                self._copy_changed(copy)
        self._copied[name] = None

    def _read(self, name: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
        part: list[tuple[bytes, bytes]] = []
        size = 0
        with (
            self._live.reading() as transaction,
            transaction.cursor(self._databases[name]) as cursor,
        ):
            if not (cursor.set_range(after) if after else cursor.first()):
                return part
            if cursor.key() == after and not cursor.next():
                return part
            for key, value in cursor.iternext(keys=True, values=True):
                part.append((key, value))
                size += len(key) + len(value)
                if len(part) == _PART_RECORDS or size > _PART_BYTES:
                    break
        return part

    def _catch_up(self, copy: Copy) -> None:
        """Copy what was changed meanwhile, until little is left.

        Raises:
            StoreError: records are written faster than they can be copied.
        """
        for number in range(_ROUNDS):
            per_key = self._copy_changed(copy, is_paced=number < _PACED_ROUNDS)
            copy.sync()
            self._at(Step.CATCHING_UP)
            left_s = len(self._journal) * per_key
            if left_s <= _SHORT_S:
                return
        if left_s > _LONGEST_S:
            self._journal.end("records are written faster than they can be copied")
            self._check_journal()

    def _copy_changed(self, copy: Copy, *, is_paced: bool = True) -> float:
        """Copy the keys of the journal; returns how long (seconds) one takes."""
        took, keys = 0.0, 0
        for changes in self._changes(_PART_RECORDS, _PART_BYTES):
            began = time.perf_counter()
            copy.change(changes)
            took, keys = took + time.perf_counter() - began, keys + len(changes)
            self._pause(began, _PAUSE_RATIO if is_paced else 0.0)
        return 2 * took / keys if keys else _PER_KEY_S

    def _changes(self, most: int, most_bytes: int) -> Iterator[list[_Change]]:
        """Yield what keys of the journal have now: (name of the database, key, value) triples."""
        for name, keys in self._journal.take().items():
            last = self._copied[name]
            # Keys further on are copied later, with what they have then.
            wanted = deque(keys if last is None else keys[: bisect_right(keys, last)])
            while wanted:
                part: list[_Change] = []
                size = 0
                with self._live.reading() as transaction:
                    while wanted and len(part) < most and size <= most_bytes:
                        key = wanted.popleft()
                        value = transaction.get(key, db=self._databases[name])
                        part.append((name, key, value))
                        size += len(value or b"")
                yield part

    def _finish(self, copy: Copy, opened: Opened) -> tuple[int, Any]:
        """Copy the last keys and switch, while commits are held back.

        Returns:
            the number of records, and the previous environment.
        """
        self._at(Step.HELD)
        last: list[_Change] = []
        for changes in self._changes(_LAST_RECORDS, _LAST_BYTES):
            if last:
                copy.change(last)
            last = changes
        with self._live.reading() as transaction:
            with transaction.cursor(self._databases[_META]) as cursor:
                last += [(_META, key, value) for key, value in cursor]
            expected = count_entries(transaction, self._databases)
        copy.change(last)  # in as few transactions as possible: each is synced
        if (found := copy.counts()) != expected:
            raise CorruptStore(
                f"{self._live.directory}: the store counts {expected} entries, but {found} can be "
                "read; it was not compacted"
            )
        if not self._live.syncs_commits:
            copy.sync()
        self._check_journal()
        directory = self._live.directory
        return expected[_RECORDS], self._live.replace(opened, lambda: switch(directory, self._at))

    def _check_journal(self) -> None:
        if self._journal.ended:
            raise StoreError(
                f"the compaction of {self._live.directory} was given up: {self._journal.ended}; "
                "nothing was changed"
            )

    def _pause(self, began: float, ratio: float = _PAUSE_RATIO) -> None:
        """Leave the interpreter and the disk to others for a while after a part."""
        self._check_journal()
        took = time.perf_counter() - began
        if self._cancelled.wait(max(took * ratio, _MIN_PAUSE_S if ratio else 0.0)):
            raise StoreError(f"the compaction of {self._live.directory} was cancelled")
        if free_bytes(self._live.directory) < _MARGIN_BYTES:
            self._journal.end("the disk is full")
            self._check_journal()
