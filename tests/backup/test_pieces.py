"""The files of a backup: round trips, and detection of every corruption."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from dstash.backup.manifest import PIECES, BackupError, Manifest, Piece
from dstash.backup.pieces import Entries, Header, PieceReader, PieceWriter, partitions_of
from dstash.store.record import Record, build_record, partition_of
from dstash.types import NEVER, RecordFlag
from dstash.version import pack

HEADER = Header("id", 3)


def entries(count: int, payload: bytes = b"\x01") -> Entries:
    """Return records of the piece, every third of them a tombstone."""
    found: Entries = []
    number = 0
    while len(found) < count:
        number += 1
        key = f"key{number}".encode()
        if partition_of(key) in partitions_of(HEADER.number):
            flags = 0 if len(found) % 3 else RecordFlag.TOMBSTONE
            record = Record(pack(number, b"them"), flags, NEVER, b"" if flags else payload)
            place = partition_of(key).to_bytes(2, "big") + b"\x01i" + key
            found.append((place, build_record(b"i", key, record)))
    return found


def written(content: Entries, header: Header = HEADER) -> tuple[bytes, Piece]:
    target = io.BytesIO()
    writer = PieceWriter(target, header, "began")
    writer.write(content)
    piece = writer.finish(2, "ended")
    return target.getvalue(), piece


def read(data: bytes) -> tuple[Entries, Piece]:
    reader = PieceReader(io.BytesIO(data))
    found = [entry for block in reader.blocks() for entry in block]
    assert reader.piece is not None
    return found, reader.piece


@pytest.mark.parametrize("count", [0, 1, 7])
def test_piece_round_trip(count: int) -> None:
    content = entries(count)
    data, piece = written(content)
    assert read(data) == (content, piece)
    assert (piece.records, piece.tombstones) == (count, (count + 2) // 3)
    assert (piece.bytes, piece.moving, piece.first, piece.last) == (len(data), 2, 48, 63)


def test_blocks_have_limited_size() -> None:
    content = entries(9, b"\xc6\x00\x03\x00\x00" + bytes(3 << 16))  # 192 KiB each
    data, _ = written(content)
    blocks = list(PieceReader(io.BytesIO(data)).blocks())
    assert len(blocks) > 2
    assert [entry for block in blocks for entry in block] == content


def test_rewind_deletes_records_after_mark() -> None:
    content = entries(6)
    target = io.BytesIO()
    writer = PieceWriter(target, HEADER, "began")
    writer.write(content[:2])
    mark = writer.mark()
    writer.write(content[2:])
    writer.rewind(mark)
    writer.write(content[5:])
    piece = writer.finish(2, "ended")
    assert read(target.getvalue()) == ([*content[:2], content[5]], piece)


def test_reader_detects_every_flipped_bit() -> None:
    data, piece = written(entries(4))
    for place in range(len(data)):
        for bit in range(8):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            try:
                _, found = read(bytes(broken))
            except BackupError:
                continue
            assert found != piece, f"byte {place}, bit {bit}"  # the manifest detects it


def test_reader_detects_truncation_and_extra_data() -> None:
    data, _ = written(entries(4))
    for length in range(len(data)):
        with pytest.raises(BackupError):
            read(data[:length])
    with pytest.raises(BackupError, match="has data after its end"):
        read(data + b"\n")


def test_reader_refuses_records_of_another_piece() -> None:
    data, _ = written(entries(4), Header("id", 4))
    with pytest.raises(BackupError, match="another partition"):
        read(data)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (b'"format": 1', b'"format": 2', "its format is 2; this version reads 1"),
        (b'"partitions": 4096', b'"partitions": 1024', "a cluster with 1024 partitions"),
        (b"piece of a backup", b"something else", "first line is malformed"),
        (b'"number": 3', b'"number": []', "first line is malformed"),
        (b"{", b"[", "not a piece of a backup"),
    ],
)
def test_reader_refuses_foreign_headers(before: bytes, after: bytes, words: str) -> None:
    data, _ = written(entries(1))
    with pytest.raises(BackupError, match=words):
        read(data.replace(before, after, 1))


def manifest() -> Manifest:
    piece = written(entries(4))[1]
    return Manifest("dstash", "id", 7, "began", "ended", "0.1.0", (piece,) * PIECES)


def test_manifest_round_trip() -> None:
    original = manifest()
    assert Manifest.decode(original.encode()) == original
    assert (original.records, original.tombstones, original.moving) == (
        4 * PIECES,
        2 * PIECES,
        2 * PIECES,
    )


def test_manifest_detects_every_flipped_bit() -> None:
    data = replace(manifest(), pieces=()).encode()
    for place in range(len(data)):
        for bit in range(8):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            try:
                found = Manifest.decode(bytes(broken))
            except BackupError:
                continue
            assert found == replace(manifest(), pieces=())  # white space


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("format", 9, "its format is 9"), ("cluster_id", "x", "its checksum does not match")],
)
def test_manifest_refuses_foreign_content(field: str, value: object, words: str) -> None:
    raw = json.loads(manifest().encode())
    with pytest.raises(BackupError, match=words):
        Manifest.decode(json.dumps(raw | {field: value}).encode())


def test_manifest_refuses_other_number_of_partitions() -> None:
    with pytest.raises(BackupError, match="a cluster with 1024 partitions; this version has 4096"):
        Manifest.decode(replace(manifest(), partitions=1024).encode())
