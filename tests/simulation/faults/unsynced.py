"""Faults of machines that stop before their last commits are synced (durability ``interval``)."""

from __future__ import annotations

from tests.simulation.disk import Copy
from tests.simulation.events import MS
from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults
from tests.simulation.losses import Loss
from tests.simulation.node import Node


@kind("unsynced", share=0.05)
def unsynced(faults: Faults) -> Undo:
    """Sync the disk of the chosen machine for the last time; soon after, the machine stops."""
    node = faults.unlucky
    if _may_lose(faults, node):
        copy, left = node.store.copy(), faults.rng.randint(50, 1000)
        faults.note(f"the disk of {node.name} is synced for the last time")
        faults.world.events.after(left * MS, _stop, faults, node, copy)
    return None


def _stop(faults: Faults, node: Node, copy: Copy) -> None:
    if not _may_lose(faults, node) or node.store.store_id != copy.store_id:
        return
    node.kill(power=True)
    node.store.put_back(copy)
    node.store.may_lack_writes = True
    faults.world.losses.add(Loss.COPY)
    faults.note(f"{node.name} lacks what was not synced")
    faults.world.events.after(faults.rng.randint(200, 4000) * MS, faults.start, node)


def _may_lose(faults: Faults, node: Node) -> bool:
    """Whether each partition has enough other replicas with all of its data."""
    world = faults.world
    is_whole = world.is_whole_on_disk() and world.is_member(node)
    return is_whole and node.is_running and world.conditions.replicas >= 3
