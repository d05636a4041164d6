"""The progress of a load: a line on stderr, updated every second, only if stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dstash.cli.workload import Second


@contextmanager
def load_progress(seconds: float) -> Iterator[Callable[[Second], None]]:
    """Show a bar of ``seconds`` steps, with the throughput and latency of the last second."""
    if not sys.stderr.isatty():
        yield lambda second: None
        return
    from rich.console import Console  # slow to import
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("storing keys", total=seconds)

        def show(second: Second) -> None:
            p50, p99 = second.p50 / 1000, second.p99 / 1000
            text = f"{second.calls:,}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms"
            bar.update(task, advance=1, description=text)

        yield show
