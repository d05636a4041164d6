"""The file formats of import and export."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from dstash.cli.formats import compression
from dstash.cli.formats.columnar import ParquetWriter, read_parquet
from dstash.cli.formats.delimited import COMMA, TAB, DelimitedWriter, read_delimited
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
    TSV = "tsv"
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


_SUFFIXES: Final = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
    ".msgpack": Format.MSGPACK,
    ".parquet": Format.PARQUET,
}


def format_of(file: str, wanted: Format | None) -> Format:
    """Return ``wanted``, or else the format of the suffix of the file's name.

    Raises:
        UsageError: the suffix is unknown, or a parquet file is to be compressed.
    """
    packed = compression.suffix_of(file)
    form = wanted or _format_by_suffix(file, file[: len(file) - len(packed)])
    if packed and form is Format.PARQUET:
        raise UsageError(f"{file}: parquet files are compressed inside; name it without {packed}")
    return form


def _format_by_suffix(file: str, plain: str) -> Format:
    if file == "-":
        return Format.JSONL
    try:
        return _SUFFIXES[Path(plain).suffix.lower()]
    except KeyError:
        known = f"{', '.join(_SUFFIXES)}, each also with {' or '.join(compression.SUFFIXES)}"
        raise UsageError(f"{file}: unknown suffix; allowed are {known}, or give --format") from None


def read_rows(form: Format, source: BinaryIO, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield the records of a file in order, and a ``BadRow`` for each that cannot be read."""
    columns.check_for(form)
    if form in _DELIMITED:
        return read_delimited(source, columns, _DELIMITED[form])
    if form is Format.PARQUET:
        return read_parquet(source, columns)
    return read_jsonl(source, columns) if form is Format.JSONL else read_msgpack(source, columns)


def writer(form: Format, target: BinaryIO, columns: Columns) -> Writer:
    """Return a writer of records."""
    columns.check_for(form)
    if form in _DELIMITED:
        return DelimitedWriter(target, columns, _DELIMITED[form] or COMMA)
    if form is Format.PARQUET:
        return ParquetWriter(target, columns)
    return JsonlWriter(target) if form is Format.JSONL else MsgpackWriter(target)


#: The delimiter of formats with one; None if a reader finds out.
_DELIMITED: Final = {Format.CSV: None, Format.TSV: TAB}
