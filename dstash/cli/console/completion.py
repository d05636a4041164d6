"""What a shell offers for an argument, when the cluster knows: the ids of peers."""

from __future__ import annotations

from typing import Any, Final

import typer

from dstash.cli.invocation import Invocation
from dstash.errors import DStashError

#: Whoever presses the tab key waits.
_PATIENCE: Final = 1.0


def member_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the members whose id begins so; nothing when no peer answers."""
    return _fitting(incomplete, [one["id"] for one in _status(ctx).get("members", ())])


def candidate_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the peers that wait to be let in."""
    return _fitting(incomplete, _status(ctx).get("candidates", ()))


def peer_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return both."""
    facts = _status(ctx)
    known = [one["id"] for one in facts.get("members", ())]
    return _fitting(incomplete, [*known, *facts.get("candidates", ())])


def _fitting(incomplete: str, ids: Any) -> list[str]:
    return [one for one in ids if one.startswith(incomplete)]


def _status(ctx: typer.Context) -> dict[str, Any]:
    # The command itself does not run, nor does what keeps the global options for it.
    given = ctx.find_root().params
    flags = {name: given.get(name) for name in ("peers", "consul", "cluster")}
    try:
        with Invocation(given.get("config"), flags | {"timeout": _PATIENCE}).client() as client:
            return client.status()
    except DStashError:
        return {}
