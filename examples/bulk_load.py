"""Load a CSV file of any size in bounded memory, and report invalid rows.

    dstash dev up && python examples/bulk_load.py people.csv --index people --key id

``batch_put`` takes an iterable: it reads some rows, sends them to all replicas, and reads the
next ones, so the file never has to fit in memory. Loading the same file again is safe. (Without
conversion or checks of rows, ``dstash import INDEX FILE`` is enough.)
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from dstash import Client
from dstash.errors import DStashError


class Skipped(NamedTuple):
    """A row that was not loaded."""

    line: int
    why: str


def rows(file: TextIO, key: str, skipped: list[Skipped]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, row) of valid rows; add the other rows to ``skipped``."""
    reader = csv.DictReader(file, restkey="")
    if key not in (reader.fieldnames or ()):
        raise SystemExit(f"there is no column {key!r}; there are {reader.fieldnames}")
    for row in reader:
        why = problem(row, key)
        if why is None:
            yield row[key], {name: number_or_text(text) for name, text in row.items()}
        else:
            skipped.append(Skipped(reader.line_num, why))


def problem(row: dict[str, Any], key: str) -> str | None:
    """Return why a row is invalid, or None."""
    if "" in row:
        return "more fields than the first line has"
    if None in row.values():
        return "fewer fields than the first line has"
    return None if row[key] else f"no {key}"


def number_or_text(text: str) -> int | float | str:
    """Return a field as a number if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main() -> int:
    """Load a file; return 0 if every row was stored."""
    parser = argparse.ArgumentParser(description="Load a CSV file into a dstash index.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--index", default="csv")
    parser.add_argument("--key", default="id", help="the column that has the key")
    options = parser.parse_args()
    skipped: list[Skipped] = []
    with Client(timeout=30) as client, options.file.open(newline="", encoding="utf-8") as file:
        result = client.batch_put(
            options.index, rows(file, options.key, skipped), on_error="return"
        )
    for line, why in skipped:
        sys.stderr.write(f"line {line}: {why}\n")
    for key, error in result.errors.items():
        sys.stderr.write(f"{key!r}: {result.outcomes[key]}: {error}\n")
    print(f"{result.stored} stored, {len(skipped)} skipped, {len(result.outcomes)} not stored")
    return 0 if result and not skipped else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (DStashError, OSError) as error:
        sys.exit(f"bulk_load: {error}")
