"""Parquet files, with pyarrow (``dstash[parquet]``): one record per row, in row groups.

A column has one type. If all values are dicts with the same names, each name becomes a column;
otherwise the values become one column, ``value``. The first row group decides the type of a column:
text, integers, floats, booleans, bytes, dates or times if all its cells have that type, else JSON
(see ``tagged``), so that no value loses its type. The metadata of a column has its role under
``dstash``. Files of other programs lack it; they are read like CSV, but keep their types.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from dstash.cli import tagged
from dstash.cli.formats.delimited import KEY_COLUMN, VALUE_COLUMN
from dstash.cli.formats.rows import BadRow, Columns, Row, record
from dstash.errors import UsageError
from dstash.limits import MIB
from dstash.wire.keys import Key

if TYPE_CHECKING:
    import pyarrow as pa

TTL_COLUMN: Final = "ttl"
_MARK: Final = b"dstash"
_JSON: Final = b"json"

#: Maximum rows of a row group, and their approximate bytes. One group is kept in memory.
_MAX_GROUP_ROWS: Final = 20_000
_MAX_GROUP_BYTES: Final = 32 * MIB
#: Rows read at a time.
_READ_ROWS: Final = 256


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "parquet needs the package pyarrow: pip install 'dstash[parquet]'"
        ) from None
    return pyarrow


# -- reading


def read_parquet(source: BinaryIO, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield one record per row.

    Raises:
        UsageError: pyarrow is not installed, the file is not parquet, or it lacks a named column.
    """
    pa = _arrow()
    if not getattr(source, "seekable", bool)():
        raise UsageError("parquet cannot be read from a pipe; name a file")
    number = 0
    try:
        file = pa.parquet.ParquetFile(source, pre_buffer=False, buffer_size=MIB)
        layout = _Layout(file.schema_arrow, columns)
        for batch in file.iter_batches(_READ_ROWS):
            cells = [column.to_pylist() for column in batch.columns]
            for row in zip(*cells, strict=True):
                number += 1
                yield layout.parsed(number, row)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"record {number + 1}: not parquet: {_first_line(error)}") from None


class _Layout:
    """The positions of key, value and time to live in a row."""

    def __init__(self, schema: pa.Schema, columns: Columns) -> None:
        self._columns = columns
        self._names: list[str] = list(schema.names)
        marks = [(field.metadata or {}).get(_MARK, b"").split() for field in schema]
        if not self._names:
            raise UsageError("the file has no columns")
        self._json = [_JSON in mark for mark in marks]
        self._key_at = self._place(columns.key, marks, b"key") or 0
        self._value_at = self._place(columns.value, marks, b"value")
        self._ttl_at = self._place(None, marks, b"ttl")

    def _place(self, name: str | None, marks: Sequence[list[bytes]], mark: bytes) -> int | None:
        if name is None:
            return next((at for at, found in enumerate(marks) if mark in found), None)
        if name not in self._names:
            raise UsageError(f"no column {name!r}; the file has {', '.join(self._names)}")
        return self._names.index(name)

    def parsed(self, number: int, row: Sequence[Any]) -> Row | BadRow:
        """Return the record of a row."""
        try:
            cells = [
                tagged.loads(cell) if is_json and cell is not None else cell
                for cell, is_json in zip(row, self._json, strict=True)
            ]
            ttl = None if self._ttl_at is None else cells[self._ttl_at]
            return record(number, cells[self._key_at], self._value(cells), ttl, self._columns)
        except UsageError as error:
            return BadRow(number, str(error))

    def _value(self, cells: list[Any]) -> Any:
        if self._value_at is not None:
            return cells[self._value_at]
        apart = (self._key_at, self._ttl_at)
        return {
            name: cell
            for at, (name, cell) in enumerate(zip(self._names, cells, strict=True))
            if at not in apart
        }


# -- writing


@dataclass(frozen=True)
class _Column:
    """A column: its name, its role, and the type of its cells (None: any type, as JSON)."""

    name: str
    role: str
    kind: type | None

    def field(self, pa: Any) -> pa.Field:
        """Return the pyarrow field of the column."""
        mark = f"{self.role} json" if self.kind is None else self.role
        kind = pa.string() if self.kind is None else _NATIVE[self.kind](pa)
        return pa.field(self.name, kind, metadata={_MARK: mark.encode()})

    def cell(self, value: Any) -> Any:
        """Return the cell of a value; raise ``UsageError`` if the column cannot hold it."""
        if self.kind is None:
            return tagged.dumps(value)
        if value is not None and not _fits(value, self.kind):
            raise UsageError(
                f"column {self.name!r} has values of type {self.kind.__name__}, not "
                f"{type(value).__name__}; use jsonl, or --value COLUMN for JSON in one column"
            )
        return value


_NATIVE: Final[dict[type, Callable[[Any], Any]]] = {
    str: lambda pa: pa.string(),
    int: lambda pa: pa.int64(),
    float: lambda pa: pa.float64(),
    bool: lambda pa: pa.bool_(),
    bytes: lambda pa: pa.binary(),
    dt.date: lambda pa: pa.date32(),
    dt.datetime: lambda pa: pa.timestamp("us", "UTC"),
}


#: Whether a parquet column can hold a value of the type.
_BOUNDS: Final[dict[type, Callable[[Any], bool]]] = {
    int: lambda number: -(1 << 63) <= number < 1 << 63,
    dt.datetime: lambda moment: moment.tzinfo is dt.UTC,
}


def _fits(value: Any, kind: type) -> bool:
    return type(value) is kind and (kind not in _BOUNDS or _BOUNDS[kind](value))


def _common(values: Sequence[Any]) -> type | None:
    """Return the common type of all values but None; None if they must be stored as JSON."""
    kinds = {type(value) for value in values if value is not None}
    kind = kinds.pop() if len(kinds) == 1 else None
    is_native = kind in _NATIVE and all(value is None or _fits(value, kind) for value in values)
    return kind if is_native else None


class ParquetWriter:
    """Writes one record per row; the first row group decides the columns."""

    def __init__(self, target: BinaryIO, columns: Columns) -> None:
        self._pa = _arrow()
        self._target = target
        self._wanted = columns
        self._rows: list[tuple[Key, Any, float | None]] = []
        self._weight = 0
        self._columns: list[_Column] = []
        self._fields: list[str] = []
        self._out: Any = None

    def write(self, key: Key, value: object, ttl: float | None) -> None:
        """Write one record."""
        self._rows.append((key, value, ttl))
        self._weight += _weight(value)
        if len(self._rows) >= _MAX_GROUP_ROWS or self._weight >= _MAX_GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """Write the last row group and the end of the file."""
        self._flush()
        self._out.close()

    def _flush(self) -> None:
        if self._out is None:
            self._begin()
        cells: list[list[Any]] = [[] for _ in self._columns]
        for row in self._rows:
            for column, cell in zip(cells, self._row(*row), strict=True):
                column.append(cell)
        if self._rows:
            self._out.write_batch(self._pa.record_batch(cells, schema=self._out.schema))
        self._rows, self._weight = [], 0

    def _begin(self) -> None:
        keys, values, _ = zip(*self._rows, strict=True) if self._rows else ((), (), ())
        self._fields = self._shared_names(values)
        self._columns = [_Column(self._wanted.key or KEY_COLUMN, "key", _common(keys))]
        if self._fields:
            self._columns += [
                _Column(name, "field", _common([value[name] for value in values]))
                for name in self._fields
            ]
        else:
            name = self._wanted.value or VALUE_COLUMN
            kind = None if self._wanted.value else _common(values)
            self._columns.append(_Column(name, "value", kind))
        self._columns.append(_Column(TTL_COLUMN, "ttl", float))
        names = [column.name for column in self._columns]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise UsageError(
                f"two columns would be named {repeated[0]!r}; name others with --key and --value"
            )
        schema = self._pa.schema([column.field(self._pa) for column in self._columns])
        self._out = self._pa.parquet.ParquetWriter(self._target, schema, compression="zstd")

    def _shared_names(self, values: Sequence[Any]) -> list[str]:
        """Return the names of the values if all are dicts with the same names, else nothing."""
        taken = {self._wanted.key or KEY_COLUMN, TTL_COLUMN}
        if self._wanted.value or not values or not all(type(value) is dict for value in values):
            return []
        names = set(values[0])
        is_plain = all(type(name) is str for name in names) and not names & taken
        return list(values[0]) if is_plain and all(set(value) == names for value in values) else []

    def _row(self, key: Key, value: Any, ttl: float | None) -> Iterator[Any]:
        try:
            if self._fields and (type(value) is not dict or set(value) != set(self._fields)):
                raise UsageError(
                    "its columns differ from those of the first records "
                    f"({', '.join(self._fields)}); use jsonl, or --value COLUMN for JSON in one "
                    "column"
                )
            content = [value[name] for name in self._fields] if self._fields else [value]
            cells = [key, *content, None if ttl is None else float(ttl)]
            columns = zip(self._columns, cells, strict=True)
            return iter([column.cell(value) for column, value in columns])
        except UsageError as error:
            raise UsageError(f"key {key!r}: {error}", key=key) from None


def _weight(value: Any) -> int:
    """Return the approximate size of a value in bytes."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list | tuple) else 16


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
