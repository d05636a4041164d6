"""The command ``dstash bench``: load a cluster and report the latency of its answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dstash.cli import invocation
from dstash.cli.console import output
from dstash.cli.console.load_progress import load_progress
from dstash.cli.histogram import Histogram
from dstash.cli.invocation import Interrupted, PartlyFailed
from dstash.cli.workload import PERCENTILES, Distribution, Load, Record, Shape, Work
from dstash.errors import UsageError

_HEADINGS: Final = (
    "call",
    "calls",
    "per s",
    "mean ms",
    *(f"p{percentile:g} ms" for percentile in PERCENTILES),
)


def bench(
    ctx: typer.Context,
    work: Annotated[
        Work,
        typer.Argument(
            metavar="put|get|mixed|batch", help="Kind of calls; mixed and batch have 90 % reads."
        ),
    ],
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=100_000, help="Concurrent calls.")
    ] = 16,
    size: Annotated[int, typer.Option("--size", min=0, help="Bytes per value.")] = 100,
    keys: Annotated[int, typer.Option("--keys", min=1, help="Number of different keys.")] = 10_000,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Keys per call, for batch.")] = 1000,
    distribution: Annotated[
        Distribution, typer.Option("--distribution", help="Distribution of calls over keys.")
    ] = Distribution.UNIFORM,
    duration: Annotated[
        float, typer.Option("--duration", metavar="SECONDS", min=0.1, help="Duration of the run.")
    ] = 10.0,
    index: Annotated[
        str, typer.Option("--index", help="Index to use; its keys expire after an hour.")
    ] = ("bench"),
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw latency and throughput.")
    ] = None,
) -> None:
    """Measure latency and throughput of a cluster.

    The global options --read and --write set the consistency levels.
    """
    run = invocation.of(ctx)
    if plot is not None:
        _check_plot()
    shape = Shape(work, index, duration, concurrency, size, keys, batch, distribution)
    record, finished = _measure(run, shape)
    _report(run, shape, record)
    if plot is not None:
        from dstash.cli.plots import draw_load

        draw_load(record, f"dstash bench {work}, {concurrency} at once, {size} B", plot)
    if not finished:
        raise Interrupted(f"interrupted after {record.seconds:.1f} s")
    if record.errors:
        counts = ", ".join(f"{count} x {name}" for name, count in record.errors.most_common())
        raise PartlyFailed(f"some calls failed: {counts}")


def _check_plot() -> None:
    try:
        import matplotlib  # noqa: F401  # only to check that it is installed
    except ImportError:
        raise UsageError(
            "--plot needs the package matplotlib: pip install 'dstash[plot]'"
        ) from None


def _measure(run: invocation.Invocation, shape: Shape) -> tuple[Record, bool]:
    """Return the record of the run, and whether it ran for the full duration."""
    import asyncio  # slow to load

    loads: list[Load] = []
    try:
        asyncio.run(_work(run, shape, loads))
    except KeyboardInterrupt:
        if not loads:
            raise
        return loads[0].record, False
    return loads[0].record, True


async def _work(run: invocation.Invocation, shape: Shape, loads: list[Load]) -> None:
    from dstash.client.asyncio import AsyncClient

    async with AsyncClient.from_settings(run.settings()) as client:
        with load_progress(shape.seconds) as tick:
            load = Load(client, shape, tick)
            await load.fill()
            loads.append(load)
            await load.run()


def _report(run: invocation.Invocation, shape: Shape, record: Record) -> None:
    if run.as_json:
        output.json_line(_as_json(run, shape, record))
        return
    rows = []
    for kind, histogram in sorted(record.kinds.items()):
        times = [histogram.mean(), *map(histogram.percentile, PERCENTILES)]
        rate = histogram.count / record.seconds
        rows.append(
            [kind, f"{histogram.count:,}", f"{rate:,.0f}", *(f"{us / 1000:.2f}" for us in times)]
        )
    output.table(_HEADINGS, rows)


def _as_json(run: invocation.Invocation, shape: Shape, record: Record) -> dict[str, Any]:
    settings = run.settings()
    levels = {"read": str(settings.read), "write": str(settings.write)}
    plain = {
        name: value if isinstance(value, int | float) else str(value)
        for name, value in asdict(shape).items()
    }
    return (
        plain
        | levels
        | {
            "ran_seconds": round(record.seconds, 3),
            "errors": dict(record.errors),
            "calls": {kind: _times(times, record.seconds) for kind, times in record.kinds.items()},
            "timeline": [second._asdict() for second in record.timeline],
        }
    )


def _times(histogram: Histogram, seconds: float) -> dict[str, float]:
    """Return the rate and the times of one kind of call; times are in microseconds."""
    return {
        "calls": histogram.count,
        "per_second": round(histogram.count / seconds, 1),
        "mean": round(histogram.mean(), 1),
        **{f"p{p:g}": histogram.percentile(p) for p in PERCENTILES},
        "max": histogram.largest,
    }
