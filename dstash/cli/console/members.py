"""The table of members in ``dstash status``, as wide as the terminal is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size
from typing import Any, Final

from dstash.cli.console import output
from dstash.cli.console.repairs import maintenance_of
from dstash.cli.console.verdict import problems
from dstash.cli.units import rough_duration, size

_COLUMNS: Final = (
    "id", "address", "zone", "weight", "state", "health", "maintenance", "records", "used", "free",
    "up", "version",
)  # fmt: skip
#: Columns that are shown only if members differ in them, because a line must fit on a screen.
_SHOWN_IF_DIFFERENT: Final = ("weight", "version")
#: Columns that are left out on a narrow screen, in this order.
_DISPENSABLE: Final = (
    "zone", "free", "version", "weight", "address", "maintenance", "used", "up", "records", "state",
)  # fmt: skip
#: Lines of a screen that are neither members nor above the table: its frame, and the prompt.
_OTHER_LINES: Final = 6


def show_members(members: Sequence[Mapping[str, Any]], lines_above: int) -> None:
    """Print a table. If it does not fit on the terminal, healthy members are left out.

    Args:
        lines_above: the lines of the screen that are taken.
    """
    shown = list(members)
    if sys.stdout.isatty():
        room = max(get_terminal_size().lines - _OTHER_LINES - lines_above, 1)
        shown = sorted(shown, key=lambda member: not problems(member))
        shown = shown[: max(room, sum(bool(problems(member)) for member in shown))]
    columns = [column for column in _COLUMNS if _is_worth_showing(column, members)]
    rows = [_row(member) for member in shown]
    fitting = _fitted(columns, rows)
    output.table(fitting, [[row[column] for column in fitting] for row in rows])
    if "maintenance" in columns and "maintenance" not in fitting:
        for member in shown:
            if text := maintenance_of(member):
                output.wrapped(f"{member['id']}: {text}")
    if len(shown) < len(members):
        output.line(f"and {len(members) - len(shown)} more, all ok")


def _is_worth_showing(column: str, members: Sequence[Mapping[str, Any]]) -> bool:
    if column == "maintenance":
        return any(map(maintenance_of, members))
    if column not in _SHOWN_IF_DIFFERENT:
        return True
    return len({member.get(column) for member in members} - {None}) > 1


def _row(member: Mapping[str, Any]) -> dict[str, str]:
    shown = dict(member)
    shown["address"] = member["address"].removeprefix("tcp://")
    shown["health"] = ", ".join(problems(member)).removeprefix("is ") or "ok"
    shown["maintenance"] = maintenance_of(member)
    shown["used"] = size(member.get("used_bytes"))
    shown["free"] = size(member.get("free_bytes"))
    shown["up"] = rough_duration(member.get("uptime_s"))
    return {column: output.cell(shown.get(column)) for column in _COLUMNS}


def _fitted(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> list[str]:
    """Return the columns that fit on a line; if they do not, the health becomes short first."""
    fitting, width = list(columns), output.width()
    if width is None or _width(fitting, rows) <= width:
        return fitting
    for row in rows:
        row["health"] = _short(row["health"])
    for column in _DISPENSABLE:
        if _width(fitting, rows) <= width:
            break
        fitting = [name for name in fitting if name != column]
    return fitting


def _width(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> int:
    cells = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    return sum(cells) + output.COLUMN_GAP * (len(columns) - 1)


def _short(health: str) -> str:
    """Return the health without its reason, which the verdict has."""
    known = ("ok", "not alive", "does not answer", "not synced", "not ready")
    return next((text for text in known if health.startswith(text)), "alert")
