"""The restore of a backup into a running cluster, several pieces at a time.

Every step is idempotent: an interrupted restore is started again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, Protocol

from dstash.backup.folder import Folder
from dstash.backup.manifest import Manifest, Piece
from dstash.backup.pieces import Entries
from dstash.backup.restore_rules import Fate, Rule
from dstash.backup.workers import Workers
from dstash.store.record import split_storage_key

#: Most records and bytes in one call.
_BATCH_RECORDS: Final = 8000
_BATCH_BYTES: Final = 4 * 1024 * 1024


class Target(Protocol):
    """A cluster that records are restored into."""

    def restore(self, index: bytes, entries: Entries, rule: Rule) -> Counter[Fate]:
        """Write (encoded key, record) pairs by a rule; return the number per fate."""
        ...


class Restore:
    """One run of a restore.

    Args:
        folder: the verified backup.
        manifest: the manifest of the backup.
        target: the cluster.
        rule: decides about each record.
        indexes: the indexes to restore; all if empty.
        parallel: number of pieces that are restored at the same time.
        on_progress: called at short intervals.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        target: Target,
        rule: Rule,
        indexes: Collection[str],
        parallel: int,
        on_progress: Callable[[Restore], None],
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._target = target
        self._rule = rule
        self._indexes = frozenset(name.encode() for name in indexes)
        self._workers = Workers(parallel, lambda: on_progress(self))
        self._fates: list[Counter[Fate]] = []

    @property
    def fates(self) -> Counter[Fate]:
        """The number of records per fate, so far."""
        total: Counter[Fate] = Counter()
        for fates in list(self._fates):
            total += fates
        return total

    def run(self) -> Counter[Fate]:
        """Restore; return the number of records per fate.

        Raises:
            BackupError: a piece has changed since it was verified.
            DStashError: the cluster refused a record; all records before it are restored.
        """
        self._workers.run(self._restore, self._manifest.pieces)
        return self.fates

    def _restore(self, piece: Piece) -> None:
        with self._folder.reading(piece.file) as reader:
            for index, batch in _batches(self._wanted(reader.blocks())):
                self._workers.check()
                self._fates.append(self._target.restore(index, batch, self._rule))

    def _wanted(self, blocks: Iterable[Entries]) -> Iterator[tuple[bytes, bytes, bytes]]:
        for block in blocks:
            for storage_key, record in block:
                _, index, key = split_storage_key(storage_key)
                if not self._indexes or index in self._indexes:
                    yield index, key, record


def _batches(records: Iterable[tuple[bytes, bytes, bytes]]) -> Iterator[tuple[bytes, Entries]]:
    """Group records by index, in limited memory."""
    waiting: dict[bytes, Entries] = defaultdict(list)
    count = weight = 0
    for index, key, record in records:
        waiting[index].append((key, record))
        count += 1
        weight += len(key) + len(record)
        if count >= _BATCH_RECORDS or weight >= _BATCH_BYTES:
            yield from waiting.items()
            waiting.clear()
            count = weight = 0
    yield from waiting.items()
