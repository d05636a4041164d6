"""JSON lines: ``{"key": ..., "value": ..., "ttl": seconds}``, with tags for types JSON lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from dstash.cli import tagged
from dstash.cli.formats.rows import MAX_LINE_BYTES, BadRow, Columns, Row, checked, not_utf8
from dstash.errors import UsageError
from dstash.wire.keys import Key

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def read_jsonl(source: BinaryIO, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield one record per line. Empty lines are skipped."""
    for number, line in enumerate(_lines(source), start=1):
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.strip():
            yield _parsed(number, line, columns)


def _lines(source: BinaryIO) -> Iterator[bytes]:
    while line := source.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = source.readline(MAX_LINE_BYTES + 1)  # the rest belongs to the same line


def _parsed(number: int, line: bytes, columns: Columns) -> Row | BadRow:
    if len(line) > MAX_LINE_BYTES:
        return BadRow(number, f"longer than {MAX_LINE_BYTES} bytes, the maximum")
    try:
        return checked(number, tagged.loads(line.decode()), columns)
    except UnicodeDecodeError as error:
        return BadRow(number, not_utf8(line, error))
    except UsageError as error:
        return BadRow(number, str(error))


class JsonlWriter:
    """Writes one record per line."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target

    def write(self, key: Key, value: object, ttl: float | None) -> None:
        """Write one record."""
        fields: dict[str, Any] = {"key": key, "value": value}
        if ttl is not None:
            fields["ttl"] = ttl
        self._target.write(tagged.dumps(fields).encode() + b"\n")

    def finish(self) -> None:
        """Do nothing: no line is buffered."""
