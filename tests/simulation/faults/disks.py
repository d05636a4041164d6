"""Faults of disks: lost, corrupt, slow, full and failing."""

from __future__ import annotations

from tests.simulation.events import MS, SECOND
from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults
from tests.simulation.losses import Loss
from tests.simulation.node import DISK_RESERVE


@kind("wipe")
def wipe(faults: Faults) -> Undo:
    """Replace the disk of a machine by an empty disk."""
    node, world = faults.unlucky, faults.world
    if not world.is_whole_on_disk() or not world.is_member(node):
        return None
    if world.conditions.replicas == 1:
        return None  # it has the only copy
    node.kill(power=True)
    node.wipe()
    world.losses.add(Loss.STORE)
    return lambda: faults.start(node)


@kind("damage")
def corruption(faults: Faults) -> Undo:
    """Flip a bit of a record."""
    store = faults.unlucky.store
    if store.records and faults.world.conditions.replicas > 1:
        storage_key = faults.rng.choice(store.ordered())
        store.corruption(storage_key, faults.rng.randrange(1 << 16))
        faults.note(f"{faults.unlucky.name} has a rotten record {storage_key[3:]!r}")
        faults.world.losses.add(Loss.RECORD)
    return None


@kind("slow_disk")
def slow_disk(faults: Faults) -> Undo:
    """Make the commits of a machine slow."""
    node = faults.any_node()
    before = node.sync_time
    node.sync_time = faults.rng.choice((20 * MS, 200 * MS, 1500 * MS))
    faults.note(f"{node.name} syncs in {node.sync_time // MS} ms")

    def undo() -> None:
        node.sync_time = min(before, 300)

    return undo


@kind("full_disk")
def full_disk(faults: Faults) -> Undo:
    """Make a disk refuse every commit."""
    store = faults.any_node().store
    store.is_full = True
    faults.world.lowest_room = 0
    faults.note(f"{store.store_id} is full")

    def undo() -> None:
        store.is_full = False

    return undo


@kind("no_room", share=0.06, durations=(2 * SECOND, 12 * SECOND, 30 * SECOND))
def no_room(faults: Faults) -> Undo:
    """Fill one, two or all disks, to different degrees."""
    rng, nodes = faults.rng, faults.world.nodes
    some = rng.sample(nodes, min(len(nodes), rng.choice((1, 1, 2, len(nodes)))))
    stores = [node.store for node in some]
    free = rng.choice((DISK_RESERVE * 9 // 10, DISK_RESERVE * 4 // 10, 150, 0))
    for store in stores:
        store.free = free
    faults.note(f"{', '.join(store.store_id for store in stores)}: {free} bytes are free")
    faults.world.lowest_room = min(faults.world.lowest_room, free)

    def undo() -> None:
        faults.note(f"{', '.join(store.store_id for store in stores)}: there is room again")
        for store in stores:
            store.free = None

    return undo


@kind("failing_disk")
def failing_disk(faults: Faults) -> Undo:
    """Make the next sync of a disk fail."""
    store = faults.any_node().store
    store.fails_next = True
    faults.note(f"the next sync of {store.store_id} fails")

    def undo() -> None:
        store.fails_next = False

    return undo
