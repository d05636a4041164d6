"""Output of the command line: data on stdout, messages on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from shutil import get_terminal_size
from typing import Any

import typer

from dstash.cli import tagged

Row = Sequence[str]


def message(text: str) -> None:
    """Write a message to the user as one line on stderr."""
    typer.echo(f"dstash: {' '.join(text.split())}", err=True)


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
        line("  ".join(cells).rstrip())
