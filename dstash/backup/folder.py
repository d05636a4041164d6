"""The folder of a backup: pieces and, once it is complete, a manifest.

Pieces and manifest get their names only when they are complete and on disk: they are written under
a temporary name, synced, and renamed.
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
_KNOWN_FILES: Final = frozenset({MANIFEST, *map(file_of, range(PIECES))})
_MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024


class Folder:
    """The files of one backup."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Lock the folder for one save; create it if missing, and delete partial files of a crash.

        Raises:
            UsageError: the folder has a finished backup, or other files.
            StoreInUse: another save uses the folder.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {file.name for file in self.path.iterdir()}
        foreign = sorted(name for name in names - _KNOWN_FILES if not name.endswith(_PARTIAL))
        if foreign:
            raise UsageError(f"{self.path} has other files ({foreign[0]}); specify an empty folder")
        if MANIFEST in names:
            raise UsageError(f"{self.path} has a finished backup already; specify another folder")
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(
                handle, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # released by the kernel when the process ends
            for name in names:
                if name.endswith(_PARTIAL):
                    (self.path / name).unlink(missing_ok=True)
            yield
        except BlockingIOError:
            raise StoreInUse(f"{self.path} is in use by another save") from None
        finally:
            os.close(handle)

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            BackupError: the manifest is missing, corrupt or unsupported.
        """
        path = self.path / MANIFEST
        try:
            with path.open("rb") as opened:
                data = opened.read(_MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            raise BackupError(self._why_no_manifest()) from None
        except OSError as error:
            raise BackupError(f"{path} cannot be read: {error.strerror or error}") from None
        try:
            return Manifest.decode(data)
        except BackupError as error:
            raise BackupError(f"{path}: {error}") from None

    def _why_no_manifest(self) -> str:
        if any((self.path / file_of(number)).exists() for number in range(PIECES)):
            return f"{self.path} is incomplete; save into it again to continue"
        return f"{self.path} is not a backup: it has no {MANIFEST}"

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest, which completes the backup."""
        with self.writing(MANIFEST) as target:
            target.write(manifest.encode())

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a file that gets its name when the block ends without an exception.

        Raises:
            BackupError: it cannot be written, for example because the disk is full.
        """
        partial = self.path / f"{name}{_PARTIAL}"
        try:
            with partial.open("w+b") as target:
                yield target
                target.flush()
                os.fsync(target.fileno())
            partial.replace(self.path / name)
            self._sync()
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise BackupError(
                f"{self.path / name} cannot be written: {error.strerror or error}; "
                "finished pieces are kept, so the same command can continue"
            ) from None
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @contextmanager
    def reading(self, name: str) -> Iterator[PieceReader]:
        """Open a piece; errors name its file.

        Raises:
            BackupError: the piece is missing or corrupt.
        """
        path = self.path / name
        try:
            with path.open("rb") as source:
                yield PieceReader(source)
        except FileNotFoundError:
            raise BackupError(f"{path} is missing") from None
        except OSError as error:
            raise BackupError(f"{path} cannot be read: {error.strerror or error}") from None
        except BackupError as error:
            raise BackupError(f"{path}: {error}") from None

    def finished(self, number: int) -> tuple[str, Piece] | None:
        """Return cluster id and description of a piece that an earlier save finished, or None.

        Raises:
            BackupError: the piece is corrupt.
        """
        if not (self.path / file_of(number)).exists():
            return None
        with self.reading(file_of(number)) as reader:
            for _ in reader.blocks():
                pass
            if reader.piece is None or reader.header.number != number:
                raise BackupError("the file has the content of another piece")
            return reader.header.cluster_id, reader.piece

    def _sync(self) -> None:
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
