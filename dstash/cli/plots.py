"""Plots of a load test, with matplotlib (``dstash[plot]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dstash.cli.failures import naming
from dstash.cli.histogram import Histogram
from dstash.cli.workload import Record

#: Percentiles as fractions: 1/100 of the calls are slower than p99.
_SLOWER_FRACTIONS: Final = (2, 4, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def draw_load(record: Record, title: str, file: Path) -> None:
    """Draw latency by percentile and throughput over time; the suffix decides the file format."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for kind, histogram in sorted(record.kinds.items()):
        _draw_percentiles(left, kind, histogram)
    left.set(xscale="log", yscale="log", xlabel="percentile", ylabel="milliseconds")
    shown = _SLOWER_FRACTIONS[::3]
    left.set_xticks(shown, [f"{100 - 100 / fraction:g}" for fraction in shown])
    left.minorticks_off()
    left.legend()
    _draw_timeline(right, record)
    with naming(file):
        figure.savefig(file, dpi=120)


def _draw_percentiles(axes: Axes, kind: str, histogram: Histogram) -> None:
    fractions = [fraction for fraction in _SLOWER_FRACTIONS if fraction <= histogram.count]
    times = [histogram.percentile(100 - 100 / n) / 1000 for n in fractions]
    axes.plot(fractions, times, marker="o", label=kind)


def _draw_timeline(axes: Axes, record: Record) -> None:
    seconds = range(1, len(record.timeline) + 1)
    axes.plot(seconds, [second.calls for second in record.timeline], color="black")
    axes.set(xlabel="second", ylabel="calls per second", ylim=(0, None))
    times = axes.twinx()
    for name, style in (("p50", "--"), ("p99", ":")):
        values = [getattr(second, name) / 1000 for second in record.timeline]
        times.plot(seconds, values, style, color="tab:red", label=name)
    times.set_ylabel("milliseconds", color="tab:red")
    times.set_ylim(0, None)
    times.legend()
