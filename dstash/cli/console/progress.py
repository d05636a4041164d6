"""A progress bar with rate and time left on stderr, only if stderr is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

#: Called with the number of records done.
Progress = Callable[[int], None]

_REFRESH_INTERVAL_S: Final = 0.1


@contextmanager
def progress_bar(
    title: str, total: int | None, done: Callable[[], int] | None = None
) -> Iterator[Progress]:
    """Show a bar while the block runs.

    Args:
        title: description of the work.
        total: amount of work; None if unknown.
        done: returns the completed part of ``total``, if that is not the number of records.
    """
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console  # slow to import
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[records]:,} records"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, records=0, rate=0.0)
        began = shown = time.monotonic()
        last = 0

        def show(records: int) -> None:
            nonlocal shown, last
            now = time.monotonic()
            # Update only on progress: rich estimates the time left from the steps.
            if now - shown >= _REFRESH_INTERVAL_S and records != last:
                shown, last = now, records
                rate = records / (now - began)
                completed = records if done is None else done()
                bar.update(task, completed=completed, records=records, rate=rate)

        yield show


def _silent(records: int) -> None:
    """Show nothing."""
