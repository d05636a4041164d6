"""Check of I4: replicas are equal after the recovery from faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.drops import Floors
from dstash.cluster.topology.view import View
from dstash.store.digest import is_reapable_at
from dstash.store.memory import TwinStore
from dstash.store.record import horizon_stamp, partition_of, split_storage_key
from tests.simulation.checks.registry import Run, Violation, When, check
from tests.simulation.history import Place
from tests.simulation.losses import Loss
from tests.simulation.trace import show_record

_NAME: Final = "I4"


@check(When.RECOVERED)
def convergence(run: Run) -> Iterator[Violation]:
    """Check that all replicas of a key have the same record."""
    topology = run.world.membership.topology
    if topology is None:
        yield Violation(_NAME, None, "there is no topology")
        return
    view = View(topology)
    unsynced = {member.id for member in topology.members if not member.synced}
    stores = {node.name: node.store for node in run.world.nodes}
    owners = {
        storage_key: [
            peer
            for peer in view.readers[int.from_bytes(storage_key[:2], "big")]
            if peer not in unsynced
        ]
        for storage_key in map(storage_key_of, run.world.places)
    }
    for violation, is_covered in compare(stores, owners, Floors(topology.drops)):
        if not (is_covered and Loss.CLOCK in run.world.losses):
            yield violation


@check(When.RECOVERED)
def readiness(run: Run) -> Iterator[Violation]:
    """Check that every member runs, is ready, and that no change waits."""
    if not run.world.is_whole():
        yield Violation(_NAME, None, f"not recovered: {run.world.membership.topology}")


@check(When.RECOVERED)
def one_topology(run: Run) -> Iterator[Violation]:
    """Check that all members use the topology of the membership, and no client one like it."""
    topology = run.world.membership.topology
    if topology is None:
        return
    for node in run.world.nodes:
        view = node.core.view if node.core is not None else None
        if view is not None and run.world.is_member(node) and view.topology != topology:
            yield Violation(_NAME, None, f"{node.name} uses another topology: {view.topology}")
    for client in run.world.clients:
        known = client.session.view
        if known is not None and known.epoch == topology.epoch and known.topology != topology:
            yield Violation(_NAME, None, f"{client.name} has another topology of this epoch")


def storage_key_of(place: Place) -> bytes:
    """Return the storage key of a place."""
    index, key = (part.encode() for part in place)
    return partition_of(key).to_bytes(2, "big") + bytes((len(index),)) + index + key


def compare(
    stores: Mapping[str, TwinStore], owners: dict[bytes, list[str]], floors: Floors
) -> Iterator[tuple[Violation, bool]]:
    """Check that every replica of a key has the same record, or no live record.

    A record that is dead at the peer's horizon of the partition may or may not be on disk. If
    unequal horizons make a difference, the replicas differ.

    Args:
        stores: what each peer holds.
        owners: the peers that should hold a storage key.
        floors: what was dropped, and may be on some disks still.

    Yields:
        each violation, and whether only some replicas have a horizon that covers the record. If it
        is from a wrong clock, they refuse what the others accepted before time had reached it.
    """
    horizons = {peer: LocalPartitions(store).horizons for peer, store in stores.items()}
    for storage_key, peers in owners.items():
        partition, index, key = split_storage_key(storage_key)
        held = {peer: stores[peer].records.get(storage_key) for peer in peers}
        counted = {
            None
            if record is None
            or is_reapable_at(record, horizons[peer][partition])
            or floors.covers(storage_key, record)
            else record
            for peer, record in held.items()
        }
        if len(counted) > 1:
            shown = ", ".join(f"{peer} {show_record(record)}" for peer, record in held.items())
            text = f"replicas differ: {shown}"
            newest = max(horizon_stamp(record) for record in counted if record is not None)
            bounds = [horizons[peer][partition] for peer in peers]
            is_covered = min(bounds) < newest <= max(bounds)
            yield Violation(_NAME, (index.decode(), key.decode()), text), is_covered
