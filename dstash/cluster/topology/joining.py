"""How a peer comes into the topology: pure decisions, applied by compare-and-set.

A cluster forms when ``min_peers`` have joined. Until then nothing can have been written, so a
peer joins at once. Afterwards it joins as ``joining``, and a change of placement brings its data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Change, Member, Restored, State, Topology
from dstash.errors import ForeignStore, ProtocolError
from dstash.store.interface import Store

#: Under which name the store keeps the newest topology, for the day the membership has lost it.
KEPT: Final = b"topology"

#: How far the epoch jumps when a lost topology is restored: two histories never share an epoch.
RESTORED_JUMP: Final = 1 << 20


def member_of(announcement: Announcement, state: State = State.ACTIVE) -> Member:
    """Return a peer as a member."""
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
    """Return the topology with a peer in it as it is now; None when there is nothing to do.

    A member that comes back with another store has lost its data: it stays a member, but counts
    as not synced until it has been filled again. While a change comes to its end a newcomer waits.
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
    """Return the topology that the peer of this store went by last; None if there was none."""
    kept = store.marked(KEPT)
    try:
        return None if kept is None else Topology.decode(kept)
    except ProtocolError:
        return None


def check_cluster(store: Store, cluster: str, where: str) -> None:
    """Refuse a store that belongs to a cluster of another name.

    Args:
        cluster: the configured name.
        where: names the data directory, for the error.

    Raises:
        ForeignStore: it belongs to another cluster.
    """
    last = last_known(store)
    if store.identity is not None and last is not None and last.cluster != cluster:
        raise ForeignStore(
            f"data directory {where} belongs to cluster {last.cluster!r}, and the configured "
            f"cluster is {cluster!r}; correct the setting, or use another data directory"
        )


def restore(last: Topology, lost: Topology | None, peer: str) -> Topology:
    """Return the topology to store where the membership has lost it, or has an older one.

    Args:
        last: the newest topology that the peer knows.
        lost: what the membership has in its place.
        peer: the peer that restores it.
    """
    epoch = max(last.epoch, lost.epoch if lost else 0) + RESTORED_JUMP
    return confirm(replace(last, epoch=epoch, restored=Restored(last.epoch)), peer)


def confirm(topology: Topology, peer: str) -> Topology:
    """Return a restored topology with one more member that knows of no newer one.

    With a majority of the members it counts. A minority may have missed changes, and may be where
    the others are not (a mistyped directory): it must not lead clients into an epoch that the
    other members do not know.
    """
    restored = topology.restored
    if restored is None or topology.member(peer) is None:
        return topology
    confirmed = tuple(sorted({*restored.confirmed, peer}))
    is_majority = 2 * len(confirmed) > len(topology.members)
    kept = None if is_majority else replace(restored, confirmed=confirmed)
    return replace(topology, restored=kept)


def confirmed(topology: Topology, peer: str) -> Topology | None:
    """Return the next topology, confirmed by a peer; None when there is nothing to do."""
    found = confirm(topology, peer)
    return None if found == topology else found.next()


def supersedes(last: Topology | None, stored: Topology, cluster: str) -> bool:
    """Whether a peer must restore the topology that it knows, in place of what is stored.

    It must when the membership was restored from an older copy, when another peer restored an
    older copy, and when an empty peer that started first has begun to form a new cluster.

    Args:
        last: the newest topology that the peer knows.
        stored: what the membership has.
        cluster: the configured name of the cluster.
    """
    if last is None or not last.formed:
        return False
    if last.cluster_id != stored.cluster_id:
        return last.cluster == cluster and not stored.formed
    return last.epoch > (stored.restored.epoch if stored.restored else stored.epoch)


def was_removed(store: Store, peer: str, topology: Topology | None) -> bool:
    """Whether a store belongs to a peer that its cluster has gone on without.

    What was deleted in the meantime must not come back with it. A peer that waited to be added,
    and never was, has nothing to bring back; and a topology older than the last known one (the
    membership was restored from a copy), or one that is not confirmed, proves nothing.
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
    """Return the topology with what is known of its members' stores.

    A store can then tell from the topology alone that it is an old copy, when all are.

    Args:
        topology: about to be stored.
        seen: by store id, the newest life that a peer has seen.
    """
    members = tuple(
        replace(one, seen=max(one.seen, tuple(seen.get(one.store_id, ()))))
        for one in topology.members
    )
    return replace(topology, members=members)


def with_change_begun(topology: Topology) -> Topology:
    """Return the topology with a change that begins with the next epoch.

    Several at once are one change. One that is under way begins anew: those that have their data
    already find so by comparing digests.
    """
    number, running = topology.epoch + 1, topology.change
    if running is None:
        return replace(topology, change=Change(number))
    return replace(topology, change=replace(running, number=number, complete=()))


def is_newcomer(topology: Topology, member: Member) -> bool:
    """Whether nobody reads from a member yet."""
    switched = topology.change is not None and topology.change.switched
    return member.state is State.JOINING and not switched


def without_data(topology: Topology, member: Member) -> Topology:
    """Return the topology in which a member's store does not hold its data.

    What it had gained by a change under way is gone too, so that begins anew. A newcomer holds
    nothing anyway, and its acks of new writes count: every write is acked elsewhere as well.
    """
    waits = not is_newcomer(topology, member)
    emptied = topology.with_member(replace(member, synced=member.synced and not waits))
    if topology.change is None or topology.change.switched:
        return emptied
    return with_change_begun(emptied)


def _update(topology: Topology, known: Member, announcement: Announcement) -> Topology | None:
    current = replace(
        member_of(announcement, known.state),
        # The weight and the zone decide where data is: they change with a change of placement.
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
