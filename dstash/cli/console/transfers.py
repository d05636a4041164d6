"""How a change of placement goes: a bar per gaining peer, or lines of JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from dstash.cli.console import output
from dstash.cli.units import duration, size
from dstash.client.describe import describe_change
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.transitions import incoming
from dstash.errors import DStashError, UsageError

if TYPE_CHECKING:
    from dstash.client.blocking import Client

_EVERY: Final = 0.5
#: One question; a peer that hangs must not hold the bars up.
_PATIENCE: Final = 2.0
#: So long (seconds) nobody may answer before the watch gives up.
_LOST: Final = 60.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one peer gains by the change under way, in partitions, and how far it is.

    ``rate`` is in bytes a second; ``left`` in seconds, None while nobody can tell.
    """

    peer: str
    partitions: int
    done: int
    records: int
    bytes: int
    rate: int
    left: float | None
    alive: bool


def transfers(topology: Topology, status: Mapping[str, Any]) -> list[Transfer]:
    """Return how far every gaining peer is."""
    members = {one["id"]: one for one in status["members"]}
    return [
        _transfer(topology, peer, len(partitions), members.get(peer, {}))
        for peer, partitions in sorted(incoming(topology).items())
    ]


def _transfer(topology: Topology, peer: str, total: int, member: Mapping[str, Any]) -> Transfer:
    maintenance = member.get("maintenance", {})
    left = maintenance.get("streaming", 0) if maintenance.get("streaming_of") else total
    if topology.change is None or peer in topology.change.complete:
        left = 0
    return Transfer(
        peer,
        total,
        total - min(left, total),
        maintenance.get("streamed_records", 0),
        maintenance.get("streamed_bytes", 0),
        maintenance.get("streaming_bytes_per_second", 0),
        maintenance.get("streaming_seconds_left") if left else 0.0,
        bool(member.get("alive")),
    )


def follow(client: Client, *, as_json: bool) -> None:
    """Show transfers until no change is under way."""
    if as_json or not sys.stdout.isatty():
        _each(client, _print_json)
    else:
        _draw(client)


def _each(client: Client, show: Callable[[Topology, list[Transfer], list[str]], None]) -> None:
    heard = time.monotonic()
    while True:
        try:
            status = client.status(timeout=_PATIENCE)
            topology = client.topology(timeout=_PATIENCE)
            heard = time.monotonic()
        except UsageError:
            raise
        except DStashError:
            if time.monotonic() - heard > _LOST:
                raise
            continue
        show(topology, transfers(topology, status), status["waits"])
        if topology.change is None:
            return
        time.sleep(_EVERY)


def _print_json(topology: Topology, running: list[Transfer], waits: list[str]) -> None:
    change = None if topology.change is None else describe_change(topology.change)
    output.json_line(
        {
            "epoch": topology.epoch,
            "change": change,
            "transfers": [asdict(one) for one in running],
            "waits": waits,
        }
    )
    sys.stdout.flush()


def _draw(client: Client) -> None:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns) as bars:
        tasks: dict[str, Any] = {}
        told: set[str] = set()

        def show(topology: Topology, running: list[Transfer], waits: list[str]) -> None:
            is_paused = topology.change is not None and topology.change.paused  # the bars say so
            for text in () if is_paused else waits:
                if text not in told:
                    bars.console.print(text, markup=False, highlight=False)
            told.update(waits)
            for one in running:
                if one.peer not in tasks:
                    tasks[one.peer] = bars.add_task(one.peer, total=one.partitions, said="")
                said = _said(topology, one)
                bars.update(tasks[one.peer], total=one.partitions, completed=one.done, said=said)
            if topology.change is None:
                for task in tasks.values():
                    bars.update(task, completed=bars.tasks[task].total, said="complete")

        _each(client, show)
    output.message("no change is under way")


def _said(topology: Topology, one: Transfer) -> str:
    if topology.change is not None and topology.change.paused:
        return "paused"
    if not one.alive:
        return "is not alive"
    if one.done == one.partitions:
        return "complete"
    left = "" if one.left is None else f", {duration(one.left)} left"
    return f"{one.records:,} records, {size(one.rate)}/s{left}"
