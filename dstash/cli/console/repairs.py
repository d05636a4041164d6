"""How healing goes: a word for ``status``, and the watch of a repair."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from dstash.cli.console import output
from dstash.errors import DStashError, Unavailable

if TYPE_CHECKING:
    from dstash.client.blocking import Client

_EVERY: Final = 0.5
#: One question; a peer that hangs must not hold the watch up.
_PATIENCE: Final = 2.0
#: So long (seconds) nobody, or a member, may not answer before the watch gives up on it.
_LOST: Final = 60.0


def maintenance_of(member: Mapping[str, Any]) -> str:
    """Return in a few words what a member does to be equal to the others; empty for nothing."""
    facts = member.get("maintenance", {})
    repair = facts.get("repair", {})
    said = []
    if facts.get("streaming"):
        said.append(f"filling {_share(facts['streaming'], facts['streaming_of'])}")
    if repair.get("left"):
        said.append(f"repair {_share(repair['left'], repair['of'])}")
    if facts.get("corrupt"):
        said.append(f"{facts['corrupt']} damaged")
    if waiting := sum(facts.get("hints", {}).values()):
        said.append(f"{waiting} hints kept")
    return ", ".join(said)


def _share(left: int, of: int) -> str:
    return f"{100 * (of - left) // max(1, of)}%"


def follow(client: Client, begun: Mapping[str, Any], *, as_json: bool) -> None:
    """Show how a repair goes until every member that took part has come to its end.

    Args:
        begun: what ``Client.repair`` returned.

    Raises:
        Unavailable: a member that took part has not answered for a minute.
    """
    goals = {one["id"]: one["maintenance"]["repair"]["ended"] + 1 for one in _answering(begun)}
    heard = dict.fromkeys(goals, time.monotonic())
    while goals:
        for member in _answering(_status(client)):
            peer, repair = member["id"], member["maintenance"]["repair"]
            heard[peer] = time.monotonic()
            if peer in goals:
                _show(member, as_json=as_json)
                # One that was restarted meanwhile counts from zero, and repairs nothing.
                if repair["ended"] >= goals[peer] or (not repair["of"] and not repair["left"]):
                    del goals[peer]
        lost = [peer for peer in goals if time.monotonic() - heard[peer] > _LOST]
        if lost:
            raise Unavailable(f"no answer from {', '.join(lost)} for {_LOST:.0f} s")
        if goals:
            time.sleep(_EVERY)


def _status(client: Client) -> Mapping[str, Any]:
    try:
        return client.status(timeout=_PATIENCE)
    except DStashError:
        return {"members": []}


def _answering(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in status["members"] if "repair" in one.get("maintenance", {})]


def _show(member: Mapping[str, Any], *, as_json: bool) -> None:
    repair, maintenance = member["maintenance"]["repair"], member["maintenance"]
    facts = {"peer": member["id"], **repair, "corrupt": maintenance["corrupt"]}
    if as_json:
        output.json_line(facts)
        sys.stdout.flush()
        return
    state = f"repair {_share(repair['left'], repair['of'])}" if repair["left"] else "done"
    unmet = f", {repair['failed']} replicas did not answer" if repair["failed"] else ""
    rotten = f", {maintenance['corrupt']} records damaged still" if maintenance["corrupt"] else ""
    output.line(f"{member['id']}: {state}, {repair['records']} records moved{unmet}{rotten}")
