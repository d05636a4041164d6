"""Joining: how a peer enters the topology, as pure functions; compare-and-set applies the result.

A cluster forms when ``min_peers`` have joined. Before that no data can have been written, so a peer
becomes active at once. Afterwards it enters as ``joining``, and a topology change streams its data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.registers import streams_last
from dstash.cluster.topology.topology import Change, Member, Restored, State, Topology
from dstash.errors import ForeignStore, ProtocolError
from dstash.store.interface import Store

#: The mark under which the store keeps the newest topology, in case the membership loses it.
KEPT: Final = b"topology"

#: How far the epoch jumps when a lost topology is restored, so that two histories share no epoch.
RESTORED_JUMP: Final = 1 << 20
#: The highest random number that is added to it.
MAX_FURTHER: Final = (1 << 16) - 1
#: How far an epoch of a client may be ahead, at most: more is not that of a topology that was lost.
_MAX_AHEAD: Final = 64 * RESTORED_JUMP


def member_of(announcement: Announcement, state: State = State.ACTIVE) -> Member:
    """Return the member that an announcement describes."""
    return Member(
        id=announcement.peer,
        address=announcement.address,
        store_id=announcement.store_id,
        zone=announcement.zone,
        weight=announcement.weight,
        http=announcement.http,
        state=state,
        key=announcement.key,
        plain=announcement.plain,
        features=announcement.features,
    )


def found(
    announcement: Announcement, cluster: str, cluster_id: str, replicas: int, min_peers: int
) -> Topology:
    """Return the first topology of a cluster, with its first member."""
    return Topology(
        cluster=cluster,
        cluster_id=cluster_id,
        epoch=1,
        replicas=replicas,
        min_peers=min_peers,
        formed=min_peers <= 1,
        members=(member_of(announcement),),
    )


def join(topology: Topology, announcement: Announcement) -> Topology | None:
    """Return the topology with a peer as it announces itself; None when nothing changes.

    A member that returns with another store has lost its data: it stays a member, but is not synced
    until it has streamed its data again. A new peer waits while a topology change completes.
    """
    known = topology.member(announcement.peer)
    if known is not None:
        return _update(topology, known, announcement)
    if not topology.formed:
        grown = topology.with_member(member_of(announcement))
        return replace(grown, formed=len(grown.members) >= grown.min_peers).next()
    if topology.change is not None and topology.change.switched:
        return None
    grown = topology.with_member(member_of(announcement, State.JOINING))
    return with_change_begun(grown).next()


def last_known(store: Store) -> Topology | None:
    """Return the last topology that the peer of this store used; None if there was none."""
    kept = store.marked(KEPT)
    try:
        return None if kept is None else Topology.decode(kept)
    except ProtocolError:
        return None


def was_in_cluster(store: Store) -> bool:
    """Whether the peer of this store has used the topology of a formed cluster."""
    last = last_known(store)
    return last is not None and last.formed


def check_cluster(store: Store, cluster: str, where: str) -> None:
    """Check that a store belongs to the configured cluster.

    Args:
        store: the store.
        cluster: the configured name.
        where: the data directory, for the error.

    Raises:
        ForeignStore: the store belongs to another cluster.
    """
    last = last_known(store)
    if store.identity is not None and last is not None and last.cluster != cluster:
        raise ForeignStore(
            f"data directory {where} belongs to cluster {last.cluster!r}, and the configured "
            f"cluster is {cluster!r}; correct the setting, or use another data directory"
        )


def restore(
    last: Topology, lost: Topology | None, peer: str, above: int = 0, further: int = 0
) -> Topology:
    """Return the topology to store when the membership has lost it, or has an older version.

    Args:
        last: the newest topology that the peer knows.
        lost: the topology that the membership has instead, if any.
        peer: the peer that restores it.
        above: the highest epoch of a restored topology that this peer remembers.
        further: a random number up to ``MAX_FURTHER``. Others may have restored the same topology
            in the meantime, and lost it again.
    """
    epoch = max(last.epoch, lost.epoch if lost else 0, above) + RESTORED_JUMP + further
    return confirm(replace(last, epoch=epoch, restored=Restored(last.epoch)), peer)


def restore_above(topology: Topology, peer: str, epoch: int) -> Topology | None:
    """Return the topology above an epoch that clients have; None if that is not needed.

    Members that had a topology of that epoch have lost it: their disks were full, and they were
    killed. Clients do not go back to an earlier epoch, so they could not use the cluster any more.
    A member that has a later topology after all does not confirm this one: it restores its own.

    Args:
        topology: the topology that the membership has.
        peer: the peer that restores it.
        epoch: an epoch that no member knows.
    """
    is_used = topology.formed and topology.restored is None and topology.member(peer) is not None
    if not is_used or not may_be_lost(topology, epoch):
        return None
    return restore(topology, None, peer, epoch)


def may_be_lost(topology: Topology, epoch: int) -> bool:
    """Whether an epoch may be that of a later topology which its members have lost."""
    return topology.epoch < epoch <= topology.epoch + _MAX_AHEAD


def above_restored(topology: Topology, above: int, further: int) -> Topology:
    """Return a restored topology under an epoch that no earlier one can have had.

    Args:
        topology: restored by a proposal.
        above: the highest epoch of a restored topology that this peer remembers.
        further: a random number, as in ``restore``.
    """
    return replace(topology, epoch=max(topology.epoch, above + RESTORED_JUMP) + further)


def confirm(topology: Topology, peer: str) -> Topology:
    """Return a restored topology, confirmed by another member that has no newer version.

    It takes effect when a majority of the members has confirmed it. A minority may have missed
    changes, or may use another membership by mistake (a mistyped directory): it must not move
    clients to an epoch that the other members do not have.
    """
    restored = topology.restored
    if restored is None or topology.member(peer) is None:
        return topology
    confirmed = tuple(sorted({*restored.confirmed, peer}))
    is_majority = 2 * len(confirmed) > len(topology.members)
    kept = None if is_majority else replace(restored, confirmed=confirmed)
    return replace(topology, restored=kept)


def confirmed(topology: Topology, peer: str) -> Topology | None:
    """Return the next topology, confirmed by a peer; None when nothing changes."""
    found = confirm(topology, peer)
    return None if found == topology else found.next()


def supersedes(last: Topology | None, stored: Topology, cluster: str) -> bool:
    """Whether a peer must restore its own topology in place of the stored topology.

    This is the case when the membership was restored from an older copy, when another peer restored
    an older copy, and when an empty peer that started first has begun to form a new cluster.

    Args:
        last: the newest topology that the peer knows.
        stored: the topology that the membership has.
        cluster: the configured name of the cluster.
    """
    if last is None or not last.formed:
        return False
    if last.cluster_id != stored.cluster_id:
        return last.cluster == cluster and not stored.formed
    return last.epoch > (stored.restored.epoch if stored.restored else stored.epoch)


def shares_epoch(last: Topology, stored: Topology) -> bool:
    """Whether the membership has another topology under the epoch of the last known one.

    This is the case when an older copy of the topology was put back before other members knew of
    the last changes, and the cluster has changed since.

    Args:
        last: the newest topology that the peer knows.
        stored: the topology that the membership has.
    """
    is_same_epoch = (last.cluster_id, last.epoch) == (stored.cluster_id, stored.epoch)
    return last.formed and is_same_epoch and last != stored


def under_own_epoch(stored: Topology, above: int = 0, further: int = 0) -> Topology:
    """Return the stored topology under an epoch, and a change number, that no other history has.

    Args:
        stored: the topology that the membership has.
        above: the highest epoch of a restored topology that this peer remembers.
        further: a random number, as in ``restore``.
    """
    ahead = replace(stored, epoch=max(stored.epoch, above) + RESTORED_JUMP + further)
    is_streaming = ahead.change is not None and not ahead.change.switched
    return (with_change_begun(ahead) if is_streaming else ahead).next()


def was_removed(store: Store, peer: str, topology: Topology | None) -> bool:
    """Whether a store belongs to a peer that was removed from its cluster.

    Its return could bring back records that were deleted in the meantime. A candidate that was
    never added has no records to bring back. A topology that is older than the last known one
    (because the membership was restored from a copy), or not confirmed, proves nothing.
    """
    last = last_known(store)
    return (
        topology is not None
        and topology.restored is None
        and last is not None
        and last.cluster_id == topology.cluster_id
        and last.epoch < topology.epoch
        and last.member(peer) is not None
        and topology.member(peer) is None
    )


def with_seen(topology: Topology, seen: Mapping[str, Life]) -> Topology:
    """Return the topology with the newest known life of each member's store.

    An old copy of a store is then detected from the topology alone, even if all stores are old.

    Args:
        topology: the topology that is about to be stored.
        seen: by store id, the newest life that a peer has seen.
    """
    members = tuple(
        replace(member, seen=max(member.seen, tuple(seen.get(member.store_id, ()))))
        for member in topology.members
    )
    return replace(topology, members=members)


def with_change_begun(topology: Topology) -> Topology:
    """Return the topology with a topology change that begins with the next epoch.

    Concurrent changes are merged. A running change restarts: members that have streamed
    their data find that out by comparing digests.
    """
    running = topology.change or Change(0)
    begun = replace(
        running,
        number=topology.epoch + 1,
        complete=(),
        registers_last=streams_last(topology),
        resting=False,
        registers_complete=(),
    )
    return replace(topology, change=begun)


def is_newcomer(topology: Topology, member: Member) -> bool:
    """Whether a member does not serve reads yet."""
    switched = topology.change is not None and topology.change.switched
    return member.state is State.JOINING and not switched


def without_data(topology: Topology, member: Member) -> Topology:
    """Return the topology in which a member's store does not hold its data.

    A running topology change restarts, because the partitions that the member had gained are lost
    too. A newcomer stays synced: it has no data yet, and its acks of new writes may count, because
    every write is acked by the old replica set as well.
    """
    synced = member.synced and is_newcomer(topology, member)
    emptied = topology.with_member(replace(member, synced=synced))
    if topology.change is None or topology.change.switched:
        return emptied
    return with_change_begun(emptied)


def _update(topology: Topology, known: Member, announcement: Announcement) -> Topology | None:
    current = replace(
        member_of(announcement, known.state),
        # Weight and zone decide the placement, so only a topology change changes them.
        weight=known.weight,
        zone=known.zone,
        synced=known.synced,
        seen=known.seen if known.store_id == announcement.store_id else (),
        waived=known.waived if known.store_id == announcement.store_id else "",
    )
    if current == known:
        return None
    if known.store_id != current.store_id and topology.formed:
        return without_data(topology, current).next()
    return topology.with_member(current).next()
