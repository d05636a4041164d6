"""Transitions: the steps of a topology change, as pure functions from one topology to the next.

A step returns None when nothing changes, so every member may propose it any number of times;
compare-and-set lets one proposal win.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from dstash.cluster.topology import drops
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.drops import lowered
from dstash.cluster.topology.indexes import settings
from dstash.cluster.topology.joining import is_newcomer, member_of, with_change_begun, without_data
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.registers import check_lowering, check_version
from dstash.cluster.topology.rendezvous import Table
from dstash.cluster.topology.topology import Change, Member, State, Topology
from dstash.cluster.topology.view import placement, survivors_lack_quorum
from dstash.errors import ChangeConflict, UsageError
from dstash.version import Stamp

#: A step that waits to be made: returns the next topology, or None if it is no longer needed.
Proposal = Callable[[Topology], Topology | None]


def incoming(topology: Topology) -> Mapping[str, tuple[int, ...]]:
    """Return, by member, the partitions that it must stream in the running topology change."""
    if topology.change is None:
        return {}
    before = placement(topology.before(), topology.replicas)
    after = placement(topology.after(), topology.replicas)
    return _gains(before, after)


@functools.lru_cache(maxsize=4)  # it is asked for in each round of a change, and by each status
def _gains(before: Table, after: Table) -> Mapping[str, tuple[int, ...]]:
    gained: dict[str, list[int]] = {}
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            for peer in new if survivors_lack_quorum(old, new) else set(new).difference(old):
                gained.setdefault(peer, []).append(number)
    return MappingProxyType({peer: tuple(numbers) for peer, numbers in gained.items()})


def complete(topology: Topology, peer: str, number: int, life: Life) -> Topology | None:
    """Return the topology in which a member has streamed all its gains of change ``number``.

    From then on the store of a newcomer counts, so its new life is named, as in ``streamed``. That
    of any other member is not: it may be an old copy, whose life would hide the newest one.
    """
    change, member = topology.change, topology.member(peer)
    if change is None or change.number != number or peer in change.complete or member is None:
        return None
    if is_newcomer(topology, member):
        topology = topology.with_member(_with_life(member, life))
    done = tuple(sorted({*change.complete, peer}))
    return replace(topology, change=replace(change, complete=done)).next()


def complete_registers(topology: Topology, peer: str, number: int) -> Topology | None:
    """Return the topology in which a member has streamed the registers of its gains, too.

    ``complete`` alone does not count: until registers rest, they change on their old replicas.
    """
    change = topology.change
    if change is None or change.number != number or not change.resting:
        return None
    if peer in change.registers_complete:
        return None
    done = tuple(sorted({*change.registers_complete, peer}))
    return replace(topology, change=replace(change, registers_complete=done)).next()


def switch(topology: Topology) -> Topology | None:
    """Return the topology after all gains are complete; None until then.

    Reads use the new placement. Writes still go to both placements, because clients with an older
    topology read the old placement. If registers are streamed last, they rest first (T1).
    """
    change = topology.change
    if change is None or change.switched:
        return None
    gaining = incoming(topology).keys()
    if gaining - set(change.complete):
        return None
    if change.registers_last and not change.resting:
        return replace(topology, change=replace(change, resting=True)).next()
    if change.registers_last and gaining - set(change.registers_complete):
        return None
    return replace(topology, change=replace(change, switched=True)).next()


def finish(topology: Topology, number: int) -> Topology | None:
    """Return the topology after change ``number``.

    Propose it only when no quorum serves the old replica sets any more (see ``epoch_barrier``).
    """
    change = topology.change
    if change is None or change.number != number or not change.switched:
        return None
    members = tuple(replace(member, state=State.ACTIVE) for member in topology.after())
    return replace(topology, members=members, change=None).next()


def streamed(topology: Topology, peer: str, store_id: str, life: Life) -> Topology | None:
    """Return the topology in which a member has streamed its data into its store again.

    It names the life that this began (not how new it is). So a copy of the store from before it is
    recognised from the moment the store votes, even if no member has heard of that life.
    """
    member = topology.member(peer)
    if member is None or member.synced or member.store_id != store_id:
        return None
    counts_again = replace(_with_life(member, life), synced=True, waived="")
    return topology.with_member(counts_again).next()


def _with_life(member: Member, life: Life) -> Member:
    return replace(member, seen=max(member.seen, tuple(life._replace(stamp=0))))


def lost(topology: Topology, peer: str, store_id: str) -> Topology | None:
    """Return the topology in which a member must stream its data before its votes count."""
    member, change = topology.member(peer), topology.change
    if member is None or not member.synced or member.store_id != store_id:
        return None
    if is_newcomer(topology, member) and (change is None or peer not in change.complete):
        return None  # its votes do not count yet
    return without_data(topology, member).next()


def remove(topology: Topology, peers: Sequence[str]) -> Topology:
    """Return the topology in which members begin to leave.

    Raises:
        ChangeConflict: a member is unknown or joining, or no member would be left.
    """
    return _begin(topology, _with_leaving(topology, peers))


def remove_down(topology: Topology, peers: Sequence[str], alive: Collection[str]) -> Topology:
    """Return the topology in which members that are down leave, at the request of an operator.

    Raises:
        ChangeConflict: one of them is alive; or more than a third of the members are down.
    """
    live = [peer for peer in peers if peer in alive]
    if live:
        raise ChangeConflict(f"peer {live[0]!r} is alive; remove it, or stop it first")
    down = [member.id for member in topology.members if member.id not in alive]
    if _too_many_down(topology, len(down)):
        raise ChangeConflict(
            f"{len(down)} of {len(topology.members)} members are down ({', '.join(down)}), more "
            "than a third: check whether this peer has lost the membership service. Members that "
            "have really failed can be removed"
        )
    return remove(topology, peers)


def force_remove(topology: Topology, peers: Sequence[str], alive: Collection[str]) -> Topology:
    """Return the topology that continues without members that are down.

    A joining member is dropped from the topology change. Any other member leaves, and the end of
    the change does not wait for it. After reads have switched to the new replica sets no member can
    leave any more; then only the wait is skipped.

    Raises:
        ChangeConflict: a member is alive or unknown, or no member would be left.
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
    if change is not None and all(member.state is State.ACTIVE for member in members):
        return cancel(topology)
    return _without_waiting(_begin(topology, members), staying)


def _without_waiting(topology: Topology, peers: Sequence[str]) -> Topology:
    change = _running_change(topology)
    gone = tuple(sorted({*change.gone, *peers}))
    return replace(topology, change=replace(change, gone=gone))


def accept_loss(topology: Topology, peers: Sequence[str], alive: Collection[str]) -> Topology:
    """Return the topology in which the loss of members' data is accepted and their votes waived.

    Other members no longer wait for writes that only these members may have had: they stream from
    the remaining replicas, and where none remains the stores count as they are.

    Raises:
        ChangeConflict: a member is alive and has its data, holds none yet, or is unknown.
    """
    accepted = topology
    for peer in peers:
        member = _known(accepted, peer)
        if is_newcomer(accepted, member):
            raise ChangeConflict(f"peer {peer!r} is joining and has no data to lose")
        if member.synced and peer in alive:
            raise ChangeConflict(f"peer {peer!r} is alive and has its data; no data is lost")
        waived = replace(member, waived=member.store_id)
        if member.synced:
            accepted = without_data(accepted, waived)
        else:
            accepted = accepted.with_member(waived)
    return accepted.next()


def forget(topology: Topology, failed: Sequence[str], down: int) -> Topology | None:
    """Return the topology in which failed members leave, so that other members take their data.

    Return None if more than a third of the members are down (``down`` of them), because then this
    peer has probably lost the membership service. Return None too if the remaining members are
    fewer than the replicas, because their removal would gain nothing.
    """
    remaining = len(topology.members) - len(failed)
    if not failed or _too_many_down(topology, down) or remaining < topology.replicas:
        return None
    return remove(topology, failed)


def add(topology: Topology, announcements: Sequence[Announcement]) -> Topology:
    """Return the topology in which candidates begin to join.

    Raises:
        ChangeConflict: a candidate is already a member, or runs a version that does not know the
            drops that are not settled, the settings of indexes, or registers.
    """
    joined = topology
    for announcement in announcements:
        if topology.member(announcement.peer) is not None:
            raise ChangeConflict(f"peer {announcement.peer!r} is already a member")
        check_version(topology, announcement.peer, announcement.features)
        features = announcement.features.split()
        if topology.drops and drops.FEATURE not in features:
            raise ChangeConflict(
                f"peer {announcement.peer!r} runs an earlier version, which would return records "
                "that were dropped; upgrade it, or wait until no drop is left in dstash status"
            )
        if topology.indexes and settings.FEATURE not in features:
            raise ChangeConflict(
                f"peer {announcement.peer!r} runs an earlier version, which does not apply the "
                "settings of indexes; upgrade it"
            )
        joined = joined.with_member(member_of(announcement, State.JOINING))
    return _begin(topology, joined.members)


def swap(topology: Topology, old: str, announcement: Announcement) -> Topology:
    """Return the topology in which a candidate begins to replace a member."""
    added = add(topology, [announcement])
    return replace(added, members=_with_leaving(added, [old]))


def drop_dead_joiners(topology: Topology, failed: Sequence[str], down: int) -> Topology | None:
    """Return the topology without joining members that have failed and block the change.

    The whole change ends if it would leave fewer members than replicas, and with the joining
    members it would not, because no operator has asked for fewer copies.

    Return None if more than a third of the members are down, as in ``forget``.
    """
    gone = [
        member.id
        for member in topology.members
        if member.id in failed and member.state is State.JOINING
    ]
    if not gone or _too_many_down(topology, down) or _running_change(topology).switched:
        return None
    rest = topology.without(gone)
    copies = min(topology.replicas, len(topology.after()))
    if len(rest.after()) < copies or all(member.state is State.ACTIVE for member in rest.members):
        return cancel(topology)
    return _begin(topology, rest.members)


def cancel(topology: Topology) -> Topology:
    """Return the topology with the placement from before the running topology change.

    No write is lost, because every write was acked by the old replica sets too.
    """
    _check_not_switched(topology)
    _running_change(topology)
    members = tuple(replace(member, state=State.ACTIVE) for member in topology.before())
    return replace(topology, members=members, change=None).next()


def steer(topology: Topology, *, paused: bool | None = None, rate: int | None = None) -> Topology:
    """Return the topology with the running topology change paused, resumed, or at another rate."""
    change = _running_change(topology)
    change = replace(
        change,
        paused=change.paused if paused is None else paused,
        rate=change.rate if rate is None else rate,
    )
    return replace(topology, change=change).next()


def lower_floors(topology: Topology, alive: Collection[str], stamp: Stamp) -> Topology:
    """Return the topology that asks each peer to lower its floors and horizons to a stamp.

    All members must be alive and synced, and no topology change may run: an unavailable replica
    could bring back records above the stamp that were deleted and reaped.

    Raises:
        ChangeConflict: a member is down or streaming, a topology change is running, or records
            above the stamp are still being dropped; or a member has an earlier version, which
            would not keep the floors of registers.
    """
    check_lowering(topology)
    if topology.change is not None:
        raise ChangeConflict("a topology change is running; lower floors when it has ended")
    for member in topology.members:
        if member.id not in alive:
            raise ChangeConflict(f"peer {member.id!r} is down; lower floors when all are alive")
        if not member.synced:
            raise ChangeConflict(f"peer {member.id!r} is streaming; lower floors after that")
    begun = topology.next()
    return replace(
        begun,
        ceiling=stamp,
        ceiling_epoch=begun.epoch,
        drops=lowered(topology.drops, stamp),
        indexes=tuple(replace(known, since=min(known.since, stamp)) for known in topology.indexes),
    )


def _begin(topology: Topology, members: tuple[Member, ...]) -> Topology:
    if not topology.formed:
        raise ChangeConflict("the cluster has not formed yet; until then peers join by themselves")
    _check_not_switched(topology)
    begun = replace(topology, members=members)
    if not begun.after():
        raise ChangeConflict("no member would be left")
    return with_change_begun(begun).next()


def _with_leaving(topology: Topology, peers: Sequence[str]) -> tuple[Member, ...]:
    leaving = {_known(topology, peer).id for peer in peers}
    for peer in peers:
        if _known(topology, peer).state is State.JOINING:
            # A leaving member serves reads until the end; a joining member has no data to serve.
            raise ChangeConflict(f"peer {peer!r} is joining; cancel the topology change instead")
    return tuple(
        replace(member, state=State.LEAVING) if member.id in leaving else member
        for member in topology.members
    )


def _too_many_down(topology: Topology, down: int) -> bool:
    """Whether so many members seem down that the membership service is the likelier failure."""
    return down * 3 > len(topology.members)


def _check_not_switched(topology: Topology) -> None:
    if topology.change is not None and topology.change.switched:
        raise ChangeConflict("a topology change is about to end; try again when it has ended")


def _known(topology: Topology, peer: str) -> Member:
    member = topology.member(peer)
    if member is None:
        known = ", ".join(member.id for member in topology.members)
        raise ChangeConflict(f"no member {peer!r}; members: {known}")
    return member


def _running_change(topology: Topology) -> Change:
    if topology.change is None:
        raise ChangeConflict("no topology change is running")
    return topology.change


def requested(
    topology: Topology,
    alive: Mapping[str, Announcement],
    action: str,
    peers: Sequence[str],
    rate: int,
    stamp: Stamp = 0,
) -> Topology:
    """Return the topology that results from an admin request.

    Args:
        alive: the announcements of live peers, both members and candidates.
        action: ``add``, ``remove``, ``forget``, ``force-remove``, ``accept-loss``, ``replace``
            (old, new), ``cancel``, ``pause``, ``resume``, ``rate`` or
            ``lower-floors``.
        peers: the peers that the action concerns.
        rate: bytes a second, for ``rate`` and for actions that begin a change (0: unchanged).
        stamp: the time of the cluster clock, for ``lower-floors``.

    Raises:
        ChangeConflict: the action is not possible now; the message has the reason.
        UsageError: the action is unknown, or the number of peers is wrong.
    """
    match action, list(peers):
        case "add", [_, *_]:
            return _bounded(add(topology, [_candidate(alive, peer) for peer in peers]), rate)
        case "remove", [_, *_]:
            return _bounded(remove(topology, peers), rate)
        case "forget", [_, *_]:
            return _bounded(remove_down(topology, peers, alive), rate)
        case "force-remove", [_, *_]:
            removed = force_remove(topology, peers, alive)
            return removed if removed.change is None else _bounded(removed, rate)
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
    raise UsageError(f"no admin request {action!r} with {len(peers)} peers")


def _bounded(begun: Topology, rate: int) -> Topology:
    change = _running_change(begun)
    return replace(begun, change=replace(change, rate=rate or change.rate))


def _candidate(alive: Mapping[str, Announcement], peer: str) -> Announcement:
    announcement = alive.get(peer)
    if announcement is None:
        known = ", ".join(sorted(alive)) or "none"
        raise ChangeConflict(f"peer {peer!r} is not running; running peers: {known}")
    return announcement
