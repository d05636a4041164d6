"""The progress of maintenance: a column of ``status``, and the watch of a full repair."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from dstash.cli.console import output
from dstash.errors import DStashError, Unavailable
from dstash.limits import PARTITIONS

if TYPE_CHECKING:
    from dstash.client.blocking import Client

_POLL_INTERVAL_S: Final = 0.5
#: Short, so that a peer that hangs does not delay the watch.
_STATUS_TIMEOUT_S: Final = 2.0
#: How long a member may leave requests unanswered before the watch ends with an error.
_LOST_AFTER_S: Final = 60.0


def maintenance_of(member: Mapping[str, Any]) -> str:
    """Return the maintenance of a member in a few words; empty if there is none."""
    maintenance = member.get("maintenance", {})
    repair = maintenance.get("repair", {})
    parts = []
    if maintenance.get("streaming"):
        share = _share(maintenance["streaming"], maintenance["streaming_of"])
        parts.append(f"streaming {share}")
    if repair.get("left"):
        parts.append(f"repair {_share(repair['left'], repair['of'])}")
    compaction = member.get("compaction", {})
    if compaction.get("running"):
        left = compaction["of"] - compaction["copied"]
        parts.append(f"compacting {_share(left, compaction['of'])}")
    if left := maintenance.get("drop_left"):
        parts.append(f"drop {_share(left, PARTITIONS)}")
    if maintenance.get("corrupt"):
        parts.append(f"{maintenance['corrupt']} corrupt")
    if hints := sum(maintenance.get("hints", {}).values()):
        parts.append(f"{hints} hints kept")
    return ", ".join(parts)


def _share(left: int, of: int) -> str:
    return f"{100 * (of - left) // max(1, of)}%"


def follow(client: Client, begun: Mapping[str, Any], *, as_json: bool) -> None:
    """Show the progress of a full repair until every member that takes part has completed it.

    Args:
        begun: the result of ``Admin.repair``.

    Raises:
        Unavailable: a member that takes part has not answered for a minute.
    """
    goals = {
        member["id"]: member["maintenance"]["repair"]["ended"] + 1 for member in _answering(begun)
    }
    answered_at = dict.fromkeys(goals, time.monotonic())
    while goals:
        for member in _answering(_status(client)):
            peer, repair = member["id"], member["maintenance"]["repair"]
            answered_at[peer] = time.monotonic()
            if peer in goals:
                _show(member, as_json=as_json)
                # A member that restarted in between counts from zero, and has no repair to do.
                if repair["ended"] >= goals[peer] or (not repair["of"] and not repair["left"]):
                    del goals[peer]
        lost = [peer for peer in goals if time.monotonic() - answered_at[peer] > _LOST_AFTER_S]
        if lost:
            raise Unavailable(f"no answer from {', '.join(lost)} for {_LOST_AFTER_S:.0f} s")
        if goals:
            time.sleep(_POLL_INTERVAL_S)


def follow_drop(client: Client, *, as_json: bool) -> None:
    """Show how the members remove dropped records until none has any left.

    Raises:
        Unavailable: a member does not answer; it removes its records when it is back.
    """
    left: dict[str, int] = {}
    silent_since: dict[str, float] = {}
    while True:
        status = _status(client)
        for member in status["members"]:
            peer, maintenance = member["id"], member.get("maintenance", {})
            # A member with an older topology may not know the drop yet.
            if "drop_left" not in maintenance or member["epoch"] < status["epoch"]:
                silent_since.setdefault(peer, time.monotonic())
                continue
            silent_since.pop(peer, None)
            if left.get(peer) != maintenance["drop_left"]:
                left[peer] = maintenance["drop_left"]
                _show_drop(peer, maintenance, as_json=as_json)
        lost = [peer for peer, since in silent_since.items() if _is_lost(since)]
        if lost:
            raise Unavailable(
                f"no answer from {', '.join(lost)} for {_LOST_AFTER_S:.0f} s; dropped records "
                "are removed there when it is back"
            )
        if left and not any(left.values()) and not silent_since:
            return
        time.sleep(_POLL_INTERVAL_S)


def _is_lost(since: float) -> bool:
    return time.monotonic() - since > _LOST_AFTER_S


def _show_drop(peer: str, maintenance: Mapping[str, Any], *, as_json: bool) -> None:
    left, removed = maintenance["drop_left"], maintenance["drop_removed"]
    if as_json:
        output.json_line({"peer": peer, "partitions_left": left, "removed_records": removed})
        sys.stdout.flush()
        return
    state = f"{_share(left, PARTITIONS)} of the partitions done" if left else "done"
    output.line(f"{peer}: {state}, {removed:,} records removed since its start")


def _status(client: Client) -> Mapping[str, Any]:
    try:
        return client.status(timeout=_STATUS_TIMEOUT_S)
    except DStashError:
        return {"members": []}


def _answering(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [m for m in status["members"] if "repair" in m.get("maintenance", {})]


def _show(member: Mapping[str, Any], *, as_json: bool) -> None:
    repair, maintenance = member["maintenance"]["repair"], member["maintenance"]
    if as_json:
        output.json_line({"peer": member["id"], **repair, "corrupt": maintenance["corrupt"]})
        sys.stdout.flush()
        return
    state = f"repair {_share(repair['left'], repair['of'])}" if repair["left"] else "done"
    failed = f", {repair['failed']} replicas did not answer" if repair["failed"] else ""
    corrupt = f", {maintenance['corrupt']} corrupt records left" if maintenance["corrupt"] else ""
    output.line(f"{member['id']}: {state}, {repair['records']} records moved{failed}{corrupt}")
