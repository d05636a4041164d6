"""The steps of a change of placement: pure functions from one topology to the next.

Each returns None when there is nothing to do, so each may be proposed by anybody, any number of
times; compare-and-set makes one of them win.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.joining import is_newcomer, member_of, with_change_begun, without_data
from dstash.cluster.topology.topology import Change, Member, State, Topology
from dstash.cluster.topology.view import placement
from dstash.errors import ChangeConflict, UsageError
from dstash.types import Level
from dstash.version import Stamp


def incoming(topology: Topology) -> dict[str, list[int]]:
    """Return, by member, the partitions it must be filled with by the change under way."""
    gained: dict[str, list[int]] = {}
    if topology.change is None:
        return gained
    before = placement(topology.before(), topology.replicas)
    after = placement(topology.after(), topology.replicas)
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            for peer in new if survivors_lack_quorum(old, new) else set(new).difference(old):
                gained.setdefault(peer, []).append(number)
    return gained


def survivors_lack_quorum(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether those who stay must be filled too, because too few of them have every write.

    A write that was acked is on a quorum of its replicas: all that reads, and later changes, rely
    on. Of a quorum of the old ones those who leave may be part; who is filled has everything.
    With as many replicas as before that makes a quorum again, with fewer it may not.
    """
    leaving, gaining = set(old).difference(new), set(new).difference(old)
    have_it = Level.QUORUM.needed(len(old)) - len(leaving) + len(gaining)
    return have_it < Level.QUORUM.needed(len(new))


def complete(topology: Topology, peer: str, number: int) -> Topology | None:
    """Return the topology in which a member has all it gains by change ``number``."""
    change = topology.change
    if change is None or change.number != number or peer in change.complete:
        return None
    done = tuple(sorted({*change.complete, peer}))
    return replace(topology, change=replace(change, complete=done)).next()


def switch(topology: Topology) -> Topology | None:
    """Return the topology in which reads use the new placement: all gains are complete.

    Writes go on to both, for others may read from the old one still, by an older topology.
    """
    change = topology.change
    if change is None or change.switched:
        return None
    if incoming(topology).keys() - set(change.complete):
        return None
    return replace(topology, change=replace(change, switched=True)).next()


def finish(topology: Topology, number: int) -> Topology | None:
    """Return the topology after change ``number``.

    To be proposed when nobody can read from the old replica sets any more (see ``switching``).
    """
    change = topology.change
    if change is None or change.number != number or not change.switched:
        return None
    members = tuple(replace(one, state=State.ACTIVE) for one in topology.after())
    return replace(topology, members=members, change=None).next()


def streamed(topology: Topology, peer: str, store_id: str) -> Topology | None:
    """Return the topology in which a member's new store holds its data again."""
    member = topology.member(peer)
    if member is None or member.synced or member.store_id != store_id:
        return None
    return topology.with_member(replace(member, synced=True, waived="")).next()


def lost(topology: Topology, peer: str, store_id: str) -> Topology | None:
    """Return the topology in which a member's store must be filled before it counts."""
    member, change = topology.member(peer), topology.change
    if member is None or not member.synced or member.store_id != store_id:
        return None
    if is_newcomer(topology, member) and (change is None or peer not in change.complete):
        return None  # nothing counts on it yet
    return without_data(topology, member).next()


def remove(topology: Topology, peers: Sequence[str]) -> Topology:
    """Return the topology in which members begin to leave.

    Raises:
        ChangeConflict: unknown members, one that is joining, or nobody would be left.
    """
    return _begin(topology, _with_leaving(topology, peers))


def remove_down(topology: Topology, peers: Sequence[str], alive: Collection[str]) -> Topology:
    """Return the topology in which dead members leave because an operator gave them up.

    Raises:
        ChangeConflict: one of them is alive; or more than a third of the members are down.
    """
    living = [peer for peer in peers if peer in alive]
    if living:
        raise ChangeConflict(f"peer {living[0]!r} is alive; remove it, or stop it first")
    down = [one.id for one in topology.members if one.id not in alive]
    if _sees_badly(topology, len(down)):
        raise ChangeConflict(
            f"{len(down)} of {len(topology.members)} members are down ({', '.join(down)}), more "
            "than a third: is it the control plane that is lost? Members that are really dead "
            "can be removed"
        )
    return remove(topology, peers)


def force_remove(topology: Topology, peers: Sequence[str], alive: Collection[str]) -> Topology:
    """Return the topology that goes on without members that are down.

    A member that was joining is dropped from the topology change; any other one leaves, and the end
    of the change does not wait for it. Once reads have switched to the new replica sets no member
    can leave any more, and only that is so.

    Raises:
        ChangeConflict: one of them is alive or unknown, or no member would be left.
    """
    states = {peer: _known(topology, peer).state for peer in peers}
    for peer in peers:
        if peer in alive:
            raise ChangeConflict(f"peer {peer!r} is alive; use remove, or stop it first")
    change = topology.change
    if change is not None and change.switched:
        return _without_waiting(topology, peers).next()
    left = topology.without(peer for peer, state in states.items() if state is State.JOINING)
    staying = [peer for peer, state in states.items() if state is not State.JOINING]
    members = _with_leaving(left, staying)
    if change is not None and all(one.state is State.ACTIVE for one in members):
        return cancel(topology)
    return _without_waiting(_begin(topology, members), staying)


def _without_waiting(topology: Topology, peers: Sequence[str]) -> Topology:
    change = _running_change(topology)
    gone = tuple(sorted({*change.gone, *peers}))
    return replace(topology, change=replace(change, gone=gone))


def accept_loss(topology: Topology, peers: Sequence[str], alive: Collection[str]) -> Topology:
    """Return the topology in which members give up their vote about the past.

    Nothing waits any more for what they may have known: the others are filled from those that are
    left, and where none is left the stores count as they are.

    Raises:
        ChangeConflict: one of them is alive and has its data, or holds none yet; or is unknown.
    """
    accepted = topology
    for peer in peers:
        member = _known(accepted, peer)
        if is_newcomer(accepted, member):
            raise ChangeConflict(f"peer {peer!r} is joining: it holds nothing that could be lost")
        if member.synced and peer in alive:
            raise ChangeConflict(f"peer {peer!r} is alive and has its data: nothing of it is lost")
        waived = replace(member, waived=member.store_id)
        if member.synced:
            accepted = without_data(accepted, waived)
        else:
            accepted = accepted.with_member(waived)
    return accepted.next()


def forget(topology: Topology, dead: Sequence[str], down: int) -> Topology | None:
    """Return the topology in which dead members leave, so that others take their data.

    Never when more than a third of the members are down (``down`` of them): then it is likelier
    that this peer sees badly. Nor when too few would be left to hold every replica: nothing
    would be gained.
    """
    left = len(topology.members) - len(dead)
    if not dead or _sees_badly(topology, down) or left < topology.replicas:
        return None
    return remove(topology, dead)


def add(topology: Topology, announcements: Sequence[Announcement]) -> Topology:
    """Return the topology in which candidates begin to join.

    Raises:
        ChangeConflict: one of them is a member already.
    """
    joined = topology
    for announcement in announcements:
        if topology.member(announcement.peer) is not None:
            raise ChangeConflict(f"peer {announcement.peer!r} is a member already")
        joined = joined.with_member(member_of(announcement, State.JOINING))
    return _begin(topology, joined.members)


def swap(topology: Topology, old: str, announcement: Announcement) -> Topology:
    """Return the topology in which a candidate begins to take the place of a member."""
    added = add(topology, [announcement])
    return replace(added, members=_with_leaving(added, [old]))


def drop_dead_joiners(topology: Topology, dead: Sequence[str], down: int) -> Topology | None:
    """Return the topology without dead members that were about to join: they hold up the rest.

    Like ``forget``, never when more than a third of the members are down.
    """
    gone = [one.id for one in topology.members if one.id in dead and one.state is State.JOINING]
    if not gone or _sees_badly(topology, down) or _running_change(topology).switched:
        return None
    left = topology.without(gone)
    if all(one.state is State.ACTIVE for one in left.members):
        return cancel(topology)
    return _begin(topology, left.members)


def cancel(topology: Topology) -> Topology:
    """Return the topology with the placement from before the change under way.

    Nothing is lost: every write was acked by the old replica sets too.
    """
    _check_not_switched(topology)
    _running_change(topology)
    members = tuple(replace(one, state=State.ACTIVE) for one in topology.before())
    return replace(topology, members=members, change=None).next()


def steer(topology: Topology, *, paused: bool | None = None, rate: int | None = None) -> Topology:
    """Return the topology with the change under way paused, resumed, or at another rate."""
    change = _running_change(topology)
    change = replace(
        change,
        paused=change.paused if paused is None else paused,
        rate=change.rate if rate is None else rate,
    )
    return replace(topology, change=change).next()


def lower_floors(topology: Topology, alive: Collection[str], stamp: Stamp) -> Topology:
    """Return the topology that has each peer lower its floors and horizons to a stamp.

    All members must be there and hold their data, and no placement may change: a replica that is
    away could bring back what was deleted, collected, and is above the stamp.

    Raises:
        ChangeConflict: a member is away or is being filled, or a change is under way.
    """
    if topology.change is not None:
        raise ChangeConflict("a change of placement is under way; lower floors when it has ended")
    for member in topology.members:
        if member.id not in alive:
            raise ChangeConflict(f"peer {member.id!r} is down; all must be there to lower floors")
        if not member.synced:
            raise ChangeConflict(f"peer {member.id!r} is being filled; lower floors after that")
    begun = topology.next()
    return replace(begun, ceiling=stamp, ceiling_epoch=begun.epoch)


def _begin(topology: Topology, members: tuple[Member, ...]) -> Topology:
    if not topology.formed:
        raise ChangeConflict("the cluster has not formed yet")
    _check_not_switched(topology)
    begun = replace(topology, members=members)
    if not begun.after():
        raise ChangeConflict("no member would be left")
    return with_change_begun(begun).next()


def _with_leaving(topology: Topology, peers: Sequence[str]) -> tuple[Member, ...]:
    leaving = {_known(topology, peer).id for peer in peers}
    for peer in peers:
        if _known(topology, peer).state is State.JOINING:
            # Who leaves is read from until the end; who joins has nothing to be read yet.
            raise ChangeConflict(f"peer {peer!r} is joining; cancel that instead")
    return tuple(
        replace(one, state=State.LEAVING) if one.id in leaving else one for one in topology.members
    )


def _sees_badly(topology: Topology, down: int) -> bool:
    """Whether so many members look dead that it is likelier the control plane that is lost."""
    return down * 3 > len(topology.members)


def _check_not_switched(topology: Topology) -> None:
    if topology.change is not None and topology.change.switched:
        raise ChangeConflict("a change of placement is complete and ends now; try again then")


def _known(topology: Topology, peer: str) -> Member:
    member = topology.member(peer)
    if member is None:
        known = ", ".join(one.id for one in topology.members)
        raise ChangeConflict(f"no member {peer!r}; members are {known}")
    return member


def _running_change(topology: Topology) -> Change:
    if topology.change is None:
        raise ChangeConflict("no change is under way")
    return topology.change


def ordered(
    topology: Topology,
    alive: Mapping[str, Announcement],
    action: str,
    peers: Sequence[str],
    rate: int,
    stamp: Stamp = 0,
) -> Topology:
    """Return the topology that an operator's order asks for.

    Args:
        alive: the live peers, members and candidates.
        action: ``add``, ``remove``, ``forget``, ``force-remove``, ``accept-loss``, ``replace``
            (old, new), ``cancel``, ``pause``, ``resume``, ``rate`` or
            ``lower-floors``.
        peers: whom it is about.
        rate: bytes a second, for ``rate``, and for what begins a change (0: as it was).
        stamp: the cluster's time, for ``lower-floors``.

    Raises:
        ChangeConflict: it cannot be done now; the text says why.
        UsageError: no such action, or the wrong number of peers.
    """
    match action, list(peers):
        case "add", [_, *_]:
            return _bounded(add(topology, [_candidate(alive, peer) for peer in peers]), rate)
        case "remove", [_, *_]:
            return _bounded(remove(topology, peers), rate)
        case "forget", [_, *_]:
            return _bounded(remove_down(topology, peers, alive), rate)
        case "force-remove", [_, *_]:
            return force_remove(topology, peers, alive)
        case "accept-loss", [_, *_]:
            return accept_loss(topology, peers, alive)
        case "replace", [old, new]:
            return _bounded(swap(topology, old, _candidate(alive, new)), rate)
        case "cancel", []:
            return cancel(topology)
        case "pause", []:
            return steer(topology, paused=True)
        case "resume", []:
            return steer(topology, paused=False)
        case "rate", []:
            return steer(topology, rate=rate)
        case "lower-floors", [] if stamp:
            return lower_floors(topology, alive, stamp)
    raise UsageError(f"{action!r} with {len(peers)} peers is not an order")


def _bounded(begun: Topology, rate: int) -> Topology:
    change = _running_change(begun)
    return replace(begun, change=replace(change, rate=rate or change.rate))


def _candidate(alive: Mapping[str, Announcement], peer: str) -> Announcement:
    announcement = alive.get(peer)
    if announcement is None:
        known = ", ".join(sorted(alive)) or "none"
        raise ChangeConflict(f"peer {peer!r} is not running; running are {known}")
    return announcement
