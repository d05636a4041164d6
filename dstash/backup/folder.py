"""A backup on disk: a folder with pieces and, when it is complete, a manifest.

A piece, and the manifest, appear under their names only when they are whole and on disk: they are
written under another name, synced, and renamed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from dstash.backup.manifest import PIECES, BackupError, Manifest, Piece
from dstash.backup.pieces import PieceReader, file_of
from dstash.errors import StoreInUse, UsageError

MANIFEST: Final = "manifest.json"
_PARTIAL: Final = ".partial"
_OURS: Final = frozenset({MANIFEST, *map(file_of, range(PIECES))})
_LARGEST_MANIFEST: Final = 16 * 1024 * 1024


class Folder:
    """The files of one backup."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the folder for one save; makes it if need be, and clears what a crash left.

        Raises:
            UsageError: it holds a finished backup, or files that are no part of one.
            StoreInUse: another save is at work in it.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {one.name for one in self.path.iterdir()}
        foreign = sorted(name for name in names - _OURS if not name.endswith(_PARTIAL))
        if foreign:
            raise UsageError(f"{self.path} holds other files ({foreign[0]}); name an empty folder")
        if MANIFEST in names:
            raise UsageError(f"{self.path} holds a finished backup; name another folder")
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it with us
            for name in names:
                if name.endswith(_PARTIAL):
                    (self.path / name).unlink(missing_ok=True)
            yield
        except BlockingIOError:
            raise StoreInUse(f"{self.path}: another save is at work in it") from None
        finally:
            os.close(handle)

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            BackupError: there is none, or it cannot be used.
        """
        path = self.path / MANIFEST
        try:
            with path.open("rb") as opened:
                data = opened.read(_LARGEST_MANIFEST)
        except FileNotFoundError:
            raise BackupError(self._why_no_manifest()) from None
        try:
            return Manifest.decode(data)
        except BackupError as error:
            raise BackupError(f"{path}: {error}") from None

    def _why_no_manifest(self) -> str:
        if any((self.path / file_of(number)).exists() for number in range(PIECES)):
            return f"{self.path} is not finished: save into it again, and it goes on"
        return f"{self.path} is no backup: it has no {MANIFEST}"

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest: from then on the backup is complete."""
        with self.writing(MANIFEST) as target:
            target.write(manifest.encode())

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a file that gets its name when the block has ended well."""
        partial = self.path / f"{name}{_PARTIAL}"
        try:
            with partial.open("w+b") as target:
                yield target
                target.flush()
                os.fsync(target.fileno())
            partial.replace(self.path / name)
            self._sync()
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @contextmanager
    def reading(self, name: str) -> Iterator[PieceReader]:
        """Open a piece; what is wrong with it is said with its name.

        Raises:
            BackupError: it is missing, or not sound.
        """
        path = self.path / name
        try:
            with path.open("rb") as source:
                yield PieceReader(source)
        except FileNotFoundError:
            raise BackupError(f"{path} is missing") from None
        except BackupError as error:
            raise BackupError(f"{path}: {error}") from None

    def finished(self, number: int) -> tuple[str, Piece] | None:
        """Return cluster id and facts of a piece that an earlier save finished; None without one.

        Raises:
            BackupError: it is not sound.
        """
        if not (self.path / file_of(number)).exists():
            return None
        with self.reading(file_of(number)) as reader:
            for _ in reader.blocks():
                pass
            if reader.piece is None or reader.header.number != number:
                raise BackupError("it is another piece under this name")
            return reader.header.cluster_id, reader.piece

    def _sync(self) -> None:
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
