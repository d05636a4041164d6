"""Output of the command line: data on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from shutil import get_terminal_size
from typing import Any, Final, TextIO

import typer

from dstash.cli import tagged
from dstash.errors import UsageError
from dstash.wire.keys import Key

Row = Sequence[str]

#: Spaces between the columns of a table without a frame.
COLUMN_GAP: Final = 2

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_BYTES: Final = re.compile(r"0x(?:[0-9a-f]{2})*")


def message(text: str) -> None:
    """Write a message to the user as one line on stderr.

    If stderr is closed or full, the message is lost, and the exit code still says what happened.
    """
    try:
        typer.echo(f"dstash: {' '.join(text.split())}", err=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Drop the rest of a stream that cannot be written.

    The interpreter flushes it again at its end, and would print an error and change the exit code.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def line(text: str) -> None:
    """Write one line of data, in UTF-8 regardless of the locale."""
    typer.echo(text.encode("utf-8", "backslashreplace"))


def json_line(value: Any) -> None:
    """Write one value as a line of JSON."""
    line(tagged.dumps(value))


class LineWriter:
    """Writes many lines of data through a buffer, without a system call for each."""

    def __init__(self) -> None:
        self._out = sys.stdout.buffer

    def write(self, text: str) -> None:
        """Write one line."""
        self._out.write(text.encode("utf-8", "backslashreplace") + b"\n")

    def flush(self) -> None:
        """Write all buffered lines."""
        self._out.flush()


def value_bytes(value: Any) -> bytes:
    """Return a value byte for byte; values that are neither text nor bytes as JSON."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    return (value if isinstance(value, str) else tagged.dumps(value)).encode()


def exact(value: bytes) -> None:
    """Write bytes as they are, followed by a newline if stdout is a terminal."""
    typer.echo(value, nl=sys.stdout.isatty())


def ended(value: bytes) -> None:
    """Write bytes as they are, followed by a newline."""
    typer.echo(value)


def visible(value: Any) -> str:
    """Return a value as one line, with control characters escaped.

    Otherwise a stored text could control the terminal of the user.
    """
    text = value if isinstance(value, str) else tagged.dumps(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def key_text(key: Key) -> str:
    """Return a key as one line, unique per key, which ``parse_key_text`` reads.

    An integer is written in digits, bytes as ``0x00ff``, text as it is; text that could be taken
    for one of these, or that has characters to escape, is a JSON string.
    """
    if isinstance(key, bytes):
        return f"0x{key.hex()}"
    if isinstance(key, int):
        return str(key)
    is_printable = key.isprintable()
    is_other = key.startswith('"') or _INTEGER.fullmatch(key) or _BYTES.fullmatch(key)
    if is_printable and not is_other and key == key.strip():
        return key
    return json.dumps(key, ensure_ascii=not is_printable)


def parse_key_text(text: str) -> Key:
    """Return the key that ``key_text`` has written as ``text``.

    Raises:
        UsageError: it begins with a quote, but is not a JSON string.
    """
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BYTES.fullmatch(text):
        return bytes.fromhex(text.removeprefix("0x"))
    if not text.startswith('"'):
        return text
    try:
        key = json.loads(text)
    except ValueError as error:
        raise UsageError(f"key {text} is not a JSON string: {error}") from None
    if not isinstance(key, str):
        raise UsageError(f"key {text} is not a JSON string")
    return key


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def table(columns: Row, rows: Iterable[Row]) -> None:
    """Print a table: with a frame on a terminal that is wide enough, else plain and untruncated."""
    shown = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *shown, strict=True)]
    framed_width = sum(widths) + 3 * len(widths) + 1
    if sys.stdout.isatty() and framed_width <= get_terminal_size().columns:
        _framed(columns, shown)
    else:
        _plain([columns, *shown], widths)


def _framed(columns: Row, rows: Sequence[Row]) -> None:
    from rich.console import Console  # slow to import
    from rich.table import Table
    from rich.text import Text

    framed = Table(*columns)
    for row in rows:
        framed.add_row(*map(Text, row))  # Text: rich must not parse markup in values
    Console().print(framed)


def _plain(rows: Iterable[Row], widths: Sequence[int]) -> None:
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line((" " * COLUMN_GAP).join(cells).rstrip())


def cell(value: Any) -> str:
    """Return a value as the cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)


def width() -> int | None:
    """Return the columns of the terminal; None in a pipe, unless the variable COLUMNS is set."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return get_terminal_size().columns
    return None


def wrapped(text: str) -> int:
    """Write a text as lines that fit on the terminal, and return their number."""
    columns = width()
    lines = [text]
    if columns is not None:
        lines = textwrap.wrap(
            text, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    for part in lines:
        line(part)
    return len(lines)
