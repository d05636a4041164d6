"""Faults of operators that restore an old copy of a disk: the store lacks writes that it acked."""

from __future__ import annotations

from dstash.version import stamp_milliseconds
from tests.simulation.disk import Copy
from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults
from tests.simulation.losses import Loss
from tests.simulation.node import Node


@kind("old_copy", share=0.08)
def old_copy(faults: Faults) -> Undo:
    """Copy the disk of the chosen machine, or restore one of its copies."""
    node, world = faults.unlucky, faults.world
    if not world.is_whole_on_disk() or not world.is_member(node):
        return None
    if world.conditions.replicas < 3:
        return None  # no other replica remembers the store
    reported = _commits_reported(faults, node)
    usable = [copy for copy in faults.copies if _is_recognisable(copy, node, reported)]
    if not usable or faults.rng.random() < 0.3:
        faults.copies.append(node.store.copy())
        faults.note(f"the disk of {node.name} is copied")
        return None
    copy = faults.rng.choice(usable)
    node.kill(power=faults.rng.random() < 0.5)
    node.store.put_back(copy)
    shown = stamp_milliseconds(copy.high_water)
    faults.note(f"{node.name} has an old copy of its disk, up to {shown % 100_000_000} ms")
    world.losses.add(Loss.COPY)
    return lambda: faults.start(node)


def _is_recognisable(copy: Copy, node: Node, reported: int) -> bool:
    """Whether a copy is older than what every other member knows of the store.

    A peer reports how new its store is only at intervals. A copy that is newer than the last report
    cannot be distinguished from the store itself.
    """
    return copy.store_id == node.store.store_id and copy.commits < reported


def _commits_reported(faults: Faults, node: Node) -> int:
    """Return how many commits of the store every other member has heard of."""
    others = [
        other for other in faults.world.nodes if other is not node and faults.world.is_member(other)
    ]
    return min((other.commits_known_of(node) for other in others), default=0)
