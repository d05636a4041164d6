"""The format of a piece: a file with all records of some partitions.

::

    header    a line of JSON: format, cluster id, P, number of the piece, its partitions
    block     two lengths of 4 bytes, an array of storage keys, an array of records (msgpack)
    ...
    end       two lengths of 0
    trailer   a line of JSON: number of records, SHA-256 of all bytes before the trailer

Storage keys and records are those of peers (``dstash/store/record.py``): versions, expiries and
tombstones are kept, and each record has its own checksum. From the trailer a save that continues
sees that the piece is complete. The manifest has the same SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple

from xxhash import xxh3_64_intdigest

from dstash.backup.manifest import FORMAT, PARTITIONS_PER_PIECE, BackupError, Piece, parse_object
from dstash.errors import ProtocolError
from dstash.limits import MAX_FRAME_BYTES, PARTITIONS
from dstash.store.record import MASK, VERSION_END, is_intact_under, split_storage_key
from dstash.types import RecordFlag
from dstash.wire import codec
from dstash.wire.packing import batches

Entries = list[tuple[bytes, bytes]]

#: A plain number: arithmetic with flags is slow.
TOMBSTONE: Final = RecordFlag.TOMBSTONE.value

#: Most bytes and records of a block; a single larger record has its own block.
BLOCK_BYTES: Final = 512 * 1024
BLOCK_RECORDS: Final = 4000

_LENGTHS: Final = struct.Struct(">II")
_MAX_LINE_BYTES: Final = 64 * 1024
_TRUNCATED: Final = "it is truncated"


@dataclass(frozen=True, slots=True)
class Header:
    """The number of a piece, and its cluster."""

    cluster_id: str
    number: int

    @property
    def partitions(self) -> range:
        """The partitions of the piece."""
        return partitions_of(self.number)

    def encode(self) -> bytes:
        """Return the first line of a piece."""
        partitions = self.partitions
        plain = {
            "dstash": "piece of a backup",
            "format": FORMAT,
            "cluster_id": self.cluster_id,
            "partitions": PARTITIONS,
            "number": self.number,
            "first": partitions[0],
            "last": partitions[-1],
        }
        return _line(plain)

    @classmethod
    def decode(cls, line: bytes) -> Header:
        """Read the line; ``BackupError`` if it differs from the output of ``encode``."""
        raw = parse_object(line, "it is corrupt, or not a piece of a backup")
        if raw.get("format") != FORMAT:
            raise BackupError(f"its format is {raw.get('format')!r}; this version reads {FORMAT}")
        if raw.get("partitions") != PARTITIONS:
            raise BackupError(
                f"it is from a cluster with {raw.get('partitions')!r} partitions; "
                f"this version has {PARTITIONS}"
            )
        header = cls(str(raw.get("cluster_id")), raw.get("number", -1))
        if type(header.number) is not int or header.encode() != line:
            raise BackupError("it is corrupt: its first line is malformed")
        return header


def partitions_of(number: int) -> range:
    """Return the partitions of a piece."""
    return range(number * PARTITIONS_PER_PIECE, (number + 1) * PARTITIONS_PER_PIECE)


def file_of(number: int) -> str:
    """Return the name of a piece's file."""
    return f"piece-{number:03d}.dstash"


class Mark(NamedTuple):
    """A position in a piece that is being written, to rewind to."""

    offset: int
    digest: Any
    records: int
    tombstones: int


class PieceWriter:
    """Writes one piece to a file that can be truncated."""

    def __init__(self, target: BinaryIO, header: Header, began: str) -> None:
        self.header = header
        self._target = target
        self._digest = hashlib.sha256()
        self._began = began
        self._records = self._tombstones = 0
        self._put(header.encode())

    @property
    def records(self) -> int:
        """The number of records written."""
        return self._records

    def write(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Append (storage key, record) pairs."""
        for block in batches(entries, BLOCK_BYTES, BLOCK_RECORDS):
            keys, records = zip(*block, strict=True)
            frames = codec.pack_blobs(keys), codec.pack_blobs(records)
            self._put(_LENGTHS.pack(*map(len, frames)) + frames[0] + frames[1])
            self._records += len(block)
            self._tombstones += _count_tombstones(records)

    def mark(self) -> Mark:
        """Return the current position."""
        return Mark(self._target.tell(), self._digest.copy(), self._records, self._tombstones)

    def rewind(self, mark: Mark) -> None:
        """Delete everything that was written after the mark."""
        self._target.seek(mark.offset)
        self._target.truncate()
        self._digest = mark.digest.copy()
        self._records, self._tombstones = mark.records, mark.tombstones

    def finish(self, moving: int, ended: str) -> Piece:
        """Write the end; return the entry for the manifest."""
        self._put(_LENGTHS.pack(0, 0))
        trailer = {
            "records": self._records,
            "tombstones": self._tombstones,
            "moving": moving,
            "began": self._began,
            "ended": ended,
        }
        self._put(_line(trailer | {"sha256": self._digest.hexdigest()}))
        partitions = self.header.partitions
        return Piece(
            file_of(self.header.number),
            partitions[0],
            partitions[-1],
            bytes=self._target.tell(),
            sha256=self._digest.hexdigest(),
            **trailer,  # type: ignore[arg-type]  # the values are right above
        )

    def _put(self, data: bytes) -> None:
        self._target.write(data)
        self._digest.update(data)


class PieceReader:
    """Reads and checks one piece.

    Raises:
        BackupError: from every method, with the fault and its place. The caller adds the file.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._digest = hashlib.sha256()
        self._offset = 0
        self.header = Header.decode(self._line())
        #: The expected entry of the manifest; set once all blocks are read.
        self.piece: Piece | None = None

    def blocks(self) -> Iterator[Entries]:
        """Yield the records, block by block; after the last one the whole piece is verified."""
        records = tombstones = 0
        while any(lengths := _LENGTHS.unpack(self._take(_LENGTHS.size))):
            block = self._block(*lengths)
            records += len(block)
            tombstones += _count_tombstones(record for _, record in block)
            yield block
        self.piece = self._end(records, tombstones)

    def _block(self, *lengths: int) -> Entries:
        at = self._offset - _LENGTHS.size
        if max(lengths) > MAX_FRAME_BYTES:
            raise BackupError(f"it is corrupt: no block begins at byte {at}")
        try:
            keys, records = (codec.unpack_blobs(self._take(length)) for length in lengths)
        except ProtocolError:
            raise BackupError(f"it is corrupt: the block at byte {at} cannot be decoded") from None
        if len(keys) != len(records):
            raise BackupError(
                f"it is corrupt: the block at byte {at} has unequal numbers of keys and records"
            )
        block = list(zip(keys, records, strict=True))
        self._check(block, at)
        return block

    def _check(self, block: Entries, at: int) -> None:
        """Check each record like ``is_sound``, but hash each key only once."""
        salts: dict[bytes, int] = {}
        first, last = self.header.partitions[0], self.header.partitions[-1]
        for storage_key, record in block:
            if len(storage_key) < 4 or len(storage_key) < 4 + storage_key[2]:
                raise BackupError(f"it is corrupt: a key in the block at byte {at} is too short")
            partition, index, key = split_storage_key(storage_key)
            digest = xxh3_64_intdigest(key)
            salt = salts.get(index)
            if salt is None:
                salt = salts[index] = xxh3_64_intdigest(index)
            if not is_intact_under(record, digest ^ salt):
                raise BackupError(
                    f"it is corrupt: a record in the block at byte {at} fails its checksum"
                )
            if partition != digest & MASK or not first <= partition <= last:
                raise BackupError(
                    f"a record in the block at byte {at} belongs to another partition"
                )

    def _end(self, records: int, tombstones: int) -> Piece:
        found = self._digest.hexdigest()
        raw = parse_object(self._line(), "it is corrupt: its last line cannot be decoded")
        if self._source.read(1):
            raise BackupError("it is corrupt: it has data after its end")
        stated = (raw.get("records"), raw.get("tombstones"), raw.get("sha256"))
        if stated != (records, tombstones, found):
            raise BackupError("it is corrupt: its checksum does not match its content")
        partitions = self.header.partitions
        return Piece(
            file_of(self.header.number),
            partitions[0],
            partitions[-1],
            records,
            tombstones,
            raw.get("moving", 0),
            self._offset,
            str(raw.get("began")),
            str(raw.get("ended")),
            self._digest.hexdigest(),
        )

    def _line(self) -> bytes:
        line = self._source.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise BackupError(_TRUNCATED)
        return self._seen(line)

    def _take(self, length: int) -> bytes:
        data = self._source.read(length)
        if len(data) < length:
            raise BackupError(_TRUNCATED)
        return self._seen(data)

    def _seen(self, data: bytes) -> bytes:
        self._digest.update(data)
        self._offset += len(data)
        return data


def _count_tombstones(records: Iterable[bytes]) -> int:
    return sum([record[VERSION_END] & TOMBSTONE for record in records])


def _line(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain).encode() + b"\n"
