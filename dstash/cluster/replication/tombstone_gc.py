"""How the dead leave the disk: by proof that every replica knows of the death, never by a timer.

The first replica of a partition asks all of them for a promise (``AskFloor``): refuse whatever is
stamped up to a moment H, and say what is alive there at H. When all N answers are equal, all hold
the same truth up to H. H becomes the horizon (``SetHorizon``): from then on nothing stamped up to
H comes in any more, whoever sends it, so tombstones and expired records below H can go. While a
replica is away, or placement changes, the horizon waits.
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
from dstash.store.digest import DigestKind, is_dead_at
from dstash.store.record import identity_of, is_sound
from dstash.version import Stamp, stamp_at, stamp_milliseconds
from dstash.wire.replication import AskFloor, DigestsAre, HorizonIs, ReleaseFloor, SetHorizon

Burying = Generator[Effect, Any, None]

_BATCH: Final = 256
#: Turns of the scheduler that an agreement waits for the clocks of a majority.
_TURNS: Final = 100
#: Records dropped in one transaction.
_DROPS: Final = 1000


def agree_all(replica: Replica, lag: int) -> Burying:
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
    lag = max(lag, replica.holdings.grace(replica.wall()))
    stamp = stamp_at(replica.clock.time() - lag)
    yield from _look_at_lonely(replica)
    for peers, partitions in _by_replicas(replica).items():
        yield from _agree_in_batches(replica, peers, partitions, stamp)


def even_all(replica: Replica) -> Burying:
    """Bring this peer and replicas that were found to have another horizon to the later one."""
    found, replica.holdings.uneven = replica.holdings.uneven, {}
    view = replica.view()
    groups: dict[tuple[str, Stamp], list[int]] = {}
    for (partition, other), stamp in found.items():
        peers = view.readers[partition]
        if replica.me in peers and other in peers and _can_agree(view, peers):
            groups.setdefault((other, stamp), []).append(partition)
    for (other, stamp), partitions in groups.items():
        yield from _agree_in_batches(replica, (replica.me, other), partitions, stamp)


def _look_at_lonely(replica: Replica) -> Burying:
    """Walk partitions that nobody else holds: no comparison finds out what is mortal there."""
    view = replica.view()
    for partition in range(PARTITIONS):
        if view.readers[partition] == (replica.me,):
            yield from replica.holdings.digest(partition)
            if partition % 64 == 0:
                yield Pause()


def _by_replicas(replica: Replica) -> dict[tuple[str, ...], list[int]]:
    view = replica.view()
    groups: dict[tuple[str, ...], list[int]] = {}
    for partition in range(PARTITIONS):
        peers = view.readers[partition]
        is_first = peers[:1] == (replica.me,) and replica.holdings.has_mortals(partition)
        if is_first and _can_agree(view, peers):
            groups.setdefault(peers, []).append(partition)
    return groups


def _can_agree(view: View, peers: Sequence[str]) -> bool:
    """Whether nobody is away, and nobody is filled: who is asks for horizons but once."""
    whole = all(peer in view.alive and view.members[peer].synced for peer in peers)
    return whole and view.topology.change is None


def _agree_in_batches(
    replica: Replica, peers: Sequence[str], partitions: list[int], stamp: Stamp
) -> Burying:
    for begin in range(0, len(partitions), _BATCH):
        try:
            yield from _agree(replica, peers, partitions[begin : begin + _BATCH], stamp)
        except DStashError:
            continue  # somebody went away: the horizon waits


def _agree(replica: Replica, peers: Sequence[str], partitions: list[int], stamp: Stamp) -> Burying:
    """Set the horizon of those partitions that all replicas hold alike up to a stamp.

    The others are released from their promise at once: until then they cannot be repaired.
    """
    epoch = replica.view().epoch
    question = AskFloor(pack_partitions(partitions), stamp, DigestKind.WRITES)
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
    latest = error.facts.get("latest")
    if isinstance(latest, int):
        late = replica.clock.time() - stamp_milliseconds(latest)
        replica.holdings.arrived_late(late, replica.wall())


def _equal_among(
    replica: Replica, others: Sequence[str], question: AskFloor, asked: list[str]
) -> Generator[Effect, Any, list[int]]:
    """Return the partitions of which this peer and all others gave the same digest.

    Args:
        asked: takes the peers that may have promised something.
    """
    partitions = unpack_partitions(question.partitions)
    mine = yield from handlers.floor(replica.holdings, question, replica.wall())
    if not isinstance(mine, DigestsAre):
        raise AssertionError("floor answers with digests")
    equal = dict(zip(partitions, split_digests(mine.digests, len(partitions)), strict=True))
    for peer in others:
        asked.append(peer)
        answer = yield from ask(peer, question, DigestsAre)
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
) -> Burying:
    if partitions:
        replica.holdings.release(partitions, stamp)
        for peer in asked:
            yield Tell(peer, ReleaseFloor(pack_partitions(partitions), stamp))


def _set_horizon(replica: Replica, others: Sequence[str], verdict: SetHorizon) -> Burying:
    for peer in others:
        try:
            yield from ask(peer, verdict, HorizonIs)
        except DStashError:
            # The proof holds for the other replicas. This pair is brought to one horizon later.
            partitions = unpack_partitions(verdict.partitions)
            replica.holdings.uneven |= {(one, peer): verdict.stamp for one in partitions}
    yield from handlers.horizon(replica.holdings, verdict, replica.wall())


def bury_all(replica: Replica) -> Burying:
    """Drop from disk what is dead up to the horizons, in small transactions."""
    holdings = replica.holdings
    partitions = [
        partition
        for partition in range(PARTITIONS)
        if holdings.horizons[partition] and holdings.has_mortals(partition)
    ]
    after = b""
    dead: list[tuple[bytes, bytes]] = []
    while True:
        entries = holdings.walk_all(partitions, after)
        dead += _dead_among(entries, holdings.horizons)
        is_last = len(entries) < holdings.slice_records
        if dead and (is_last or len(dead) >= _DROPS):
            yield Merge(drops=dead)
            dead = []
        if is_last:
            return
        after = entries[-1][0]
        yield Pause()


def _dead_among(entries: Entries, horizons: Sequence[Stamp]) -> list[tuple[bytes, bytes]]:
    # A damaged record may look dead; it must stay until it has been repaired.
    return [
        (storage_key, identity_of(record))
        for storage_key, record in entries
        if is_dead_at(record, horizons[int.from_bytes(storage_key[:2], "big")])
        and is_sound(storage_key, record)
    ]


def vacate(replica: Replica, partitions: Sequence[int]) -> Burying:
    """Drop partitions (ascending) that this peer holds no replica of any more.

    Horizons go first. With one, this peer would take back nothing that is older, should the next
    change of placement bring a partition here again when some of it has been dropped.
    """
    yield Merge(marks=[replica.holdings.reset(partitions)])
    at_once = 3 * replica.holdings.slice_records  # not checked, only dropped; and each is a commit
    while entries := replica.holdings.walk_all(partitions, b"", at_once):
        yield Merge(drops=[(key, identity_of(record)) for key, record in entries])
