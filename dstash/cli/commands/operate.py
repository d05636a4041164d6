"""Commands on the cluster as a whole: status, health and the placement of keys."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dstash.cli import invocation
from dstash.cli.arguments import HexKeys, IndexName, IntKeys, KeyText, parse_key
from dstash.cli.console import output
from dstash.cli.console.repairs import maintenance_of
from dstash.cli.invocation import Unhealthy
from dstash.cli.units import rough_duration, size
from dstash.errors import DStashError

if TYPE_CHECKING:
    from dstash.client.blocking import Client

_POLL_INTERVAL_S: Final = 0.25
#: Short, so that a peer that hangs does not use up the whole wait of a health check.
_STATUS_TIMEOUT_S: Final = 2.0


def status(ctx: typer.Context) -> None:
    """Show the health of the cluster, and a table of its members.

    The first line also counts the keys that are known to be missing on a peer. Quorum reads still
    find these keys, and the other peers send them to that peer.
    """
    run = invocation.of(ctx)
    with run.client() as client:
        cluster = client.status()
    if run.as_json:
        output.json_line(cluster)
        return
    output.line(verdict(unhealthy_because(cluster), shortfalls(cluster)))
    output.line(_summary(cluster))
    for text in cluster["waits"]:
        output.line(f"waits: {text}")
    for text in set_aside(cluster["members"]):
        output.line(text)
    _show_members(cluster["members"])


def health(
    ctx: typer.Context,
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Wait up to this long for a healthy cluster."),
    ] = 0,
) -> None:
    """Check that all members are alive, synced and answering; exit code 8 if not.

    Keys that a peer has yet to get from other peers are reported, but do not cause exit code 8:
    quorum reads and writes are complete without them.
    """
    run = invocation.of(ctx)
    deadline = time.monotonic() + wait
    with run.client() as client:
        reasons, cluster = _check(client)
        while reasons and time.monotonic() < deadline:
            time.sleep(min(_POLL_INTERVAL_S, max(0.0, deadline - time.monotonic())))
            reasons, cluster = _check(client)
    if run.as_json:
        known = {name: cluster[name] for name in ("missing", "differing")}
        output.json_line({"healthy": not reasons, "reasons": reasons} | known)
    elif not reasons:
        output.line(verdict(reasons, shortfalls(cluster)))
    if reasons:
        raise Unhealthy(verdict(reasons, shortfalls(cluster)))


def where(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
) -> None:
    """Show the partition of a key, and its replicas in rank order."""
    run = invocation.of(ctx)
    parsed = parse_key(key, as_int, as_hex)
    with run.client() as client:
        place = client.where(index, parsed)
    if run.as_json:
        output.json_line({"key": parsed} | place)
        return
    output.line(f"partition {place['partition']}")
    columns = ("rank", "id", "address", "zone", "alive")
    replicas = enumerate(place["replicas"], start=1)
    output.table(
        columns, [(str(rank), *_cells(replica, columns[1:])) for rank, replica in replicas]
    )


def unhealthy_because(cluster: Mapping[str, Any]) -> list[str]:
    """Return the reasons why a cluster with this status is unhealthy; empty if it is healthy."""
    members = cluster["members"]
    reasons = [f"{member['id']} {text}" for member in members for text in _problems(member)]
    if not cluster["formed"]:
        reasons.append(f"{len(members)} of {cluster['min_peers']} peers have joined")
    return reasons


def verdict(reasons: Sequence[str], notes: Sequence[str] = ()) -> str:
    """Return one line: whether the cluster is healthy, and notes on missing keys."""
    state = f"unhealthy: {'; '.join(reasons)}" if reasons else "healthy"
    return ", ".join((state, *notes))


def shortfalls(cluster: Mapping[str, Any]) -> list[str]:
    """Return notes on keys that replicas are known to miss in a cluster with this status."""
    notes = [_shortfall(missing) for missing in cluster["missing"]]
    if count := cluster["differing"]:
        differ = "1 partition differs" if count == 1 else f"{count:,} partitions differ"
        notes.append(f"{differ} between replicas")
    return notes


def set_aside(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each store that a member has set aside."""
    return [
        f"{member['id']} has set aside a store: {name} ({size(count)}); delete it when it is not "
        "needed"
        for member in members
        for name, count in member.get("set_aside", {}).items()
    ]


def _shortfall(missing: Mapping[str, Any]) -> str:
    keys, partitions = missing["keys"], missing["partitions"]
    amounts = [f"{keys:,} {'key' if keys == 1 else 'keys'}"] if keys else []
    if partitions:
        named = "1 partition" if partitions == 1 else f"{partitions:,} partitions"
        amounts.append(f"some keys of {named}")
    return f"{' and '.join(amounts)} still missing on {missing['peer']}"


def _check(client: Client) -> tuple[list[str], Mapping[str, Any]]:
    try:
        cluster = client.status(timeout=_STATUS_TIMEOUT_S)
    except DStashError as error:
        if error.exit_code == 2:  # a wrong setting: retrying is futile
            raise
        return [str(error)], {"missing": [], "differing": 0}
    return unhealthy_because(cluster), cluster


def _problems(member: Mapping[str, Any]) -> list[str]:
    if not member["alive"]:
        return ["is not alive"]
    if not member["answers"]:
        return ["does not answer"]
    if not member["synced"]:
        return ["is not synced"]
    reason = member.get("why_not_ready", "")
    return [*([f"is not ready: {reason}"] if reason else []), *member.get("alerts", ())]


_COLUMNS: Final = (
    "id", "address", "zone", "weight", "state", "health", "maintenance", "records", "used", "free",
    "up", "version",
)  # fmt: skip
#: Columns that are shown only if members differ in them, because a line must fit on a screen.
_SHOWN_IF_DIFFERENT: Final = ("weight", "version")
#: Lines of a screen that are not members: two lines above, the frame of the table, the prompt.
_OTHER_LINES: Final = 8


def _show_members(members: Sequence[Mapping[str, Any]]) -> None:
    """Print a table. If it does not fit on the terminal, healthy members are left out."""
    columns = [column for column in _COLUMNS if _is_worth_showing(column, members)]
    shown = list(members)
    if sys.stdout.isatty():
        room = max(get_terminal_size().lines - _OTHER_LINES, 1)
        shown = sorted(shown, key=lambda member: not _problems(member))
        shown = shown[: max(room, sum(bool(_problems(member)) for member in shown))]
    output.table(columns, [_member_row(member, columns) for member in shown])
    if len(shown) < len(members):
        output.line(f"and {len(members) - len(shown)} more, all ok")


def _is_worth_showing(column: str, members: Sequence[Mapping[str, Any]]) -> bool:
    if column == "maintenance":
        return any(map(maintenance_of, members))
    if column not in _SHOWN_IF_DIFFERENT:
        return True
    return len({member.get(column) for member in members} - {None}) > 1


def _member_row(member: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    shown = dict(member)
    shown["address"] = member["address"].removeprefix("tcp://")
    shown["health"] = ", ".join(_problems(member)).removeprefix("is ") or "ok"
    shown["maintenance"] = maintenance_of(member)
    shown["used"] = size(member.get("used_bytes"))
    shown["free"] = size(member.get("free_bytes"))
    shown["up"] = rough_duration(member.get("uptime_s"))
    return _cells(shown, columns)


def _cells(values: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [_cell(values.get(column)) for column in columns]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)


def _summary(cluster: Mapping[str, Any]) -> str:
    members = cluster["members"]
    alive = sum(bool(member["alive"]) for member in members)
    state = "formed" if cluster["formed"] else f"waiting for {cluster['min_peers']} peers"
    change = "" if cluster.get("change") is None else ", topology change running"
    return (
        f"cluster {cluster['cluster']}: {state}, {alive} of {len(members)} members alive, "
        f"{cluster['replicas']} replicas, epoch {cluster['epoch']}{change}"
    )
