"""Tombstone garbage collection: a tombstone is dropped once every replica provably has it.

The first replica of a partition sends all of them a ``FloorRequest``: promise to refuse writes
stamped up to H, and return the digest of what is live at H. If all N digests are equal, the
replicas hold the same records up to H, and H becomes the horizon (``SetHorizon``). No record
stamped up to the horizon is accepted any more, from any sender, so tombstones and expired records
below it can be dropped. The horizon does not advance while a replica is down or placement changes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final

from dstash.cluster.replication import handlers
from dstash.cluster.replication.digests.digests import OPEN_COST_RECORDS, Entries
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge, Notify, Pause
from dstash.cluster.replication.transfer import ask
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.limits import PARTITIONS
from dstash.store.digest import DigestKind, is_reapable_at
from dstash.store.record import identity_of, is_sound, partition_in
from dstash.version import Stamp, stamp_at, stamp_milliseconds
from dstash.wire.packing import pack_partitions, split_digests, unpack_partitions
from dstash.wire.replication import (
    DigestsReply,
    FloorRequest,
    HorizonReply,
    ReleaseFloor,
    SetHorizon,
)

Reaping = Generator[Effect, Any, None]

#: Partitions in one round of agreement.
_MAX_BATCH: Final = 256
#: Scheduler steps that an agreement waits for the clocks of a majority.
_MAX_CLOCK_STEPS: Final = 100
#: Records dropped in one transaction.
_MAX_DROPS: Final = 1000


def agree_all(replica: Replica, lag: int) -> Reaping:
    """Advance the horizon of every partition that this peer is the first replica of.

    Args:
        replica: this peer.
        lag: how far (milliseconds) the horizon lags behind the cluster clock, so that writes in
            flight are newer.
    """
    for _ in range(_MAX_CLOCK_STEPS):
        if replica.clock.knows_majority:
            break
        yield Pause()  # the clocks of other members may be about to arrive
    else:
        return  # a clock without confirmation by a majority must not set a horizon
    lag = max(lag, replica.local_partitions.grace(replica.wall()))
    stamp = stamp_at(replica.clock.time() - lag)
    yield from _walk_sole_replicas(replica)
    for peers, partitions in _by_replicas(replica, stamp).items():
        yield from _agree_in_batches(replica, peers, partitions, stamp)


def reconcile_horizons(replica: Replica) -> Reaping:
    """Agree on the later horizon with every replica that was found to have another horizon."""
    found, replica.local_partitions.unreconciled = replica.local_partitions.unreconciled, {}
    view = replica.view()
    groups: dict[tuple[str, Stamp], list[int]] = {}
    for (partition, peer), stamp in found.items():
        peers = view.readers[partition]
        if replica.me in peers and peer in peers and _can_agree(view, peers):
            groups.setdefault((peer, stamp), []).append(partition)
    for (peer, stamp), partitions in groups.items():
        yield from _agree_in_batches(replica, (replica.me, peer), partitions, stamp)


def _walk_sole_replicas(replica: Replica) -> Reaping:
    """Walk partitions without another replica, because no comparison finds tombstones there."""
    view = replica.view()
    for partition in range(PARTITIONS):
        if view.readers[partition] == (replica.me,):
            yield from replica.local_partitions.digests.of(partition)
            if partition % 64 == 0:
                yield Pause()


def _by_replicas(replica: Replica, stamp: Stamp) -> dict[tuple[str, ...], list[int]]:
    """Return the partitions that need a horizon of ``stamp``, by their replicas."""
    view, local_partitions = replica.view(), replica.local_partitions
    dropped = local_partitions.drops.floors.newest
    groups: dict[tuple[str, ...], list[int]] = {}
    for partition in range(PARTITIONS):
        peers = view.readers[partition]
        if peers[:1] != (replica.me,):
            continue
        # A drop ends when all horizons have passed its stamp.
        is_before = local_partitions.horizons[partition] < dropped <= stamp
        is_useful = is_before or local_partitions.digests.gains_from(partition, stamp)
        if is_useful and _can_agree(view, peers):
            groups.setdefault(peers, []).append(partition)
    return groups


def _can_agree(view: View, peers: Sequence[str]) -> bool:
    """Whether all replicas are alive and synced: a streaming peer reads horizons only once."""
    whole = all(peer in view.alive and view.members[peer].synced for peer in peers)
    return whole and view.topology.change is None


def _agree_in_batches(
    replica: Replica, peers: Sequence[str], partitions: list[int], stamp: Stamp
) -> Reaping:
    for begin in range(0, len(partitions), _MAX_BATCH):
        try:
            yield from _agree(replica, peers, partitions[begin : begin + _MAX_BATCH], stamp)
        except DStashError:
            continue  # a replica became unavailable: the horizon stays


def _agree(replica: Replica, peers: Sequence[str], partitions: list[int], stamp: Stamp) -> Reaping:
    """Set the horizon of the partitions whose replicas are all equal up to a stamp.

    The promises for the other partitions are withdrawn at once, because they block repairs.
    """
    epoch = replica.view().epoch
    request = FloorRequest(pack_partitions(partitions), stamp, DigestKind.WRITES)
    others = [peer for peer in peers if peer != replica.me]
    asked: list[str] = []
    equal: list[int] = []
    try:
        equal = yield from _equal_among(replica, others, request, asked)
    except DStashError as error:  # a replica is unavailable or promises less: the horizon stays
        _note_lower_bound(replica, error)
    if replica.view().epoch != epoch:
        equal = []
    yield from _release(replica, asked, sorted(set(partitions).difference(equal)), stamp)
    if equal:
        yield from _set_horizon(replica, others, SetHorizon(pack_partitions(equal), stamp))


def _note_lower_bound(replica: Replica, error: DStashError) -> None:
    """Lower the next floors as far as a replica requires that receives writes late."""
    latest = error.details.get("latest")
    if isinstance(latest, int):
        late = replica.clock.time() - stamp_milliseconds(latest)
        replica.local_partitions.arrived_late(late, replica.wall())


def _equal_among(
    replica: Replica, others: Sequence[str], request: FloorRequest, asked: list[str]
) -> Generator[Effect, Any, list[int]]:
    """Return the partitions that have the same digest on this peer and on all other replicas.

    Args:
        asked: receives the peers that may have made a promise.
    """
    partitions = unpack_partitions(request.partitions)
    own = yield from handlers.floor(replica.local_partitions, request, replica.wall())
    if not isinstance(own, DigestsReply):
        raise AssertionError("floor replies with digests")
    equal = dict(zip(partitions, split_digests(own.digests, len(partitions)), strict=True))
    for peer in others:
        asked.append(peer)
        reply = yield from ask(peer, request, DigestsReply)
        if reply.kind != request.kind:
            return []  # the digests of an earlier version leave out touched records: no proof
        digests = split_digests(reply.digests, len(partitions))
        for partition, digest in zip(partitions, digests, strict=True):
            if equal.get(partition) != digest:
                equal.pop(partition, None)
        if not equal:
            return []
    return list(equal)


def _release(
    replica: Replica, asked: Sequence[str], partitions: list[int], stamp: Stamp
) -> Reaping:
    if partitions:
        replica.local_partitions.release(partitions, stamp)
        for peer in asked:
            yield Notify(peer, ReleaseFloor(pack_partitions(partitions), stamp))


def _set_horizon(replica: Replica, others: Sequence[str], decision: SetHorizon) -> Reaping:
    for peer in others:
        try:
            yield from ask(peer, decision, HorizonReply)
        except DStashError:
            # The proof holds for the other replicas; ``reconcile_horizons`` follows for this
            # replica.
            partitions = unpack_partitions(decision.partitions)
            replica.local_partitions.unreconciled |= {
                (partition, peer): decision.stamp for partition in partitions
            }
    yield from handlers.horizon(replica.local_partitions, decision, replica.wall())


def reap_all(replica: Replica) -> Reaping:
    """Drop reapable records (tombstones, expired records) up to the horizons, in small commits."""
    local_partitions = replica.local_partitions
    reapable: list[tuple[bytes, bytes]] = []
    read = 0
    for partition in range(PARTITIONS):
        for begin, end in local_partitions.digests.reapable_ranges(partition):
            for entries in local_partitions.slices_between(begin, end):
                reapable += _reapable(entries, local_partitions.horizons)
                if len(reapable) >= _MAX_DROPS:
                    yield Merge(drops=reapable)
                    reapable = []
                read += len(entries) + OPEN_COST_RECORDS
                if read >= local_partitions.slice_records:
                    read = 0
                    yield Pause()
    if reapable:
        yield Merge(drops=reapable)


def _reapable(entries: Entries, horizons: Sequence[Stamp]) -> list[tuple[bytes, bytes]]:
    # A corrupt record may look like a tombstone; it must stay until it is repaired.
    return [
        (storage_key, identity_of(record))
        for storage_key, record in entries
        if is_reapable_at(record, horizons[partition_in(storage_key)])
        and is_sound(storage_key, record)
    ]


def clean_up(replica: Replica, partitions: Sequence[int]) -> Reaping:
    """Drop partitions (ascending) that this peer no longer replicates.

    Horizons are cleared first. With a horizon this peer would refuse older records if the next
    topology change brought a partition back after a part of it was dropped.
    """
    yield Merge(marks=[replica.local_partitions.reset(partitions)])
    # Larger slices than elsewhere: records are not checked, and each slice is a commit.
    slice_records = 3 * replica.local_partitions.slice_records
    while entries := replica.local_partitions.walk_all(partitions, b"", slice_records):
        yield Merge(drops=[(key, identity_of(record)) for key, record in entries])
