"""The verification of a backup: reads everything and lists all problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from dstash.backup.folder import Folder
from dstash.backup.manifest import PIECES, BackupError, Manifest, Piece
from dstash.backup.pieces import TOMBSTONE, Entries, file_of, partitions_of
from dstash.store.record import VERSION_END


class IndexContent:
    """The content of one index in a backup. ``bytes`` counts keys and records."""

    __slots__ = ("bytes", "records", "tombstones")

    def __init__(self) -> None:
        self.records = self.tombstones = self.bytes = 0


@dataclass
class Findings:
    """The content of a backup by index, and its problems, one line each."""

    manifest: Manifest | None = None
    problems: list[str] = field(default_factory=list)
    read: int = 0
    _contents: dict[bytes, IndexContent] = field(default_factory=lambda: defaultdict(IndexContent))

    def count(self, block: Entries) -> None:
        """Count the records of a block."""
        contents = self._contents
        for storage_key, record in block:
            content = contents[storage_key[3 : 3 + storage_key[2]]]
            if record[VERSION_END] & TOMBSTONE:
                content.tombstones += 1
            else:
                content.records += 1
            content.bytes += len(storage_key) + len(record)
        self.read += len(block)

    def indexes(self) -> dict[str, IndexContent]:
        """Return the contents by the name of the index."""
        named = {
            name.decode(errors="backslashreplace"): content
            for name, content in self._contents.items()
        }
        return dict(sorted(named.items()))


def verify(folder: Folder, on_progress: Callable[[Findings], None]) -> Findings:
    """Read and check a whole backup; ``on_progress`` is called after each block."""
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
            _check_piece(folder, found.manifest, piece, found, on_progress)
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
    on_progress: Callable[[Findings], None],
) -> None:
    with folder.reading(piece.file) as reader:
        if reader.header.cluster_id != manifest.cluster_id:
            raise BackupError(f"it is from another cluster ({reader.header.cluster_id})")
        if reader.header.partitions != partitions_of(piece.first // len(reader.header.partitions)):
            raise BackupError("the file has the content of another piece")
        for block in reader.blocks():
            found.count(block)
            on_progress(found)
        if reader.piece != piece:
            raise BackupError("it differs from its entry in the manifest (sha256)")


def _ends(number: int) -> tuple[int, int]:
    partitions = partitions_of(number)
    return partitions[0], partitions[-1]
