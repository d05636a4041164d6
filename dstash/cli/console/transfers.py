"""The progress of a topology change: a bar for each peer that gains partitions, or JSON lines."""

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

_POLL_INTERVAL_S: Final = 0.5
#: Short, so that a peer that hangs does not delay the bars.
_STATUS_TIMEOUT_S: Final = 2.0
#: How long the cluster may leave requests unanswered before the watch ends with an error.
_LOST_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """The partitions that one peer gains in a topology change, and its progress.

    ``rate`` is in bytes per second; ``left`` in seconds, None if there is no estimate yet.
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
    """Return the progress of every peer that gains partitions."""
    members = {member["id"]: member for member in status["members"]}
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
    """Show transfers until the topology change has ended."""
    if as_json or not sys.stdout.isatty():
        _each(client, _print_json)
    else:
        _draw(client)


def _each(client: Client, show: Callable[[Topology, list[Transfer], list[str]], None]) -> None:
    answered_at = time.monotonic()
    while True:
        try:
            status = client.status(timeout=_STATUS_TIMEOUT_S)
            topology = client.topology(timeout=_STATUS_TIMEOUT_S)
            answered_at = time.monotonic()
        except UsageError:
            raise
        except DStashError:
            if time.monotonic() - answered_at > _LOST_AFTER_S:
                raise
            continue
        show(topology, transfers(topology, status), status["waits"])
        if topology.change is None:
            return
        time.sleep(_POLL_INTERVAL_S)


def _print_json(topology: Topology, running: list[Transfer], waits: list[str]) -> None:
    change = None if topology.change is None else describe_change(topology.change)
    output.json_line(
        {
            "epoch": topology.epoch,
            "change": change,
            "transfers": [asdict(transfer) for transfer in running],
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
        TextColumn("{task.fields[progress]}"),
    )
    with Progress(*columns) as bars:
        tasks: dict[str, Any] = {}
        printed: set[str] = set()

        def show(topology: Topology, running: list[Transfer], waits: list[str]) -> None:
            # While the change is paused, the bars show that it is.
            is_paused = topology.change is not None and topology.change.paused
            for text in () if is_paused else waits:
                if text not in printed:
                    bars.console.print(text, markup=False, highlight=False)
            printed.update(waits)
            for transfer in running:
                peer, total = transfer.peer, transfer.partitions
                if peer not in tasks:
                    tasks[peer] = bars.add_task(peer, total=total, progress="")
                progress = _progress(topology, transfer)
                bars.update(tasks[peer], total=total, completed=transfer.done, progress=progress)
            if topology.change is None:
                for task in tasks.values():
                    bars.update(task, completed=bars.tasks[task].total, progress="complete")

        _each(client, show)
    output.message("no topology change is running")


def _progress(topology: Topology, transfer: Transfer) -> str:
    if topology.change is not None and topology.change.paused:
        return "paused"
    if not transfer.alive:
        return "is not alive"
    if transfer.done == transfer.partitions:
        return "complete"
    left = "" if transfer.left is None else f", {duration(transfer.left)} left"
    return f"{transfer.records:,} records, {size(transfer.rate)}/s{left}"
