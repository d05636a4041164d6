"""Blockers: the reasons why a topology change or the streaming of a store waits, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dstash.cluster.topology.topology import State
from dstash.cluster.topology.transitions import incoming
from dstash.cluster.topology.view import View, can_read


def waits(view: View, status: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the blockers, each with what to do about it; empty when nothing is blocked.

    Args:
        view: the topology and the liveness of its members.
        status: by member, the status (``epoch``) of those that replied.
    """
    return [*_unstreamed_stores(view), *_change(view, status)]


def _change(view: View, status: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    change = view.topology.change
    if change is None:
        return
    if change.switched:
        yield from _end(view, status)
        return
    if change.paused:
        yield "the topology change is paused: dstash cluster resume"
    complete = change.registers_complete if change.resting else change.complete
    for peer, gained in sorted(incoming(view.topology).items()):
        if peer in complete:
            continue
        if peer not in view.alive:
            yield (
                f"{peer} gains {len(gained)} partitions and is down: start it, or continue without "
                f"it: dstash cluster force-remove {peer}"
            )
            continue
        yield from _without_sources(view, peer, gained)


def _unstreamed_stores(view: View) -> Iterator[str]:
    for peer in sorted(peer for peer, member in view.members.items() if not member.synced):
        held = [number for number, owners in enumerate(view.readers) if peer in owners]
        if not held:
            continue
        if peer not in view.alive:
            yield f"{peer} has a new or an old store and is down: start it to stream its data"
        else:
            yield from _without_sources(view, peer, held)


def _without_sources(view: View, peer: str, partitions: Sequence[int]) -> Iterator[str]:
    """Report the partitions of a peer that have too few live sources."""
    missing: Counter[tuple[tuple[str, ...], int]] = Counter()
    for owners in map(view.readers.__getitem__, partitions):
        synced = [member for member in owners if view.members[member].synced]
        available = {member for member in synced if member == peer or member in view.alive}
        short = view.votes_needed(owners) - len(available)
        if short > 0:
            missing[tuple(sorted(set(owners) - available - {peer})), short] += 1
    for (absent, short), count in sorted(missing.items()):
        down = [member for member in absent if member not in view.alive]
        remedy = f"start {' or '.join(down)}" if down else "starting a peer does not help"
        lossy = [member for member in absent if member in down or not view.members[member].synced]
        lossy += [] if view.members[peer].synced else [peer]
        yield (
            f"{count} partitions of {peer} lack {short} of the replicas that have every write "
            f"({', '.join(absent)}): {remedy}; if their data is permanently lost: "
            f"dstash cluster accept-loss {' '.join(sorted(set(lossy)))}"
        )


def _end(view: View, status: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Report the members that may still serve reads under the older topology."""
    change = view.topology.change
    gone = set(change.gone if change is not None else ()) - view.alive
    passed = {
        peer
        for peer in view.members
        if peer in gone or status.get(peer, {}).get("epoch", 0) >= view.epoch
    }
    if not can_read(view, frozenset(passed)):
        return
    for peer, member in sorted(view.members.items()):
        if peer in passed or member.state is State.JOINING:
            continue
        if peer in view.alive:
            yield f"the topology change ends once {peer} has reached epoch {view.epoch}"
        else:
            yield (
                f"the topology change waits for {peer}, which is down: start it, or continue "
                f"without it: dstash cluster force-remove {peer}"
            )
