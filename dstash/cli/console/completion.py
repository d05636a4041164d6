"""Completion of arguments that are ids of peers, by a request to the cluster."""

from __future__ import annotations

from typing import Any, Final

import typer

from dstash.cli.invocation import Invocation
from dstash.errors import DStashError

#: Short, because the user waits after pressing the tab key.
_STATUS_TIMEOUT_S: Final = 1.0


def member_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the members whose id begins with ``incomplete``; none if no peer answers."""
    return _matching(incomplete, [member["id"] for member in _status(ctx).get("members", ())])


def candidate_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the candidates whose id begins with ``incomplete``: peers that wait to be added."""
    return _matching(incomplete, _status(ctx).get("candidates", ()))


def peer_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the members and candidates whose id begins with ``incomplete``."""
    status = _status(ctx)
    members = [member["id"] for member in status.get("members", ())]
    return _matching(incomplete, [*members, *status.get("candidates", ())])


def _matching(incomplete: str, ids: Any) -> list[str]:
    return [peer for peer in ids if peer.startswith(incomplete)]


def _status(ctx: typer.Context) -> dict[str, Any]:
    # Completion does not run the callback that keeps the global options, so read them here.
    given = ctx.find_root().params
    flags = {name: given.get(name) for name in ("peers", "consul", "cluster")}
    try:
        flags |= {"timeout": _STATUS_TIMEOUT_S}
        with Invocation(given.get("config"), flags).client() as client:
            return client.status()
    except DStashError:
        return {}
