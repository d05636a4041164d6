"""Verifying a backup: everything is read, and whatever is wrong is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from dstash.backup.folder import Folder
from dstash.backup.manifest import PIECES, BackupError, Manifest, Piece
from dstash.backup.pieces import Entries, file_of, partitions_of
from dstash.store.record import VERSION_END, split_storage_key
from dstash.types import RecordFlag


@dataclass
class Findings:
    """What a backup holds, by index, and what is wrong with it: a line for each problem."""

    manifest: Manifest | None = None
    problems: list[str] = field(default_factory=list)
    records: Counter[str] = field(default_factory=Counter)
    tombstones: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    read: int = 0

    def count(self, block: Entries) -> None:
        """Take note of some records."""
        for storage_key, record in block:
            index = split_storage_key(storage_key)[1].decode(errors="backslashreplace")
            if record[VERSION_END] & RecordFlag.TOMBSTONE:
                self.tombstones[index] += 1
            else:
                self.records[index] += 1
            self.bytes[index] += len(storage_key) + len(record)
        self.read += len(block)


def verify(folder: Folder, told: Callable[[Findings], None]) -> Findings:
    """Read a whole backup and check it; ``told`` is called after each block."""
    found = Findings()
    try:
        found.manifest = folder.manifest()
    except BackupError as error:
        found.problems.append(str(error))
        return found
    named = {piece.file: piece for piece in found.manifest.pieces}
    for number in range(PIECES):
        name = file_of(number)
        piece = named.pop(name, None)
        if piece is None or (piece.first, piece.last) != _ends(number):
            found.problems.append(f"{folder.path}: the manifest lacks {name}")
            continue
        try:
            _check_piece(folder, found.manifest, piece, found, told)
        except BackupError as error:
            found.problems.append(str(error))
    found.problems += [
        f"{folder.path}: the manifest names an unknown piece {name}" for name in named
    ]
    return found


def _check_piece(
    folder: Folder,
    manifest: Manifest,
    piece: Piece,
    found: Findings,
    told: Callable[[Findings], None],
) -> None:
    with folder.reading(piece.file) as reader:
        if reader.header.cluster_id != manifest.cluster_id:
            raise BackupError(f"it is of another cluster ({reader.header.cluster_id})")
        if reader.header.partitions != partitions_of(piece.first // len(reader.header.partitions)):
            raise BackupError("it is another piece under this name")
        for block in reader.blocks():
            found.count(block)
            told(found)
        if reader.piece != piece:
            raise BackupError("it is not the one that the manifest speaks of (sha256 differs)")


def _ends(number: int) -> tuple[int, int]:
    partitions = partitions_of(number)
    return partitions[0], partitions[-1]
