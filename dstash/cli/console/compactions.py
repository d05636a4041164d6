"""The watch of a compaction."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from dstash.cli.console import output
from dstash.cli.units import size
from dstash.errors import DStashError, StoreError, Unavailable

if TYPE_CHECKING:
    from dstash.client.blocking import Client

_POLL_INTERVAL_S: Final = 0.5
#: Short, so that a peer that hangs does not delay the watch.
_STATUS_TIMEOUT_S: Final = 2.0
#: How long the member may leave requests unanswered before the watch ends with an error.
_LOST_AFTER_S: Final = 60.0


def follow(client: Client, peer: str, begun: Mapping[str, Any], *, as_json: bool) -> None:
    """Show the progress of a compaction until it has ended.

    Args:
        client: of the cluster.
        peer: the id of the member.
        begun: its compaction when it began.
        as_json: whether to print JSON lines.

    Raises:
        StoreError: it was given up; the text says why.
        Unavailable: the member has not answered for a minute.
    """
    answered_at, shown = time.monotonic(), None
    while True:
        compaction = _compaction(client, peer)
        if compaction is not None:
            answered_at = time.monotonic()
            if compaction != shown:
                _show(peer, compaction, as_json=as_json)
                shown = compaction
            if compaction["given_up"] > begun["given_up"]:
                raise StoreError(f"{peer}: {compaction['why_given_up']}")
            if not compaction["running"]:
                # A peer that restarted in between counts from zero, and the compaction has ended.
                if compaction["ended"] <= begun["ended"]:
                    raise Unavailable(f"{peer} was restarted before its compaction had ended")
                return
        elif time.monotonic() - answered_at > _LOST_AFTER_S:
            raise Unavailable(f"no answer from {peer} for {_LOST_AFTER_S:.0f} s")
        time.sleep(_POLL_INTERVAL_S)


def _compaction(client: Client, peer: str) -> Mapping[str, Any] | None:
    try:
        members = client.status(timeout=_STATUS_TIMEOUT_S)["members"]
    except DStashError:
        return None
    found = [
        member["compaction"] for member in members if member["id"] == peer and member["answers"]
    ]
    return found[0] if found else None


def _show(peer: str, compaction: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.json_line({"peer": peer, **compaction})
        sys.stdout.flush()
    elif compaction["running"]:
        output.line(f"{peer}: {compaction['copied']:,} of {compaction['of']:,} records copied")
    elif compaction["ended"]:
        before, after = size(compaction["before"]), size(compaction["after"])
        output.line(f"{peer}: done, {before} before, {after} now")
