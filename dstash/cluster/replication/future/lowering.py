"""Lowering: floors and horizons that clocks have set far ahead of the time are taken back.

Without registers a peer lowers them at once. Rounds of registers must stay above every horizon that
a replica ever had: it may have dropped a tombstone up to it (R8). So in a cluster with registers a
peer first asks the other replicas of its partitions for their horizons, and keeps the highest ones
as floors of registers (T7 of ``docs/atomic.md``). A replica that answers withdraws its promises
before, so that no horizon of an earlier agreement follows, and promises nothing until it has
lowered its own floors.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.cluster.replication.transfer import ask
from dstash.cluster.topology.topology import State
from dstash.cluster.topology.view import View
from dstash.errors import DStashError, ProtocolError
from dstash.version import Stamp
from dstash.wire.packing import pack_partitions, split_horizons, unpack_partitions
from dstash.wire.registers.consensus import RegisterFloorsReply, RegisterFloorsRequest

_RETRY_MS: Final = 300


def lower_floors(replica: Replica) -> Generator[Effect, Any, None]:
    """Lower floors and horizons (as a task) as the topology demands; wait for other replicas.

    A peer that is streaming lowers its own at once, because it will adopt horizons that are right;
    its votes do not count yet.
    """
    local_partitions, is_first = replica.local_partitions, True
    while local_partitions.is_lowering:
        view = replica.view()
        ceiling, epoch = view.topology.ceiling, view.topology.ceiling_epoch
        if not view.topology.registers:
            yield from local_partitions.lower(ceiling, epoch)
            continue
        local_partitions.withdraw()
        is_streaming = not _counts(view, replica.me)
        if is_streaming and is_first:
            yield from local_partitions.lower(ceiling, local_partitions.lowered_in, {})
        is_first = False
        try:
            floors = yield from _floors_of_others(replica)
        except DStashError:
            yield Pause(_RETRY_MS)  # a replica is down, or has not the topology yet
            continue
        if replica.view().topology.ceiling_epoch != epoch:
            continue
        if is_streaming:
            above = {number: stamp for number, stamp in floors.items() if stamp > ceiling}
            yield from local_partitions.end_lowering(epoch, above)
        else:
            yield from local_partitions.lower(ceiling, epoch, floors)


def _counts(view: View, peer: str) -> bool:
    """Whether a member has its data, so that its horizons are those of its replicas."""
    member = view.members.get(peer)
    return member is not None and member.synced and member.state is not State.JOINING


def _floors_of_others(replica: Replica) -> Generator[Effect, Any, dict[int, Stamp]]:
    """Return, by partition, the highest horizon or floor of the other replicas."""
    view, me = replica.view(), replica.me
    shared: dict[str, list[int]] = {}
    for partition in sorted(view.owned_by(me)):
        for peer in {*view.before[partition], *view.writers[partition]} - {me}:
            shared.setdefault(peer, []).append(partition)
    floors: dict[int, Stamp] = {}
    for peer, partitions in sorted(shared.items()):
        request = RegisterFloorsRequest(pack_partitions(partitions))
        reply = yield from ask(peer, request, RegisterFloorsReply)
        stamps = split_horizons(reply.floors, len(partitions))
        if len(stamps) != len(partitions):
            raise ProtocolError(f"{peer} sent {len(reply.floors)} bytes of floors")
        for partition, stamp in zip(partitions, stamps, strict=True):
            floors[partition] = max(stamp, floors.get(partition, 0))
    return floors


def register_floors(
    local_partitions: LocalPartitions, request: RegisterFloorsRequest, now: int
) -> Generator[Effect, Any, RegisterFloorsReply]:
    """Withdraw earlier promises, then reply with the highest horizon that partitions have had."""
    if local_partitions.is_lowering:  # else they were made after floors were lowered
        local_partitions.withdraw()
    yield Pause()
    stamps = map(local_partitions.reaped, unpack_partitions(request.partitions))
    return RegisterFloorsReply(b"".join(stamp.to_bytes(8, "big") for stamp in stamps))
