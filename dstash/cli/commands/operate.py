"""Commands on the cluster as a whole: status, health and the placement of keys."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dstash.cli import invocation
from dstash.cli.arguments import HexKeys, IndexName, IntKeys, KeyText, TypedKeys, parse_key
from dstash.cli.console import output
from dstash.cli.console.members import show_members
from dstash.cli.console.verdict import (
    next_steps,
    set_aside,
    shortfalls,
    status_word,
    unhealthy_because,
    verdict,
)
from dstash.cli.invocation import Unhealthy
from dstash.errors import DStashError

if TYPE_CHECKING:
    from dstash.client.blocking import Client

_POLL_INTERVAL_S: Final = 0.25
#: Short, so that a peer that hangs does not use up the whole wait of a health check.
_STATUS_TIMEOUT_S: Final = 2.0


def status(
    ctx: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 8 if the cluster is not healthy.")
    ] = False,
) -> None:
    """Show the health of the cluster, what to do next, and a table of its members.

    The first line is healthy, degraded (redundancy is lost) or broken (requests fail), with the
    reasons. It also counts the keys that are known to be missing on a peer: quorum reads still find
    these keys, and the other peers send them to that peer.
    """
    run = invocation.of(ctx)
    with run.client() as client:
        cluster = client.status()
    reasons = unhealthy_because(cluster)
    if run.as_json:
        output.json_line(cluster)
    else:
        _show(cluster, verdict(reasons, shortfalls(cluster), status_word(cluster)))
    if check and reasons:
        raise typer.Exit(Unhealthy.exit_code)


def _show(cluster: Mapping[str, Any], first_line: str) -> None:
    texts = [first_line, _summary(cluster)]
    texts += [f"waits: {text}" for text in cluster["waits"]]
    texts += [
        f"candidate: {peer} waits to be added: dstash cluster add {peer}"
        for peer in cluster["candidates"]
    ]
    texts += [f"next: {text}" for text in next_steps(cluster)]
    texts += set_aside(cluster["members"])
    show_members(cluster["members"], sum(output.wrapped(text) for text in texts))


def health(
    ctx: typer.Context,
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Wait up to this long for a healthy cluster."),
    ] = 0,
) -> None:
    """Check that all members are alive, synced and answering; exit code 8 if not.

    A cluster with fewer members than replicas is not healthy either: its keys have too few copies.
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
    typed: TypedKeys = False,
) -> None:
    """Show the partition of a key, and its replicas in rank order."""
    run = invocation.of(ctx)
    parsed = parse_key(key, as_int, as_hex, typed)
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


def _check(client: Client) -> tuple[list[str], Mapping[str, Any]]:
    try:
        cluster = client.status(timeout=_STATUS_TIMEOUT_S)
    except DStashError as error:
        if error.exit_code == 2:  # a wrong setting: retrying is futile
            raise
        return [str(error)], {"missing": [], "differing": 0}
    return unhealthy_because(cluster), cluster


def _cells(values: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [output.cell(values.get(column)) for column in columns]


def _summary(cluster: Mapping[str, Any]) -> str:
    members = cluster["members"]
    alive = sum(bool(member["alive"]) for member in members)
    state = "formed" if cluster["formed"] else f"waiting for {cluster['min_peers']} peers"
    change = "" if cluster.get("change") is None else ", topology change running"
    wanted, there = cluster["replicas"], cluster["copies"]
    copies = f"{wanted} replicas" if there >= wanted else f"{there} of {wanted} copies"
    return (
        f"cluster {cluster['cluster']}: {state}, {alive} of {len(members)} members alive, "
        f"{copies}, epoch {cluster['epoch']}{change}"
    )
