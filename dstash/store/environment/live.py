"""The open environment of a store: its transactions, its growth, its errors, its replacement.

LMDB fails a transaction when the map or the disk is full, and accepts writes after a failed sync.
Here the map grows, a full disk is an error from which the store recovers, and after a failed sync
the store accepts no more writes. The environment can be replaced by a compacted copy while it is
used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb

from dstash.errors import CorruptStore, DiskFull, StoreError, StoreFailed
from dstash.limits import MIB
from dstash.store.directory import DAMAGED_FILE, DATA_FILE, FILE_MODE
from dstash.store.disk_space import grown, lacks_room
from dstash.store.environment.journal import Journal
from dstash.store.environment.opening import Opened
from dstash.store.lmdb_errors import translated
from dstash.store.sharing.mark import Generation
from dstash.store.space import Space

T = TypeVar("T")

#: What a commit writes in addition to its records, at most: copies of the pages on their paths.
_BYTES_PER_COMMIT: Final = MIB // 4


class LiveEnvironment:
    """The open environment of a store; the store is a subclass.

    Locks are taken in the order in which the constructor lists them.

    Args:
        directory: that of the store.
        syncs_commits: whether each commit is synced.
    """

    _space: Space
    _env: Any
    _meta: Any
    _records: Any
    _promises: Any
    _file: os.stat_result

    def __init__(self, directory: Path, *, syncs_commits: bool) -> None:
        self.directory = directory
        self.syncs_commits = syncs_commits
        self._writing = threading.Lock()  # held to write: the map must not grow during it
        self._naming = threading.Lock()  # held while the data file may not be at its path
        self._syncing = threading.Lock()  # held to sync: a closed environment must not be synced
        self._growing = threading.Lock()  # held to read or to grow the map; never during a sync
        self._copying = threading.Lock()  # the same for a compaction, which delays no other reads
        self._failed: str | None = None
        self._pid = os.getpid()
        self._journal: Journal | None = None
        #: Called before the data file is replaced, while commits are held back: other processes
        #: must not read it any more. It must neither block nor raise.
        self.on_replace: Callable[[], None] = lambda: None
        self._is_replacing = False
        #: The keys of records and of promises that the present transaction may change.
        self._noted: tuple[list[bytes], list[bytes]] = ([], [])

    @contextmanager
    def _translated(self, is_full: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Translate errors; after a permanent error the store accepts no more writes."""
        try:
            with translated(self.directory, self._fail, is_full):
                yield
        except CorruptStore as error:
            # A restart does not make the file readable, so the peer must not try again and again.
            self._mark_corrupt(str(error))
            raise

    def _write(
        self,
        work: Callable[[Any], T],
        needed: Callable[[], int] = lambda: 0,
        *,
        may_spend: bool = True,
    ) -> T:
        """Run ``work`` in a transaction; grow the map and retry when the map is full.

        Args:
            work: the work, which may run more than once.
            needed: returns how many bytes it may write.
            may_spend: whether to release the reserve and retry when the disk is full.
        """
        self._check_process()
        if self._failed:
            raise StoreFailed(self._failed)

        with self._writing:
            while True:
                self._noted = ([], [])
                try:
                    result = self._transact(work, needed)
                except lmdb.MapFullError:
                    self._grow()
                except DiskFull:
                    if self._journal is not None:
                        self._journal.end("the disk is full")
                    if not self._space.refused(may_spend=may_spend):
                        raise
                else:
                    if self._journal is not None:
                        self._journal.add(*self._noted)
                    self._space.stored()
                    return result

    def _transact(self, work: Callable[[Any], T], needed: Callable[[], int]) -> T:
        try:
            with self._env.begin(self._records, write=True) as transaction:
                return work(transaction)
        except (lmdb.Error, OSError):

            def is_full() -> bool:
                return lacks_room(self.directory, needed() + _BYTES_PER_COMMIT)

            with self._translated(is_full):
                raise

    def _check_process(self) -> None:
        if os.getpid() != self._pid:  # both processes would overwrite each other's pages
            raise StoreError(
                f"{self.directory} was opened before a fork; a process must open it after the fork"
            )

    def _grow(self) -> None:
        with self._growing, self._copying:
            size = self._env.info()["map_size"]
            self._env.set_mapsize(grown(size))

    def _fail(self, reason: str) -> None:
        # After a failed fsync the next fsync may report success for pages that never reached the
        # disk ("fsyncgate"): no write of this process can be trusted from here on.
        self._failed = reason

    @property
    def commits_at_once(self) -> bool:
        """Whether a small commit usually waits for nothing: neither for a sync nor for a lock."""
        return not (self.syncs_commits or self._syncing.locked() or self._journal is not None)

    def sync(self) -> None:
        """Sync earlier commits that were not synced (durability ``interval``)."""
        with self._syncing, translated(self.directory, self._fail):
            self._env.sync(True)

    def check_writable(self) -> str | None:
        """Return None if the store accepts writes, else the reason why not."""
        return self._failed

    def condemn(self, reason: str) -> None:
        """Accept no more writes, and prevent the next process from using the data file."""
        text = f"{self.directory / DATA_FILE}: {reason}"
        self._mark_corrupt(text)
        self._fail(text)

    def _harm(self) -> str:
        """Return what another program did to the data file; empty for nothing."""
        file = self.directory / DATA_FILE
        with self._naming:
            try:
                found = os.stat(file)
            except FileNotFoundError:
                found = None
            before = self._file
            if found is None or (found.st_dev, found.st_ino) != (before.st_dev, before.st_ino):
                return f"{file} was moved, removed or replaced while the peer ran"
            self._file = found
        if found.st_size >= before.st_size:  # LMDB never truncates it
            return ""
        text = f"{file} was truncated while the peer ran: from {before.st_size} bytes"
        text += f" to {found.st_size}"
        self._mark_corrupt(text)  # later writes may have restored its length
        return text

    def _mark_corrupt(self, text: str) -> None:
        """Prevent the next process from using the data file."""
        with suppress(OSError):  # if this fails, the next start detects it by itself
            mark = self.directory / DAMAGED_FILE
            mark.touch(FILE_MODE)
            mark.write_text(f"{text}\n")

    def unused_bytes(self) -> int:
        """Return how many bytes of the data file are unused; only a compaction shrinks it."""
        with self._growing, self._env.begin(self._records) as transaction:
            info = self._env.info()
            databases = (self._records, self._meta, self._promises)
            trees = [transaction.stat(database) for database in databases]
        pages = sum(
            tree["branch_pages"] + tree["leaf_pages"] + tree["overflow_pages"] for tree in trees
        )
        return int((info["last_pgno"] + 1 - pages) * trees[0]["psize"])

    @property
    def generation(self) -> Generation:
        """The data file in use."""
        return Generation(self._file.st_dev, self._file.st_ino)

    def readers(self) -> tuple[str, int]:
        """Free what readers that have ended left behind; return the others, and the last commit.

        Returns:
            LMDB's table of read transactions as text, and the number of the last transaction.
        """
        with self._copying, translated(self.directory):
            self._env.reader_check()
            return self._env.readers(), int(self._env.info()["last_txnid"])

    def while_current(self, generation: Generation, act: Callable[[], None]) -> None:
        """Call ``act`` if this is the data file in use, and it is not being replaced."""
        with self._growing:
            if generation == self.generation and not self._is_replacing:
                act()

    # -- for a compaction

    def begin_journal(self, journal: Journal) -> dict[bytes, Any]:
        """Note the keys of all commits from now on; returns all databases, by name."""
        with self._writing, self._translated():
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                names = [bytes(name) for name in cursor.iternext(keys=True, values=False)]
            databases = {name: self._env.open_db(name, create=False) for name in names}
            self._journal = journal
        return databases

    def end_journal(self) -> None:
        """Note no more keys."""
        with self._writing:
            self._journal = None

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Return a read transaction. Use it for milliseconds: it blocks growth and pins pages."""
        with self._copying, self._translated(), self._env.begin() as transaction:
            yield transaction

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold commits back.

        Raises:
            StoreFailed: the store accepts no more writes.
        """
        with self._writing:
            if self._failed:
                raise StoreFailed(self._failed)
            yield

    def replace(self, opened: Opened, rename: Callable[[], None]) -> Any:
        """Use another environment with the same content from now on; call it in ``held``.

        Args:
            opened: the environment.
            rename: moves its files to the paths of the present ones.

        Returns:
            the previous environment, to be closed.

        Raises:
            OSError: its files were not moved.
            StoreFailed: they may be moved or not; the store accepts no more writes.
        """
        with self._naming, self._syncing:
            with self._growing:
                self._is_replacing = True
                self.on_replace()
            try:
                rename()
            except StoreFailed as error:
                # The next process will use the other file, so no commit to this one may follow.
                self._fail(str(error))
                raise
            except OSError:
                self._is_replacing = False
                raise
            with self._growing, self._copying:
                self._is_replacing = False
                previous = self._env
                self._env, self._meta, self._records, self._promises = opened
                self._file = os.stat(self.directory / DATA_FILE)
                self._journal = None
        return previous
