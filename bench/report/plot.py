"""The plot of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.parts import batches, clients, growth
from bench.work import Case, find

_COLOURS: Final = {
    "redis": "tab:red",
    "redis cluster": "tab:orange",
    "memcached": "tab:green",
    "dstash N=1": "tab:cyan",
    "dstash N=3 one": "tab:blue",
    "dstash N=3 quorum": "tab:purple",
    "dstash N=3 all": "tab:pink",
    "lmdb": "tab:gray",
    "echo": "black",
}


def draw(cases: Sequence[Case], file: Path) -> None:
    """Draw the figures into a file; its suffix decides the format."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw_batches(axes[0][0], cases)
    _draw_sizes(axes[0][1], cases)
    _draw_clients(axes[1][0], cases)
    _draw_growth(axes[1][1], cases)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def _draw_batches(axes: Axes, cases: Sequence[Case]) -> None:
    axes.set(
        title=f"one batch of {batches.KEYS:,} x {batches.VALUE_BYTES} B", xlabel="milliseconds"
    )
    height = 0.4
    names = [name for name in _COLOURS if find(cases, batches.lookup(), name)]
    for shift, work in ((0.0, batches.lookup()), (height, batches.put())):
        for place, name in enumerate(names):
            case = find(cases, work, name)
            if case is not None:
                alpha = 1.0 if not shift else 0.5
                width, colour = case.middle * 1000, _COLOURS[name]
                axes.barh(place + shift, width, height=height, color=colour, alpha=alpha)
    axes.set_yticks([place + height / 2 for place in range(len(names))], names)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.text(0.99, 0.02, "solid: lookup, pale: put", ha="right", transform=axes.transAxes)


def _draw_sizes(axes: Axes, cases: Sequence[Case]) -> None:
    axes.set(title="lookup of values of 100 B", xlabel="keys in a batch", ylabel="us a key")
    wanted = [
        case
        for case in cases
        if (case.work.action, case.work.value_bytes) == ("lookup", batches.VALUE_BYTES)
        and not case.work.records
    ]
    _draw_lines(
        axes, wanted, lambda work: work.keys, lambda case: case.middle / case.work.keys * 1e6
    )


def _draw_clients(axes: Axes, cases: Sequence[Case]) -> None:
    title = f"lookups by several clients, {clients.KEYS} keys a batch"
    axes.set(title=title, xlabel="clients", ylabel="keys a second")
    wanted = [case for case in cases if case.work.action == clients.lookups(1).action]
    _draw_lines(axes, wanted, lambda work: work.clients, lambda case: case.middle)


def _draw_growth(axes: Axes, cases: Sequence[Case]) -> None:
    title = f"lookup of {batches.KEYS:,} keys among more and more"
    axes.set(title=title, xlabel="records on each peer", ylabel="milliseconds")
    wanted = [case for case in cases if case.work.records and case.store == growth.STORE]
    wanted = [case for case in wanted if case.work.action == "lookup"]
    _draw_lines(axes, wanted, lambda work: work.records, lambda case: case.middle * 1000)
    axes.set_yscale("linear")
    axes.set_ylim(0, None)


def _draw_lines(axes: Axes, cases: Iterable[Case], x: Any, y: Any) -> None:
    lines: dict[str, dict[float, float]] = {}
    for case in cases:
        lines.setdefault(case.store, {}).setdefault(x(case.work), y(case))
    for name, points in lines.items():
        across, up = zip(*sorted(points.items()), strict=True)
        axes.plot(across, up, marker="o", color=_COLOURS.get(name), label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if lines:
        axes.legend(fontsize="small")
