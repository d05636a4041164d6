"""The rows of a file: records, and lines that hold no valid record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dstash.errors import UsageError
from dstash.limits import MIB, check_ttl
from dstash.wire.keys import Key, encode_key
from dstash.wire.values import TypeRegistry

#: A longer line is not read into memory. A value of 8 MiB fits in any JSON encoding.
MAX_LINE_BYTES: Final = 64 * MIB

#: The first bytes of compressed files, and the suffix of their names.
_COMPRESSED: Final = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_TYPES: Final = TypeRegistry()
_FIELDS: Final = frozenset({"key", "value", "ttl"})


class Row(NamedTuple):
    """A record, and the number of the line (or record) where it begins."""

    line: int
    key: Key
    value: Any
    ttl: float | None
    size: int


class BadRow(NamedTuple):
    """A line that holds no valid record, and the reason."""

    line: int
    text: str


@dataclass(frozen=True)
class Columns:
    """How a file with columns is read or written: CSV, TSV or parquet.

    Attributes:
        key: the column of the key.
        value: the column of the value.
        as_int: keys are integers; this applies to every format.
        delimiter: the character between cells of CSV or TSV; None for that of the format.
    """

    key: str | None = None
    value: str | None = None
    as_int: bool = False
    delimiter: str | None = None

    def check_for(self, form: str) -> None:
        """Raise ``UsageError`` if an option does not apply to a format."""
        if self.delimiter and form not in ("csv", "tsv"):
            raise UsageError(f"--delimiter applies to CSV and TSV; the format is {form}")
        if (self.key or self.value) and form not in ("csv", "tsv", "parquet"):
            raise UsageError(
                f"--key and --value name columns of CSV, TSV and parquet; the format is {form}"
            )
        if self.key and self.key == self.value:
            raise UsageError(f"--key and --value name the same column, {self.key!r}")


def not_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    """Return what is wrong with text that is not UTF-8, and how to convert it."""
    packed = next((name for magic, name in _COMPRESSED.items() if data.startswith(magic)), None)
    if packed:
        return f"not text but {packed} data; decompress it, or give the file a name that ends so"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "not UTF-8 but UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"
    return (
        f"not UTF-8 text (byte 0x{data[error.start]:02x} in column {error.start + 1}); "
        "if it is Latin-1, convert it: iconv -f LATIN1 -t UTF-8"
    )


def checked(line: int, fields: Any, columns: Columns) -> Row:
    """Return the record of a mapping with ``key``, ``value`` and optionally ``ttl``.

    Refuse here what a peer would refuse, because the line number is known.
    """
    if type(fields) is not dict:
        raise UsageError(f"{type(fields).__name__} instead of an object with key and value")
    absent = [name for name in ("key", "value") if name not in fields]
    if absent:
        raise UsageError(f"field {absent[0]!r} is missing")
    extra = sorted(map(str, fields.keys() - _FIELDS))
    if extra:
        raise UsageError(f"unknown field {extra[0]!r}; allowed are key, value, ttl")
    return record(line, fields["key"], fields["value"], fields.get("ttl"), columns)


def record(line: int, key: Any, value: Any, ttl: Any, columns: Columns) -> Row:
    """Return a record after checking its key, value and time to live against all limits."""
    if columns.as_int and type(key) is str:
        key = _whole_number(key)
    encoded = encode_key(key)
    check_ttl(ttl)
    return Row(line, key, value, ttl, len(encoded) + len(_TYPES.encode(value)))


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"key {text!r} is not an integer") from None
