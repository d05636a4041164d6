"""Verifying a backup: everything is read, and whatever is wrong is named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from dstash.backup.folder import Folder
from dstash.backup.manifest import PIECES, BackupError, Manifest, Piece
from dstash.backup.pieces import TOMBSTONE, Entries, file_of, partitions_of
from dstash.store.record import VERSION_END


class Held:
    """What a backup holds of one index. ``bytes`` are those of keys and records."""

    __slots__ = ("bytes", "records", "tombstones")

    def __init__(self) -> None:
        self.records = self.tombstones = self.bytes = 0


@dataclass
class Findings:
    """What a backup holds, by index, and what is wrong with it: a line for each problem."""

    manifest: Manifest | None = None
    problems: list[str] = field(default_factory=list)
    read: int = 0
    _held: dict[bytes, Held] = field(default_factory=lambda: defaultdict(Held))

    def count(self, block: Entries) -> None:
        """Take note of some records."""
        held = self._held
        for storage_key, record in block:
            one = held[storage_key[3 : 3 + storage_key[2]]]
            if record[VERSION_END] & TOMBSTONE:
                one.tombstones += 1
            else:
                one.records += 1
            one.bytes += len(storage_key) + len(record)
        self.read += len(block)

    def indexes(self) -> dict[str, Held]:
        """Return what is held, by the name of the index."""
        named = {name.decode(errors="backslashreplace"): one for name, one in self._held.items()}
        return dict(sorted(named.items()))


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
