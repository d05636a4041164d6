"""Commands that look at the cluster as a whole."""

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

_PAUSE: Final = 0.25
#: One question of a health check; a peer that hangs must not use up the whole wait.
_PATIENCE: Final = 2.0


def status(ctx: typer.Context) -> None:
    """Say whether all is well, and show the cluster and what each member holds.

    It also says how many keys are known to be missing on a peer. Reads at quorum find these keys,
    and the other peers bring them to it.
    """
    run = invocation.of(ctx)
    with run.client() as client:
        facts = client.status()
    if run.as_json:
        output.json_line(facts)
        return
    output.line(verdict(unhealthy_because(facts), shortfalls(facts)))
    output.line(_summary(facts))
    for waits in facts["waits"]:
        output.line(f"waits: {waits}")
    _show_members(facts["members"])


def health(
    ctx: typer.Context,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Wait so long for it to be healthy.")
    ] = 0,
) -> None:
    """Say whether all members are alive, synced and answering; exit code 8 if not.

    Keys that a peer still has to get from the others are named, and are no reason for exit code 8:
    reads and writes at quorum are complete without them.
    """
    run = invocation.of(ctx)
    deadline = time.monotonic() + wait
    with run.client() as client:
        reasons, facts = _ask(client)
        while reasons and time.monotonic() < deadline:
            time.sleep(min(_PAUSE, max(0.0, deadline - time.monotonic())))
            reasons, facts = _ask(client)
    if run.as_json:
        known = {name: facts[name] for name in ("missing", "differing")}
        output.json_line({"healthy": not reasons, "reasons": reasons} | known)
    elif not reasons:
        output.line(verdict(reasons, shortfalls(facts)))
    if reasons:
        raise Unhealthy(verdict(reasons, shortfalls(facts)))


def where(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
) -> None:
    """Show which partition a key is in, and which peers hold it, in rank order."""
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
    output.table(columns, [(str(rank), *_cells(one, columns[1:])) for rank, one in replicas])


def unhealthy_because(facts: Mapping[str, Any]) -> list[str]:
    """Return what keeps a cluster with this status from being healthy; nothing if it is."""
    members = facts["members"]
    reasons = [f"{one['id']} {problem}" for one in members for problem in _problems(one)]
    if not facts["formed"]:
        reasons.append(f"{len(members)} of {facts['min_peers']} peers have joined")
    return reasons


def verdict(reasons: Sequence[str], notes: Sequence[str] = ()) -> str:
    """Say in one line whether all is well, and what is known to be missing."""
    state = f"unhealthy: {'; '.join(reasons)}" if reasons else "healthy"
    return ", ".join((state, *notes))


def shortfalls(facts: Mapping[str, Any]) -> list[str]:
    """Return what replicas are known to miss in a cluster with this status."""
    notes = [_shortfall(missing) for missing in facts["missing"]]
    if count := facts["differing"]:
        differ = "1 partition differs" if count == 1 else f"{count:,} partitions differ"
        notes.append(f"{differ} between replicas")
    return notes


def _shortfall(missing: Mapping[str, Any]) -> str:
    keys, partitions = missing["keys"], missing["partitions"]
    amounts = [f"{keys:,} {'key' if keys == 1 else 'keys'}"] if keys else []
    if partitions:
        named = "1 partition" if partitions == 1 else f"{partitions:,} partitions"
        amounts.append(f"some keys of {named}")
    return f"{' and '.join(amounts)} still missing on {missing['peer']}"


def _ask(client: Client) -> tuple[list[str], Mapping[str, Any]]:
    try:
        facts = client.status(timeout=_PATIENCE)
    except DStashError as error:
        if error.exit_code == 2:  # a wrong setting will not get better
            raise
        return [str(error)], {"missing": [], "differing": 0}
    return unhealthy_because(facts), facts


def _problems(member: Mapping[str, Any]) -> list[str]:
    if not member["alive"]:
        return ["is not alive"]
    if not member["answers"]:
        return ["does not answer"]
    if not member["synced"]:
        return ["is not synced"]
    why = member.get("why_not_ready", "")
    return [*([f"is not ready: {why}"] if why else []), *member.get("alerts", ())]


_COLUMNS: Final = (
    "id", "address", "zone", "weight", "state", "health", "maintenance", "records", "used", "free",
    "up", "version",
)  # fmt: skip
#: Shown only where members differ in it: a line has to fit on a screen.
_MOSTLY_ALIKE: Final = ("weight", "version")
#: Lines of a screen that are not members: the two above, the table's frame, and the prompt.
_NOT_MEMBERS: Final = 8


def _show_members(members: Sequence[Mapping[str, Any]]) -> None:
    """Print a table; what does not fit on a terminal are members that are well."""
    columns = [column for column in _COLUMNS if _is_worth_showing(column, members)]
    shown = list(members)
    if sys.stdout.isatty():
        room = max(get_terminal_size().lines - _NOT_MEMBERS, 1)
        shown = sorted(shown, key=lambda one: not _problems(one))
        shown = shown[: max(room, sum(bool(_problems(one)) for one in shown))]
    output.table(columns, [_member_row(member, columns) for member in shown])
    if len(shown) < len(members):
        output.line(f"and {len(members) - len(shown)} more, all ok")


def _is_worth_showing(column: str, members: Sequence[Mapping[str, Any]]) -> bool:
    if column == "maintenance":
        return any(map(maintenance_of, members))
    return column not in _MOSTLY_ALIKE or len({one.get(column) for one in members} - {None}) > 1


def _member_row(member: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    shown = dict(member)
    shown["address"] = member["address"].removeprefix("tcp://")
    shown["health"] = ", ".join(_problems(member)).removeprefix("is ") or "ok"
    shown["maintenance"] = maintenance_of(member)
    shown["used"] = size(member.get("used_bytes"))
    shown["free"] = size(member.get("free_bytes"))
    shown["up"] = rough_duration(member.get("uptime_s"))
    return _cells(shown, columns)


def _cells(facts: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [_cell(facts.get(column)) for column in columns]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)


def _summary(facts: Mapping[str, Any]) -> str:
    members = facts["members"]
    alive = sum(bool(member["alive"]) for member in members)
    state = "formed" if facts["formed"] else f"waiting for {facts['min_peers']} peers"
    change = "" if facts.get("change") is None else ", change of placement under way"
    return (
        f"cluster {facts['cluster']}: {state}, {alive} of {len(members)} members alive, "
        f"{facts['replicas']} replicas, epoch {facts['epoch']}{change}"
    )
