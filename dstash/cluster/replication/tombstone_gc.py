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
from dstash.cluster.replication.handlers import pack_partitions, unpack_partitions
from dstash.cluster.replication.partitions import Entries
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Merge, Pause, Tell
from dstash.cluster.replication.transfer import ask, split_digests
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.limits import PARTITIONS
from dstash.store.digest import DigestKind, is_reapable_at
from dstash.store.record import identity_of, is_sound, partition_in
from dstash.version import Stamp, stamp_at, stamp_milliseconds
from dstash.wire.replication import (
    DigestsReply,
    FloorRequest,
    HorizonReply,
    ReleaseFloor,
    SetHorizon,
)

Reaping = Generator[Effect, Any, None]

_BATCH: Final = 256
#: Turns of the scheduler that an agreement waits for the clocks of a majority.
_TURNS: Final = 100
#: Records dropped in one transaction.
_DROPS: Final = 1000


def agree_all(replica: Replica, lag: int) -> Reaping:
    """Move the horizon of every partition that this peer is the first replica of.

    Args:
        lag: how far it stays behind the cluster's time (milliseconds): writes in flight are
            younger.
    """
    for _ in range(_TURNS):
        if replica.clock.knows_majority:
            break
        yield Pause()  # the clocks of others are perhaps being read
    else:
        return  # a clock that the others do not confirm must not decide what is the past
    lag = max(lag, replica.local_partitions.grace(replica.wall()))
    stamp = stamp_at(replica.clock.time() - lag)
    yield from _look_at_lonely(replica)
    for peers, partitions in _by_replicas(replica).items():
        yield from _agree_in_batches(replica, peers, partitions, stamp)


def reconcile_horizons(replica: Replica) -> Reaping:
    """Bring this peer and replicas that were found to have another horizon to the later one."""
    found, replica.local_partitions.unreconciled = replica.local_partitions.unreconciled, {}
    view = replica.view()
    groups: dict[tuple[str, Stamp], list[int]] = {}
    for (partition, other), stamp in found.items():
        peers = view.readers[partition]
        if replica.me in peers and other in peers and _can_agree(view, peers):
            groups.setdefault((other, stamp), []).append(partition)
    for (other, stamp), partitions in groups.items():
        yield from _agree_in_batches(replica, (replica.me, other), partitions, stamp)


def _look_at_lonely(replica: Replica) -> Reaping:
    """Walk partitions that nobody else holds: no comparison finds out what is mortal there."""
    view = replica.view()
    for partition in range(PARTITIONS):
        if view.readers[partition] == (replica.me,):
            yield from replica.local_partitions.digest(partition)
            if partition % 64 == 0:
                yield Pause()


def _by_replicas(replica: Replica) -> dict[tuple[str, ...], list[int]]:
    view = replica.view()
    groups: dict[tuple[str, ...], list[int]] = {}
    for partition in range(PARTITIONS):
        peers = view.readers[partition]
        is_first = peers[:1] == (replica.me,) and replica.local_partitions.has_expirable(partition)
        if is_first and _can_agree(view, peers):
            groups.setdefault(peers, []).append(partition)
    return groups


def _can_agree(view: View, peers: Sequence[str]) -> bool:
    """Whether nobody is away, and nobody is filled: who is asks for horizons but once."""
    whole = all(peer in view.alive and view.members[peer].synced for peer in peers)
    return whole and view.topology.change is None


def _agree_in_batches(
    replica: Replica, peers: Sequence[str], partitions: list[int], stamp: Stamp
) -> Reaping:
    for begin in range(0, len(partitions), _BATCH):
        try:
            yield from _agree(replica, peers, partitions[begin : begin + _BATCH], stamp)
        except DStashError:
            continue  # somebody went away: the horizon waits


def _agree(replica: Replica, peers: Sequence[str], partitions: list[int], stamp: Stamp) -> Reaping:
    """Set the horizon of those partitions that all replicas hold alike up to a stamp.

    The others are released from their promise at once: until then they cannot be repaired.
    """
    epoch = replica.view().epoch
    question = FloorRequest(pack_partitions(partitions), stamp, DigestKind.WRITES)
    others = [peer for peer in peers if peer != replica.me]
    asked: list[str] = []
    equal: list[int] = []
    try:
        equal = yield from _equal_among(replica, others, question, asked)
    except DStashError as error:  # a peer went away, or promises less: the horizon waits
        _keep_distance(replica, error)
    if replica.view().epoch != epoch:
        equal = []
    yield from _release(replica, asked, sorted(set(partitions).difference(equal)), stamp)
    if equal:
        yield from _set_horizon(replica, others, SetHorizon(pack_partitions(equal), stamp))


def _keep_distance(replica: Replica, error: DStashError) -> None:
    """Let the next floors be as old as a replica wants, to which writes come later."""
    latest = error.details.get("latest")
    if isinstance(latest, int):
        late = replica.clock.time() - stamp_milliseconds(latest)
        replica.local_partitions.arrived_late(late, replica.wall())


def _equal_among(
    replica: Replica, others: Sequence[str], question: FloorRequest, asked: list[str]
) -> Generator[Effect, Any, list[int]]:
    """Return the partitions of which this peer and all others gave the same digest.

    Args:
        asked: takes the peers that may have promised something.
    """
    partitions = unpack_partitions(question.partitions)
    mine = yield from handlers.floor(replica.local_partitions, question, replica.wall())
    if not isinstance(mine, DigestsReply):
        raise AssertionError("floor answers with digests")
    equal = dict(zip(partitions, split_digests(mine.digests, len(partitions)), strict=True))
    for peer in others:
        asked.append(peer)
        answer = yield from ask(peer, question, DigestsReply)
        if answer.kind != question.kind:
            return []  # a peer of an earlier version leaves out what was touched: it proves less
        digests = split_digests(answer.digests, len(partitions))
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
            yield Tell(peer, ReleaseFloor(pack_partitions(partitions), stamp))


def _set_horizon(replica: Replica, others: Sequence[str], verdict: SetHorizon) -> Reaping:
    for peer in others:
        try:
            yield from ask(peer, verdict, HorizonReply)
        except DStashError:
            # The proof holds for the other replicas. This pair is brought to one horizon later.
            partitions = unpack_partitions(verdict.partitions)
            replica.local_partitions.unreconciled |= {
                (one, peer): verdict.stamp for one in partitions
            }
    yield from handlers.horizon(replica.local_partitions, verdict, replica.wall())


def reap_all(replica: Replica) -> Reaping:
    """Drop from disk what is dead up to the horizons, in small transactions."""
    local_partitions = replica.local_partitions
    partitions = [
        partition
        for partition in range(PARTITIONS)
        if local_partitions.horizons[partition] and local_partitions.has_expirable(partition)
    ]
    after = b""
    dead: list[tuple[bytes, bytes]] = []
    while True:
        entries = local_partitions.walk_all(partitions, after)
        dead += _count_tombstones(entries, local_partitions.horizons)
        is_last = len(entries) < local_partitions.slice_records
        if dead and (is_last or len(dead) >= _DROPS):
            yield Merge(drops=dead)
            dead = []
        if is_last:
            return
        after = entries[-1][0]
        yield Pause()


def _count_tombstones(entries: Entries, horizons: Sequence[Stamp]) -> list[tuple[bytes, bytes]]:
    # A damaged record may look dead; it must stay until it has been repaired.
    return [
        (storage_key, identity_of(record))
        for storage_key, record in entries
        if is_reapable_at(record, horizons[partition_in(storage_key)])
        and is_sound(storage_key, record)
    ]


def clean_up(replica: Replica, partitions: Sequence[int]) -> Reaping:
    """Drop partitions (ascending) that this peer holds no replica of any more.

    Horizons go first. With one, this peer would take back nothing that is older, should the next
    change of placement bring a partition here again when some of it has been dropped.
    """
    yield Merge(marks=[replica.local_partitions.reset(partitions)])
    at_once = (
        3 * replica.local_partitions.slice_records
    )  # not checked, only dropped; and each is a commit
    while entries := replica.local_partitions.walk_all(partitions, b"", at_once):
        yield Merge(drops=[(key, identity_of(record)) for key, record in entries])
