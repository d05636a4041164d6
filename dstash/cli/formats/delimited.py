"""CSV files (RFC 4180) with a header line, also with other delimiters, such as TSV.

Cells are text: all values that are read are str.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO, Final

from dstash.cli import tagged
from dstash.cli.formats.rows import MAX_LINE_BYTES, BadRow, Columns, Row, not_utf8, record
from dstash.errors import UsageError
from dstash.limits import MAX_VALUE_BYTES
from dstash.wire.keys import Key

KEY_COLUMN: Final = "key"
VALUE_COLUMN: Final = "value"
COMMA: Final = ","
TAB: Final = "\t"

#: The delimiters that a reader recognises. If the first records do not decide, the first wins: a
#: comma may well be part of a name, or of a number.
_KNOWN: Final = (TAB, ";", "|", COMMA)
_NAMES: Final = {"comma": COMMA, "semicolon": ";", "tab": TAB, "\\t": TAB, "pipe": "|"}
#: A header that is longer is not searched for its delimiter.
_MAX_HEADER_CHARS: Final = 1 << 20


def parse_delimiter(text: str) -> str:
    """Return the character that an option names.

    Raises:
        UsageError: it is not a single character, or one that CSV uses otherwise.
    """
    delimiter = _NAMES.get(text.lower(), text)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UsageError(
            f"delimiter {text!r} is not allowed; allowed are one character, such as ';', or tab"
        )
    return delimiter


def read_delimited(
    source: BinaryIO, columns: Columns, delimiter: str | None
) -> Iterator[Row | BadRow]:
    """Yield one record per row. The value is a dict of the other columns, or the named column.

    Args:
        delimiter: of the format; None to recognise it by the first records.

    Raises:
        UsageError: the header lacks a named column, is not UTF-8, or has a single column.
    """
    # An unclosed quote makes the rest of the file one cell: limit its size.
    csv.field_size_limit(MAX_VALUE_BYTES)
    lines = _Lines(source)
    first = [*lines.record(), *lines.record()]
    delimiter = columns.delimiter or delimiter or _recognised(first)
    reader = csv.reader(chain(first, lines), delimiter=delimiter, strict=True)
    header = _header(reader, lines, delimiter)
    layout = _Layout(header, columns)
    while True:
        first_line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(first_line, lines.problem_in(first_line, reader.line_num) or _text(error))
            continue
        if problem := lines.problem_in(first_line, reader.line_num):
            yield BadRow(first_line, problem)
        elif cells:
            yield layout.parsed(first_line, cells)


class _Lines:
    """The lines of a file as text. Those that are not UTF-8 are noted, and do not end the file."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._number = 0
        self._problems: dict[int, str] = {}

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._source.readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        self._number += 1
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            self._problems[self._number] = not_utf8(line, error)
            text = line.decode("utf-8", "surrogateescape")
        return text.removeprefix("\ufeff") if self._number == 1 else text

    def record(self) -> list[str]:
        """Return the lines of the next record: a cell in quotes may have several lines."""
        lines: list[str] = []
        quotes = chars = 0
        for line in self:
            lines.append(line)
            quotes += line.count('"')
            chars += len(line)
            if quotes % 2 == 0 or chars > _MAX_HEADER_CHARS:
                break
        return lines

    def problem_in(self, first: int, last: int) -> str | None:
        """Return what is wrong with a record, by its first and last line, and forget it."""
        if not self._problems:
            return None
        found = [self._problems.pop(number, None) for number in range(first, last + 1)]
        return next((problem for problem in found if problem), None)


def _recognised(lines: Sequence[str]) -> str:
    """Return the delimiter of a header and the record after it.

    Raises:
        UsageError: the header has none of the known delimiters.
    """
    header, *rest = _outside_quotes("".join(lines)).split("\n") or [""]
    found = [delimiter for delimiter in _KNOWN if delimiter in header]
    after = rest[0] if rest else ""
    agreeing = [sign for sign in found if header.count(sign) == after.count(sign)]
    return max(agreeing or found, key=header.count, default=COMMA)


def _outside_quotes(text: str) -> str:
    return "".join(text.split('"')[::2])


def _header(reader: Any, lines: _Lines, delimiter: str) -> list[str]:
    header: list[str] = []
    try:
        header = next(reader, [])
        problem = lines.problem_in(1, reader.line_num)
    except csv.Error as error:
        problem = lines.problem_in(1, reader.line_num) or _text(error)
    if problem:
        raise UsageError(f"line 1: {problem}")
    if not header:
        raise UsageError("line 1: no header; the first line of CSV must be the column names")
    if len(header) == 1:
        raise UsageError(
            f"line 1: only one column, {header[0]!r}, with the delimiter {delimiter!r}; "
            "give the one of the file with --delimiter"
        )
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise UsageError(f"line 1: column {repeated[0]!r} appears twice in the header")
    return header


def _text(error: csv.Error) -> str:
    if "new-line character" in str(error):  # the rest of that text is for programmers
        return "not CSV: a carriage return outside of quotes"
    return f"not CSV: {error}"


class _Layout:
    """The positions of key and value in a row."""

    def __init__(self, header: list[str], columns: Columns) -> None:
        self._header = header
        self._key_at = _position(header, columns.key or header[0])
        self._value_at = None if columns.value is None else _position(header, columns.value)
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


def _position(header: Sequence[str], name: str) -> int:
    try:
        return header.index(name)
    except ValueError:
        raise UsageError(f"line 1: no column {name!r}; the file has {', '.join(header)}") from None


class DelimitedWriter:
    """Writes one record per row; the first record decides the columns, of which the key is first.

    Args:
        delimiter: of the format; ``columns.delimiter`` overrides it.
    """

    def __init__(self, target: BinaryIO, columns: Columns, delimiter: str = COMMA) -> None:
        self._target = target
        self._buffer = io.StringIO()
        # With this end of lines, every version of Python puts "\r" in a cell in quotes.
        self._csv = csv.writer(
            self._buffer, delimiter=columns.delimiter or delimiter, lineterminator="\r\n"
        )
        self._columns = columns
        self._has_begun = False
        #: The names of the values' fields; empty if the value is one cell.
        self._fields: list[Any] = []

    def write(self, key: Key, value: object, ttl: float | None) -> None:
        """Write one record. CSV can hold neither a time to live nor a key of bytes."""
        if isinstance(key, bytes):
            raise UsageError("CSV cannot hold keys that are bytes; use jsonl")
        if ttl is not None:
            raise UsageError("CSV cannot hold the time to live; use jsonl")
        if not self._has_begun:
            self._begin(value)
        self._row([str(key), *self._cells(value)])

    def finish(self) -> None:
        """Write the header if there were no records, so that the file can be imported."""
        if not self._has_begun:
            self._begin(None)

    def _begin(self, value: object) -> None:
        self._has_begun = True
        if self._columns.value is None and isinstance(value, dict):
            self._fields = list(value)
        names = [str(name) for name in self._fields] or [self._columns.value or VALUE_COLUMN]
        if len(set(names)) < len(names):
            raise UsageError(
                f"two fields of a value have the same name as text ({', '.join(names)}); "
                "use jsonl, or --value COLUMN for JSON in one column"
            )
        self._row([self._key_column(names), *names])

    def _key_column(self, names: Sequence[str]) -> str:
        """Return the name of the first column, which no other column has."""
        name = self._columns.key or KEY_COLUMN
        if self._columns.key and name in names:
            raise UsageError(
                f"--key {name}: a column of the values has that name; give another name"
            )
        while name in names:
            name = f"_{name}"
        return name

    def _cells(self, value: object) -> list[str]:
        if not self._fields:
            return [_cell(value)]
        # The same names in another order are fine; any other name would be lost silently.
        if not isinstance(value, dict) or set(value) != set(self._fields):
            raise UsageError(
                "its columns differ from those of the first record "
                f"({', '.join(map(str, self._fields))}); use jsonl, or --value COLUMN for JSON in "
                "one column"
            )
        return [_cell(value[name]) for name in self._fields]

    def _row(self, cells: list[str]) -> None:
        self._csv.writerow(cells)
        self._target.write(self._buffer.getvalue().removesuffix("\r\n").encode() + b"\n")
        self._buffer.seek(0)
        self._buffer.truncate()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else tagged.dumps(value)
