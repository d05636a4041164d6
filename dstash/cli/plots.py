"""Pictures of a load. Needs matplotlib, which comes with ``dstash[plot]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dstash.cli.workload import Record

#: One part in so many was slower.
_SLOWER: Final = (2, 4, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def draw_load(record: Record, title: str, file: Path) -> None:
    """Draw latency by percentile, and throughput over time, into a file of the type it names."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for kind, histogram in sorted(record.kinds.items()):
        _draw_percentiles(left, kind, histogram)
    left.set(xscale="log", yscale="log", xlabel="percentile", ylabel="milliseconds")
    shown = _SLOWER[::3]
    left.set_xticks(shown, [f"{100 - 100 / one:g}" for one in shown])
    left.minorticks_off()
    left.legend()
    _draw_timeline(right, record)
    figure.savefig(file, dpi=120)


def _draw_percentiles(axes: Axes, kind: str, histogram: Any) -> None:
    calls = histogram.get_total_count()
    steps = [one for one in _SLOWER if one <= calls]
    times = [histogram.get_value_at_percentile(100 - 100 / one) / 1000 for one in steps]
    axes.plot(steps, times, marker="o", label=kind)


def _draw_timeline(axes: Axes, record: Record) -> None:
    seconds = range(1, len(record.timeline) + 1)
    axes.plot(seconds, [one.calls for one in record.timeline], color="black")
    axes.set(xlabel="second", ylabel="calls per second", ylim=(0, None))
    times = axes.twinx()
    for name, style in (("p50", "--"), ("p99", ":")):
        values = [getattr(one, name) / 1000 for one in record.timeline]
        times.plot(seconds, values, style, color="tab:red", label=name)
    times.set_ylabel("milliseconds", color="tab:red")
    times.set_ylim(0, None)
    times.legend()
