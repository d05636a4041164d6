"""What a topology change, or a store that is filled, waits for: in words, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from dstash.cluster.topology.topology import State
from dstash.cluster.topology.transitions import incoming
from dstash.cluster.topology.view import View, can_read


def waits(view: View, status: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is waited for, and what to do about it; empty when all is well.

    Args:
        view: the topology, and who is alive.
        status: by member, what those that answered say of themselves (``epoch``).
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
    for peer, gained in sorted(incoming(view.topology).items()):
        if peer in change.complete:
            continue
        if peer not in view.alive:
            yield (
                f"{peer} gains {len(gained)} partitions and is down: start it, or go on without "
                f"it: dstash cluster force-remove {peer}"
            )
            continue
        yield from _without_sources(view, peer, gained)


def _unstreamed_stores(view: View) -> Iterator[str]:
    for peer, member in sorted(view.members.items()):
        held = [number for number, owners in enumerate(view.readers) if peer in owners]
        if member.synced or not held:
            continue
        if peer not in view.alive:
            yield f"{peer} has a new or an old store and is down: start it to have it filled"
        else:
            yield from _without_sources(view, peer, held)


def _without_sources(view: View, peer: str, partitions: list[int]) -> Iterator[str]:
    """Say which partitions of a peer have too few sources that are alive."""
    missing: Counter[tuple[tuple[str, ...], int]] = Counter()
    for owners in map(view.readers.__getitem__, partitions):
        able = [one for one in owners if view.members[one].synced]
        there = [one for one in able if one == peer or one in view.alive]
        short = view.votes_needed(owners) - len(there)
        if short > 0:
            missing[tuple(sorted(set(owners) - set(there) - {peer})), short] += 1
    for (absent, short), count in sorted(missing.items()):
        down = [one for one in absent if one not in view.alive]
        back = f"start {' or '.join(down)}" if down else "no start brings them back"
        lossy = [one for one in absent if one in down or not view.members[one].synced]
        lossy += [] if view.members[peer].synced else [peer]
        yield (
            f"{count} partitions of {peer} lack {short} of the replicas that know every write "
            f"({', '.join(absent)}): {back}; if their data is lost for good: "
            f"dstash cluster accept-loss {' '.join(sorted(set(lossy)))}"
        )


def _end(view: View, status: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Say which old replicas may still be read from by an older topology."""
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
            yield f"the topology change ends once {peer} has taken epoch {view.epoch}"
        else:
            yield (
                f"the topology change ends once {peer}, which is down, cannot be read from: start "
                f"it, or go on without it: dstash cluster force-remove {peer}"
            )
