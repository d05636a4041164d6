"""The commands ``dstash cluster``: plan, start, watch and control topology changes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dstash.cli import invocation
from dstash.cli.console import compactions, output, repairs, transfers
from dstash.cli.console.completion import candidate_ids, member_ids, peer_ids
from dstash.cli.units import parse_rate, size
from dstash.client.describe import describe_change
from dstash.cluster.topology import planning
from dstash.cluster.topology.planning import LossPlan, Plan
from dstash.errors import UsageError

if TYPE_CHECKING:
    from dstash.client.blocking import Client
    from dstash.cluster.topology.topology import Topology

app = typer.Typer(
    help="Add, remove and replace peers; watch and control topology changes.",
    no_args_is_help=True,
)

#: Long, because the peer writes to the membership and may have to retry.
_ADMIN_TIMEOUT_S: Final = 30.0

_NO_RATE: Final = (
    "default: each peer streams in about 32 MB or 100,000 records a second, with low priority"
)

#: The actions that can leave fewer members than replicas. A member that is down and blocks a change
#: can still be removed, by ``force-remove``.
_MAY_LEAVE_TOO_FEW: Final = ("remove", "forget")
#: The actions that move data and can be planned.
_PLANNED: Final = ("add", "remove", "replace", "forget", "force-remove")

Members = Annotated[
    list[str],
    typer.Argument(metavar="PEER...", help="Ids of members.", autocompletion=member_ids),
]
Known = Annotated[
    list[str], typer.Argument(metavar="PEER...", help="Ids of peers.", autocompletion=peer_ids)
]
Waiting = Annotated[
    list[str],
    typer.Argument(metavar="PEER...", help="Ids of waiting peers.", autocompletion=candidate_ids),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the effect; change nothing.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask for confirmation.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Even if fewer members than replicas are left: fewer copies."),
]
Follow = Annotated[bool, typer.Option("--watch", help="Show progress until all data has moved.")]
Rate = Annotated[
    str | None,
    typer.Option("--rate", metavar="20MB/s", help="Limit of the data each peer streams in."),
]


@app.command()
def plan(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(metavar="|".join(_PLANNED), help="Action to plan.")],
    peers: Known,
) -> None:
    """Show which data an action would move, and its risks; change nothing."""
    _move(ctx, action, peers, dry_run=True, yes=True, rate=None, watch=False, force=True)


@app.command()
def add(
    ctx: typer.Context,
    peers: Waiting,
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
) -> None:
    """Add waiting peers (join = "manual") to the cluster."""
    _move(ctx, "add", peers, dry_run, yes, rate, watch)


@app.command()
def remove(
    ctx: typer.Context,
    peers: Members,
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
    force: Force = False,
) -> None:
    """Move all data off peers and remove them; their processes then exit."""
    _move(ctx, "remove", peers, dry_run, yes, rate, watch, force)


@app.command()
def replace(
    ctx: typer.Context,
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="Member to replace.", autocompletion=member_ids)
    ],
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="Waiting peer.", autocompletion=candidate_ids)
    ],
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
) -> None:
    """Replace a peer by a candidate; each partition moves at most once."""
    _move(ctx, "replace", [old, new], dry_run, yes, rate, watch)


@app.command()
def forget(
    ctx: typer.Context,
    peers: Members,
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
    force: Force = False,
) -> None:
    """Remove peers that will not return; the other peers re-replicate their data."""
    _move(ctx, "forget", peers, dry_run, yes, rate, watch, force)


@app.command("force-remove")
def force_remove(
    ctx: typer.Context,
    peers: Members,
    dry_run: DryRun = False,
    yes: Yes = False,
    rate: Rate = None,
    watch: Follow = False,
) -> None:
    """Remove members that are down, even if a topology change waits for them.

    A joining member is dropped. Any other member leaves, and the rest re-replicate its data from
    each other. The command is refused for a member that is alive.
    """
    _move(ctx, "force-remove", peers, dry_run, yes, rate, watch)


@app.command("accept-loss")
def accept_loss(
    ctx: typer.Context, peers: Members, dry_run: DryRun = False, yes: Yes = False
) -> None:
    """Accept the loss of writes that only these members may have, so that the cluster serves again.

    Use it if the disk of a member was lost or restored from an old copy, or if a member never comes
    back, and too few other replicas are left to prove that they have every acknowledged write. Asks
    for the name of the cluster as confirmation.
    """
    run = invocation.of(ctx)
    with run.client() as client:
        before = client.topology()
        client.admin.accept_loss(peers, dry_run=True)  # raises if the action is not allowed
        loss_plan = planning.plan_loss(before, peers)
        if run.as_json and dry_run:
            output.json_line(loss_plan.describe())
        elif not run.as_json:
            _show_loss(loss_plan, before.partitions)
        if dry_run:
            return
        if not yes:
            _confirm_by_name(before.cluster, "accept-loss", "accept the loss")
        begun = client.admin.accept_loss(peers, timeout=run.long_timeout(_ADMIN_TIMEOUT_S))
    if run.as_json:
        output.json_line({"epoch": begun.epoch, "plan": loss_plan.describe()})
    else:
        output.message("accepted; `dstash status` shows the streaming of the stores")


def _show_loss(loss_plan: LossPlan, partitions: int) -> None:
    names = ", ".join(loss_plan.peers)
    output.line(f"{loss_plan.held} of {partitions} partitions have a replica on {names}")
    output.line(
        f"{loss_plan.at_risk} of them have too few other replicas with data to prove that every "
        f"acknowledged write is there, and {loss_plan.without_replica} have no other replica"
    )
    if loss_plan.at_risk:
        output.line(
            f"writes that only {names} acknowledged there are lost, and keys that were deleted "
            "there may reappear"
        )
    else:
        output.line("the other replicas have every acknowledged write: no data is lost")


def _confirm_by_name(cluster: str, command: str, purpose: str) -> None:
    """Ask for the name of the cluster.

    Raises:
        UsageError: another name was typed, or stdin is not a terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError(f"{command} asks for confirmation on a terminal; in a script, use --yes")
    typed = typer.prompt(f"type the name of the cluster ({cluster}) to {purpose}", err=True)
    if typed.strip() != cluster:
        raise UsageError(f"{typed!r} is not the name of the cluster; nothing was changed")


def _confirm(action: str, peers: Sequence[str]) -> None:
    """Ask whether to carry out an action.

    Raises:
        Abort: the answer was no.
        UsageError: stdin has ended.
    """
    try:
        typer.confirm(f"{action} {' '.join(peers)}?", abort=True, err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, EOFError):
            typer.echo(err=True)  # ends the line of the question
            raise UsageError(f"{action} asks for confirmation; in a script, use --yes") from None
        raise


@app.command()
def cancel(ctx: typer.Context, dry_run: DryRun = False) -> None:
    """Cancel the topology change and return to the placement before it; no data is lost."""
    _control(ctx, "cancel", dry_run=dry_run, effect="cancelled: the previous placement is restored")


@app.command()
def pause(ctx: typer.Context, dry_run: DryRun = False) -> None:
    """Pause the topology change; reads and writes continue."""
    _control(ctx, "pause", dry_run=dry_run, effect="paused")


@app.command()
def resume(ctx: typer.Context, dry_run: DryRun = False) -> None:
    """Resume a paused topology change."""
    _control(ctx, "resume", dry_run=dry_run, effect="resumed")


@app.command()
def rate(
    ctx: typer.Context,
    limit: Annotated[
        str, typer.Argument(metavar="20MB/s|off", help="Limit per peer, or off for the default.")
    ],
    dry_run: DryRun = False,
) -> None:
    """Limit the data that each peer streams in, during a topology change."""
    parsed = parse_rate(limit)
    effect = f"limited: each peer streams in at most {size(parsed)}/s" if parsed else _NO_RATE
    _control(ctx, "rate", dry_run=dry_run, effect=effect, rate=parsed)


@app.command("lower-floors")
def lower_floors(ctx: typer.Context, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Lower floors that are ahead of time, so that replicas accept writes; see docs/operations.md.

    A floor is the stamp up to which a replica refuses writes. A clock that was far ahead leaves
    floors in the future.
    """
    run = invocation.of(ctx)
    with run.client() as client:
        timeout = run.long_timeout(_ADMIN_TIMEOUT_S)
        members = client.status(timeout=timeout)["members"]
        topology = client.admin.lower_floors(dry_run=True, timeout=timeout)
        ahead = _ahead_by_peer(members)
        if not run.as_json and (dry_run or not yes):
            _show_ahead(ahead)
        if not dry_run:
            if not yes:
                _confirm_by_name(topology.cluster, "lower-floors", "lower floors")
            topology = client.admin.lower_floors(timeout=timeout)
    if run.as_json:
        output.json_line({"epoch": topology.epoch, "ahead_ms": ahead, "dry_run": dry_run})
    elif not dry_run:
        output.message("started; `dstash status` shows the peers that are still ahead of time")


def _ahead_by_peer(members: Iterable[Mapping[str, Any]]) -> dict[str, int | None]:
    """Return by how many milliseconds each member is ahead of time; None if it did not answer."""
    return {
        member["id"]: int(member.get("ahead_ms") or 0) if member["answers"] else None
        for member in members
    }


def _show_ahead(ahead: Mapping[str, int | None]) -> None:
    shown = {None: "does not answer", 0: "no"}
    rows = [
        [peer, shown.get(ms) or f"{(ms or 0) / 1000:.1f} s"] for peer, ms in sorted(ahead.items())
    ]
    output.table(("id", "ahead of time"), rows)
    output.message(
        "All peers would then refuse only writes older than now. Stored records are not changed: "
        "a write of a key with a later stamp gets a stamp above it."
    )


@app.command()
def watch(ctx: typer.Context) -> None:
    """Show the progress of the topology change until it ends."""
    run = invocation.of(ctx)
    with run.client() as client:
        transfers.follow(client, as_json=run.as_json)


@app.command()
def repair(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show progress until the repair ends.")
    ] = False,
) -> None:
    """Start a full repair: each peer checks its records and compares them with other replicas."""
    run = invocation.of(ctx)
    with run.client() as client:
        begun = client.admin.repair(timeout=run.long_timeout(_ADMIN_TIMEOUT_S))
        members = begun["members"]
        for member in members:
            if not member["answers"]:
                output.message(f"warning: {member['id']} does not answer and is not repaired")
        if watch:
            repairs.follow(client, begun, as_json=run.as_json)
        elif run.as_json:
            output.json_line({"begun": [m["id"] for m in members if m["answers"]]})
        else:
            output.message("started; `dstash status` shows the progress")


@app.command()
def compact(
    ctx: typer.Context,
    peer: Annotated[
        str, typer.Argument(metavar="PEER", help="Id of a member.", autocompletion=member_ids)
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Show progress until the compaction ends.")
    ] = False,
) -> None:
    """Give unused space of a peer's data file back to the disk, while the peer serves.

    The new file is written next to the old one, so the disk needs as much free space as the data
    takes. Compact one peer at a time.
    """
    run = invocation.of(ctx)
    with run.client() as client:
        begun = client.admin.compact(peer, timeout=run.long_timeout(_ADMIN_TIMEOUT_S))
        if watch:
            compactions.follow(client, peer, begun["compaction"], as_json=run.as_json)
        elif run.as_json:
            output.json_line({"begun": [peer]})
        else:
            output.message("started; `dstash status` shows the progress")


def _move(
    ctx: typer.Context,
    action: str,
    peers: Sequence[str],
    dry_run: bool,
    yes: bool,
    rate: str | None,
    watch: bool,
    force: bool = False,
) -> None:
    """Plan an action, show the plan, ask for confirmation, start it, and optionally watch it."""
    run = invocation.of(ctx)
    if action not in _PLANNED:
        allowed = f"{', '.join(_PLANNED[:-1])} or {_PLANNED[-1]}"
        raise UsageError(f"{action!r} is not an action; allowed are {allowed}")
    limit = parse_rate(rate)
    with run.client() as client:
        prepared, left = _plan(client, action, peers)
        if dry_run or not yes:
            _show(prepared, as_json=run.as_json)
        if dry_run:
            return
        if action in _MAY_LEAVE_TOO_FEW and not force:
            _expect_enough(left)
        if not yes:
            _confirm(action, peers)
        timeout = run.long_timeout(_ADMIN_TIMEOUT_S)
        begun = client.admin.request(action, peers, rate=limit, timeout=timeout)
        _announce(run, begun.epoch, prepared, watch)
        if watch:
            transfers.follow(client, as_json=run.as_json)


def _announce(run: invocation.Invocation, epoch: int, prepared: Plan, watch: bool) -> None:
    for problem in prepared.problems:
        output.message(f"warning: {problem}")
    if run.as_json and not watch:
        output.json_line({"epoch": epoch, "plan": prepared.describe()})
    elif not watch:
        output.message("started; `dstash cluster watch` shows the progress")


def _expect_enough(left: Topology) -> None:
    """Refuse a removal that leaves fewer members than replicas."""
    members, replicas = len(left.after()), left.replicas
    if members < replicas:
        verb = "member is" if members == 1 else "members are"
        raise UsageError(
            f"{members} {verb} left for {replicas} replicas: each key would have fewer copies; "
            "add a peer first, or give --force"
        )


def _plan(client: Client, action: str, peers: Sequence[str]) -> tuple[Plan, Topology]:
    """Return the plan, and the topology that the action leads to."""
    status = client.status()
    before = client.topology()
    after = client.admin.request(action, peers, dry_run=True)
    answered = {member["id"]: member for member in status["members"] if member["answers"]}
    return planning.plan(before, after, answered), after


def _show(prepared: Plan, *, as_json: bool) -> None:
    if as_json:
        output.json_line(prepared.describe())
        return
    output.line(
        f"{prepared.partitions} partition replicas would move: about "
        f"{prepared.records} records, {size(prepared.bytes)}"
    )
    output.table(_PEER_COLUMNS, [_row(asdict(peer), _PEER_COLUMNS) for peer in prepared.peers])
    if len(prepared.zones) > 1:
        zones = [
            asdict(zone) | {"bytes": prepared.bytes_into(zone.zone)} for zone in prepared.zones
        ]
        output.table(_ZONE_COLUMNS, [_row(zone, _ZONE_COLUMNS) for zone in zones])
    for problem in prepared.problems:
        output.message(f"warning: {problem}")


_PEER_COLUMNS: Final = ("id", "zone", "before", "after", "incoming", "loses", "records", "bytes")
_ZONE_COLUMNS: Final = ("zone", "before", "after", "incoming", "bytes")


def _row(values: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [size(values[name]) if name == "bytes" else str(values[name]) for name in columns]


def _control(ctx: typer.Context, action: str, *, dry_run: bool, effect: str, rate: int = 0) -> None:
    run = invocation.of(ctx)
    with run.client() as client:
        timeout = run.long_timeout(_ADMIN_TIMEOUT_S)
        topology = client.admin.request(action, rate=rate, dry_run=dry_run, timeout=timeout)
    if run.as_json:
        change = None if topology.change is None else describe_change(topology.change)
        output.json_line({"epoch": topology.epoch, "change": change, "dry_run": dry_run})
        return
    output.message(f"would be {effect}" if dry_run else effect)
