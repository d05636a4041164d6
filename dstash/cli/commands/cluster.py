"""``dstash cluster``: change where data is, look before, watch it, and steer it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dstash.cli import invocation
from dstash.cli.console import output, repairs, transfers
from dstash.cli.console.completion import candidate_ids, member_ids, peer_ids
from dstash.cli.units import parse_rate, size
from dstash.client.describe import describe_change
from dstash.cluster.topology import planning
from dstash.cluster.topology.planning import LossPlan, Plan
from dstash.errors import UsageError

if TYPE_CHECKING:
    from dstash.client.blocking import Client

app = typer.Typer(help="Add, remove and replace peers; watch and steer it.", no_args_is_help=True)

#: What an order may take: the peer asks the membership, and may have to try again.
_PATIENCE: Final = 30.0

_GENTLY: Final = "without a rate: data moves gently"

#: What moves data, and can be looked at before.
_PLANNED: Final = ("add", "remove", "replace", "forget", "force-remove")

Members = Annotated[list[str], typer.Argument(metavar="PEER", autocompletion=member_ids)]
Known = Annotated[list[str], typer.Argument(metavar="PEER", autocompletion=peer_ids)]
Waiting = Annotated[list[str], typer.Argument(metavar="PEER", autocompletion=candidate_ids)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would move.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
Follow = Annotated[bool, typer.Option("--watch", help="Watch until the data has moved.")]
Rate = Annotated[
    str | None, typer.Option("--rate", metavar="20MB/s", help="What each peer may take in.")
]


@app.command()
def plan(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(metavar="|".join(_PLANNED))],
    peers: Known,
) -> None:
    """Show what would move, and what would become impossible; change nothing."""
    _move(ctx, action, peers, dry_run=True, yes=True, rate=None, watch=False)


@app.command()
def add(
    ctx: typer.Context,
    peers: Waiting,
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
) -> None:
    """Let peers that wait (join = "manual") into the cluster."""
    _move(ctx, "add", peers, dry_run, yes, rate, watch)


@app.command()
def remove(
    ctx: typer.Context,
    peers: Members,
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
) -> None:
    """Drain peers; when their data has moved their processes end by themselves."""
    _move(ctx, "remove", peers, dry_run, yes, rate, watch)


@app.command()
def replace(
    ctx: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", autocompletion=member_ids)],
    new: Annotated[str, typer.Argument(metavar="NEW", autocompletion=candidate_ids)],
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
) -> None:
    """Put a peer that waits in the place of another; what moves, moves once."""
    _move(ctx, "replace", [old, new], dry_run, yes, rate, watch)


@app.command()
def forget(
    ctx: typer.Context,
    peers: Members,
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
) -> None:
    """Give up peers that are dead: the others copy what they held from each other."""
    _move(ctx, "forget", peers, dry_run, yes, rate, watch)


@app.command("force-remove")
def force_remove(
    ctx: typer.Context,
    peers: Members,
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
) -> None:
    """Go on without members that are down, even where a topology change waits for them.

    A member that was joining is dropped; any other one leaves, and the others copy what it held
    from each other. Refused for a member that is alive.
    """
    _move(ctx, "force-remove", peers, dry_run, yes, rate, watch)


@app.command("accept-loss")
def accept_loss(
    ctx: typer.Context, peers: Members, dry_run: DryRun = False, yes: Yes = False
) -> None:
    """Give up what only these members may know, so that the cluster goes on without it.

    For members whose disk was lost or is an old copy, and for members that never come back, where
    too few other replicas are left to know every acked write. Asks for the name of the cluster.
    """
    run = invocation.of(ctx)
    with run.client() as client:
        before = client.topology()
        client.admin.accept_loss(peers, dry_run=True)  # refuses what cannot be
        worked_out = planning.plan_loss(before, peers)
        if run.as_json and dry_run:
            output.json_line(worked_out.describe())
        elif not run.as_json:
            _show_loss(worked_out, before.partitions)
        if dry_run:
            return
        if not yes:
            _confirm_by_name(before.cluster, "accept-loss", "accept the loss")
        begun = client.admin.accept_loss(peers, timeout=run.patience(_PATIENCE))
    if run.as_json:
        output.json_line({"epoch": begun.epoch, "plan": worked_out.describe()})
    else:
        output.message("accepted; `dstash status` shows how the stores are filled")


def _show_loss(worked_out: LossPlan, partitions: int) -> None:
    names = ", ".join(worked_out.peers)
    output.line(f"{worked_out.held} of {partitions} partitions have a replica on {names}")
    output.line(
        f"{worked_out.at_risk} of them have too few other replicas with data to know every acked "
        "write, and "
        f"{worked_out.without_replica} have none"
    )
    if worked_out.at_risk:
        output.line(
            f"what only {names} acked there is lost for good: such writes are missing, and keys "
            "that were deleted there may come back"
        )
    else:
        output.line("the other replicas know every acked write: nothing is lost")


def _confirm_by_name(cluster: str, command: str, purpose: str) -> None:
    """Ask for the name of the cluster.

    Raises:
        UsageError: another name was typed, or there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise UsageError(f"{command} asks for confirmation on a terminal; in a script give --yes")
    typed = typer.prompt(f"type the name of the cluster ({cluster}) to {purpose}", err=True)
    if typed.strip() != cluster:
        raise UsageError(f"{typed!r} is not the name of the cluster: nothing was changed")


@app.command()
def cancel(ctx: typer.Context, dry_run: DryRun = False) -> None:
    """Go back to the placement from before the change under way; nothing is lost."""
    _steer(ctx, "cancel", dry_run=dry_run, said="cancelled: the placement is as it was before")


@app.command()
def pause(ctx: typer.Context, dry_run: DryRun = False) -> None:
    """Let the change under way rest; requests go on."""
    _steer(ctx, "pause", dry_run=dry_run, said="paused")


@app.command()
def resume(ctx: typer.Context, dry_run: DryRun = False) -> None:
    """Let a change that was paused go on."""
    _steer(ctx, "resume", dry_run=dry_run, said="resumed")


@app.command()
def rate(
    ctx: typer.Context,
    bound: Annotated[str, typer.Argument(metavar="20MB/s|off")],
    dry_run: DryRun = False,
) -> None:
    """Set how much each gaining peer may take in, while it runs."""
    parsed = parse_rate(bound)
    said = f"each gaining peer takes {size(parsed)}/s at most" if parsed else _GENTLY
    _steer(ctx, "rate", dry_run=dry_run, said=said, rate=parsed)


@app.command("lower-floors")
def lower_floors(ctx: typer.Context, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Lower what replicas refuse writes up to, if it is ahead of time; see docs/operations.md."""
    run = invocation.of(ctx)
    with run.client() as client:
        patience = run.patience(_PATIENCE)
        members = client.status(timeout=patience)["members"]
        topology = client.admin.lower_floors(dry_run=True, timeout=patience)
        ahead = {one["id"]: int(one.get("ahead_ms") or 0) for one in members}
        if not run.as_json and (dry_run or not yes):
            _show_ahead(ahead)
        if not dry_run:
            if not yes:
                _confirm_by_name(topology.cluster, "lower-floors", "lower floors")
            topology = client.admin.lower_floors(timeout=patience)
    if run.as_json:
        output.json_line({"epoch": topology.epoch, "ahead_ms": ahead, "dry_run": dry_run})
    elif not dry_run:
        output.message("ordered; `dstash status` shows when no peer is ahead of time any more")


def _show_ahead(ahead: Mapping[str, int]) -> None:
    rows = [[peer, f"{ms / 1000:.1f} s" if ms else "no"] for peer, ms in sorted(ahead.items())]
    output.table(("id", "ahead of time"), rows)
    output.message(
        "All peers would refuse only what is older than now. Stored records stay as they are: a "
        "write of a key that has a later stamp is stamped past it."
    )


@app.command()
def watch(ctx: typer.Context) -> None:
    """Show how the change under way goes, until it has ended."""
    run = invocation.of(ctx)
    with run.client() as client:
        transfers.follow(client, as_json=run.as_json)


@app.command()
def repair(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Watch until it has ended.")] = False,
) -> None:
    """Have every peer check all its records, and compare them with the other replicas, now."""
    run = invocation.of(ctx)
    with run.client() as client:
        begun = client.admin.repair(timeout=run.patience(_PATIENCE))
        for one in begun["members"]:
            if not one["answers"]:
                output.message(f"warning: {one['id']} does not answer, and is not repaired")
        if watch:
            repairs.follow(client, begun, as_json=run.as_json)
        elif run.as_json:
            output.json_line({"begun": [one["id"] for one in begun["members"] if one["answers"]]})
        else:
            output.message("begun; `dstash status` shows how it goes")


def _move(
    ctx: typer.Context,
    action: str,
    peers: Sequence[str],
    dry_run: bool,
    yes: bool,
    rate: str | None,
    watch: bool,
) -> None:
    """Plan, show, ask, order, and perhaps watch."""
    run = invocation.of(ctx)
    if action not in _PLANNED:
        raise UsageError(f"{action!r} is not {', '.join(_PLANNED[:-1])} or {_PLANNED[-1]}")
    bound = parse_rate(rate)
    with run.client() as client:
        worked_out = _plan(client, action, peers)
        if dry_run or not yes:
            _show(worked_out, as_json=run.as_json)
        if dry_run:
            return
        if not yes:
            typer.confirm(f"{action} {' '.join(peers)}?", abort=True, err=True)
        patience = run.patience(_PATIENCE)
        begun = client.admin.request(action, peers, rate=bound, timeout=patience)
        _announce(run, begun.epoch, worked_out, watch)
        if watch:
            transfers.follow(client, as_json=run.as_json)


def _announce(run: invocation.Invocation, epoch: int, worked_out: Plan, watch: bool) -> None:
    for problem in worked_out.problems:
        output.message(f"warning: {problem}")
    if run.as_json and not watch:
        output.json_line({"epoch": epoch, "plan": worked_out.describe()})
    elif not watch:
        output.message("begun; `dstash cluster watch` shows how it goes")


def _plan(client: Client, action: str, peers: Sequence[str]) -> Plan:
    facts = client.status()
    before = client.topology()
    after = client.admin.request(action, peers, dry_run=True)
    answered = {one["id"]: one for one in facts["members"] if one["answers"]}
    return planning.plan(before, after, answered)


def _show(worked_out: Plan, *, as_json: bool) -> None:
    if as_json:
        output.json_line(worked_out.describe())
        return
    output.line(
        f"{worked_out.partitions} copies of partitions would move: about "
        f"{worked_out.records} records, {size(worked_out.bytes)}"
    )
    output.table(_PEER_COLUMNS, [_row(asdict(one), _PEER_COLUMNS) for one in worked_out.peers])
    if len(worked_out.zones) > 1:
        zones = [
            asdict(one) | {"bytes": worked_out.bytes_into(one.zone)} for one in worked_out.zones
        ]
        output.table(_ZONE_COLUMNS, [_row(one, _ZONE_COLUMNS) for one in zones])
    for problem in worked_out.problems:
        output.message(f"warning: {problem}")


_PEER_COLUMNS: Final = ("id", "zone", "before", "after", "incoming", "loses", "records", "bytes")
_ZONE_COLUMNS: Final = ("zone", "before", "after", "incoming", "bytes")


def _row(facts: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [size(facts[one]) if one == "bytes" else str(facts[one]) for one in columns]


def _steer(ctx: typer.Context, action: str, *, dry_run: bool, said: str, rate: int = 0) -> None:
    run = invocation.of(ctx)
    with run.client() as client:
        patience = run.patience(_PATIENCE)
        topology = client.admin.request(action, rate=rate, dry_run=dry_run, timeout=patience)
    if run.as_json:
        change = None if topology.change is None else describe_change(topology.change)
        output.json_line({"epoch": topology.epoch, "change": change, "dry_run": dry_run})
        return
    output.message(f"would be {said}" if dry_run else said)
