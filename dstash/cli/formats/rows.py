"""One record of a file, good or bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dstash.errors import UsageError
from dstash.limits import MIB, check_ttl
from dstash.wire.keys import Key, encode_key
from dstash.wire.values import TypeRegistry

#: No line is read into memory beyond this. A value of 8 MiB fits, whatever JSON makes of it.
MAX_LINE_BYTES: Final = 64 * MIB

_TYPES: Final = TypeRegistry()
_FIELDS: Final = frozenset({"key", "value", "ttl"})


class Row(NamedTuple):
    """A record, and the number of the line (or record) it began in."""

    line: int
    key: Key
    value: Any
    ttl: float | None
    size: int


class BadRow(NamedTuple):
    """A line that holds no record, and why."""

    line: int
    text: str


@dataclass(frozen=True)
class Columns:
    """Which columns of a CSV or parquet file are what, and whether keys are whole numbers."""

    key: str | None = None
    value: str | None = None
    as_int: bool = False

    def refuse_names(self, form: str) -> None:
        """Raise ``UsageError`` if columns are named for a format that has none."""
        if self.key or self.value:
            raise UsageError(
                f"--key and --value name columns of CSV and parquet; the format is {form}"
            )


def checked(line: int, fields: Any, columns: Columns) -> Row:
    """Return the record of a mapping with ``key``, ``value`` and perhaps ``ttl``.

    Everything that a peer would refuse is refused here, while the line is still known.
    """
    if type(fields) is not dict:
        raise UsageError(f"not an object with key and value, but {type(fields).__name__}")
    absent = [name for name in ("key", "value") if name not in fields]
    if absent:
        raise UsageError(f"no {absent[0]!r} in it")
    extra = sorted(map(str, fields.keys() - _FIELDS))
    if extra:
        raise UsageError(f"unknown field {extra[0]!r}; allowed are key, value, ttl")
    return record(line, fields["key"], fields["value"], fields.get("ttl"), columns)


def record(line: int, key: Any, value: Any, ttl: Any, columns: Columns) -> Row:
    """Return a record whose parts are within all limits."""
    if columns.as_int and type(key) is str:
        key = _whole_number(key)
    encoded = encode_key(key)
    check_ttl(ttl)
    return Row(line, key, value, ttl, len(encoded) + len(_TYPES.encode(value)))


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"key {text!r} is not a whole number") from None
