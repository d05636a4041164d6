"""stdout is data, stderr is messages."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from shutil import get_terminal_size
from typing import Any

import typer

from dstash.cli import tagged

Row = Sequence[str]


def message(text: str) -> None:
    """Tell the user something, in one line on stderr."""
    typer.echo(f"dstash: {' '.join(text.split())}", err=True)


def line(text: str) -> None:
    """Write one line of data. Always UTF-8, whatever the locale says."""
    typer.echo(text.encode("utf-8", "backslashreplace"))


def json_line(value: Any) -> None:
    """Write one value as a line of JSON."""
    line(tagged.dumps(value))


class LineWriter:
    """Writes many lines of data, without a system call for each."""

    def __init__(self) -> None:
        self._out = sys.stdout.buffer

    def write(self, text: str) -> None:
        """Write one line."""
        self._out.write(text.encode("utf-8", "backslashreplace") + b"\n")

    def flush(self) -> None:
        """Hand everything on."""
        self._out.flush()


def exact(value: bytes) -> None:
    """Write bytes as they are; on a terminal a newline follows."""
    typer.echo(value, nl=sys.stdout.isatty())


def ended(value: bytes) -> None:
    """Write bytes as they are, and a newline."""
    typer.echo(value)


def visible(value: Any) -> str:
    """Return a value on one line, with control characters made visible.

    A stored text must not be able to steer the terminal of whoever looks at it.
    """
    text = value if isinstance(value, str) else tagged.dumps(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def table(columns: Row, rows: Iterable[Row]) -> None:
    """Print a table: framed on a terminal that is wide enough, plain and never cut off else."""
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
        framed.add_row(*map(Text, row))  # Text: a value is no markup
    Console().print(framed)


def _plain(rows: Iterable[Row], widths: Sequence[int]) -> None:
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line("  ".join(cells).rstrip())
