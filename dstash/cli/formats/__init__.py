"""The file formats of import and export."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol

from dstash.cli.formats.columnar import ParquetWriter, read_parquet
from dstash.cli.formats.delimited import CsvWriter, read_csv
from dstash.cli.formats.jsonl import JsonlWriter, read_jsonl
from dstash.cli.formats.packed import MsgpackWriter, read_msgpack
from dstash.cli.formats.rows import BadRow, Columns, Row
from dstash.errors import UsageError
from dstash.wire.keys import Key

__all__ = ["BadRow", "Columns", "Format", "Row", "Writer", "format_of", "read_rows", "writer"]


class Format(StrEnum):
    """A file format."""

    JSONL = "jsonl"
    CSV = "csv"
    MSGPACK = "msgpack"
    PARQUET = "parquet"


class Writer(Protocol):
    """A writer of records; ``finish`` ends the file."""

    def write(self, key: Key, value: object, ttl: float | None) -> None:
        """Write one record."""
        ...

    def finish(self) -> None:
        """Write what is buffered, and the end of the file."""
        ...


_SUFFIXES = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".csv": Format.CSV,
    ".msgpack": Format.MSGPACK,
    ".parquet": Format.PARQUET,
}


def format_of(file: str, wanted: Format | None) -> Format:
    """Return ``wanted``, or else the format of the suffix of the file's name."""
    if wanted is not None:
        return wanted
    if file == "-":
        return Format.JSONL
    try:
        return _SUFFIXES[Path(file).suffix.lower()]
    except KeyError:
        known = ", ".join(_SUFFIXES)
        raise UsageError(f"{file}: unknown suffix; allowed are {known}, or give --format") from None


def read_rows(form: Format, source: BinaryIO, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield the records of a file in order, and a ``BadRow`` for each that cannot be read."""
    if form is Format.CSV:
        return read_csv(source, columns)
    if form is Format.PARQUET:
        return read_parquet(source, columns)
    columns.refuse_names(form)
    return read_jsonl(source, columns) if form is Format.JSONL else read_msgpack(source, columns)


def writer(form: Format, target: BinaryIO, columns: Columns) -> Writer:
    """Return a writer of records."""
    if form is Format.CSV:
        return CsvWriter(target, columns)
    if form is Format.PARQUET:
        return ParquetWriter(target, columns)
    columns.refuse_names(form)
    return JsonlWriter(target) if form is Format.JSONL else MsgpackWriter(target)
