"""CSV files (RFC 4180) with a header line. Cells are text: all values imported from CSV are str."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final

from dstash.cli import tagged
from dstash.cli.formats.rows import MAX_LINE_BYTES, BadRow, Columns, Row, record
from dstash.errors import UsageError
from dstash.limits import MAX_VALUE_BYTES
from dstash.wire.keys import Key

KEY_COLUMN: Final = "key"
VALUE_COLUMN: Final = "value"


def read_csv(source: BinaryIO, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield one record per row. The value is a dict of the other columns, or the named column.

    Raises:
        UsageError: the header lacks a named column.
    """
    # An unclosed quote makes the rest of the file one cell: limit its size.
    csv.field_size_limit(MAX_VALUE_BYTES)
    reader = csv.reader(_text_lines(source), strict=True)
    header = _header(reader)
    key_at = _position(header, columns.key or header[0])
    value_at = None if columns.value is None else _position(header, columns.value)
    layout = _Layout(header, key_at, value_at, columns)
    while True:
        first_line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(first_line, f"not CSV: {error}")
            continue
        if cells:
            yield layout.parsed(first_line, cells)


def _text_lines(source: BinaryIO) -> Iterator[str]:
    first = True
    # Bytes that are not UTF-8 become surrogates, which the limit checks refuse: so only the row
    # with these bytes is bad, not the rows after it.
    while line := source.readline(MAX_LINE_BYTES):
        text = line.decode("utf-8", "surrogateescape")
        yield text.removeprefix("\ufeff") if first else text
        first = False


def _header(reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UsageError(f"line 1: not CSV: {error}") from None
    if not header:
        raise UsageError("line 1: no header; the first line of CSV must be the column names")
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise UsageError(f"line 1: column {repeated[0]!r} appears twice in the header")
    return header


def _position(header: Sequence[str], name: str) -> int:
    try:
        return header.index(name)
    except ValueError:
        raise UsageError(f"line 1: no column {name!r}; the file has {', '.join(header)}") from None


class _Layout:
    """The positions of key and value in a row."""

    def __init__(
        self, header: list[str], key_at: int, value_at: int | None, columns: Columns
    ) -> None:
        self._header = header
        self._key_at = key_at
        self._value_at = value_at
        self._columns = columns

    def parsed(self, line: int, cells: list[str]) -> Row | BadRow:
        """Return the record of a row."""
        if len(cells) != len(self._header):
            return BadRow(line, f"{len(cells)} cells, but the header has {len(self._header)}")
        try:
            return record(line, cells[self._key_at], self._value(cells), None, self._columns)
        except UsageError as error:
            return BadRow(line, str(error))

    def _value(self, cells: list[str]) -> Any:
        if self._value_at is not None:
            return cells[self._value_at]
        pairs = zip(self._header, cells, strict=True)
        return {name: cell for at, (name, cell) in enumerate(pairs) if at != self._key_at}


class CsvWriter:
    """Writes one record per row; the first record decides the columns."""

    def __init__(self, target: BinaryIO, columns: Columns) -> None:
        self._target = target
        self._buffer = io.StringIO()
        self._csv = csv.writer(self._buffer, lineterminator="\n")
        self._key_column = columns.key or KEY_COLUMN
        self._value_column = columns.value
        self._fields: list[str] | None = None

    def write(self, key: Key, value: object, ttl: float | None) -> None:
        """Write one record. CSV can hold neither a time to live nor a key of bytes."""
        if isinstance(key, bytes):
            raise UsageError(f"key {key!r}: CSV cannot hold keys that are bytes; use jsonl")
        if ttl is not None:
            raise UsageError("CSV cannot hold the time to live; use jsonl")
        if self._fields is None:
            self._begin(value)
        self._row([str(key), *self._cells(key, value)])

    def finish(self) -> None:
        """Write the header if there were no records, so that the file can be imported."""
        if self._fields is None:
            self._begin(None)

    def _begin(self, value: object) -> None:
        if self._value_column is None and isinstance(value, dict):
            self._fields = [str(name) for name in value]
            self._row([self._key_column, *self._fields])
        else:
            self._fields = []
            self._row([self._key_column, self._value_column or VALUE_COLUMN])

    def _cells(self, key: Key, value: object) -> list[str]:
        if not self._fields:
            return [_cell(value)]
        # The same names in another order are fine; any other name would be lost silently.
        if not isinstance(value, dict) or set(value) != set(self._fields):
            raise UsageError(
                f"key {key!r}: its columns differ from those of the first record "
                f"({', '.join(self._fields)}); use jsonl, or --value COLUMN for JSON in one column"
            )
        return [_cell(value[name]) for name in self._fields]

    def _row(self, cells: list[str]) -> None:
        self._csv.writerow(cells)
        self._target.write(self._buffer.getvalue().encode())
        self._buffer.seek(0)
        self._buffer.truncate()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else tagged.dumps(value)
