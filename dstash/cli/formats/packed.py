"""msgpack files: one map per record, concatenated. Every value keeps its type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

import msgpack

from dstash.cli.formats.rows import BadRow, Columns, Row, checked
from dstash.errors import DStashError, UsageError
from dstash.limits import MAX_FRAME_BYTES
from dstash.wire.keys import Key
from dstash.wire.values import TypeRegistry

_CHUNK: Final = 1 << 16


def read_msgpack(source: BinaryIO, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield one record per map.

    Raises:
        UsageError: the file is not msgpack, or is truncated. The begin of the next record cannot
            be found, so reading ends there.
    """
    types = TypeRegistry()
    for number, packed in enumerate(_objects(source), start=1):
        try:
            yield checked(number, types.decode(packed), columns)
        except DStashError as error:
            yield BadRow(number, str(error))


def _objects(source: BinaryIO) -> Iterator[bytes]:
    """Split the file into msgpack objects, without decoding them."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_FRAME_BYTES)
    waiting = bytearray()
    done = begin = 0
    while chunk := source.read(_CHUNK):
        _feed(unpacker, chunk, done)
        waiting += chunk
        while _skip(unpacker, done):
            end = unpacker.tell()
            yield bytes(waiting[: end - begin])
            del waiting[: end - begin]
            begin, done = end, done + 1
    if waiting:
        raise UsageError(f"record {done + 1}: truncated, the file ends within it")


def _feed(unpacker: msgpack.Unpacker, chunk: bytes, done: int) -> None:
    try:
        unpacker.feed(chunk)
    except msgpack.BufferFull:
        raise UsageError(
            f"record {done + 1}: larger than {MAX_FRAME_BYTES} bytes, the maximum"
        ) from None


def _skip(unpacker: msgpack.Unpacker, done: int) -> bool:
    try:
        unpacker.skip()
    except msgpack.OutOfData:
        return False
    except (ValueError, RecursionError) as error:  # msgpack's own errors are ValueErrors
        raise UsageError(f"record {done + 1}: not msgpack: {error}") from None
    return True


class MsgpackWriter:
    """Writes one map per record."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._types = TypeRegistry()

    def write(self, key: Key, value: object, ttl: float | None) -> None:
        """Write one record."""
        fields = {"key": key, "value": value} | ({} if ttl is None else {"ttl": ttl})
        self._target.write(self._types.encode(fields))

    def finish(self) -> None:
        """Do nothing: no record is buffered."""
