"""What a change of placement would move, worked out before anything moves: pure functions.

Two topologies say where each partition is and where it would be. What a partition weighs is the
average over the peers that answered: hashing spreads keys evenly, so it is close.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from dstash.cluster.topology.rendezvous import Table
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.transitions import survivors_lack_quorum
from dstash.cluster.topology.view import View, placement


class Weight(NamedTuple):
    """What one copy of a partition holds, on average."""

    records: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """One peer, before and after. Partitions count copies; the rest is estimated from them."""

    id: str
    zone: str
    before: int
    after: int
    incoming: int
    loses: int
    records: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ZonePlan:
    """One zone, before and after, in copies of partitions."""

    zone: str
    before: int
    after: int
    incoming: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What would move: ``records`` and ``bytes`` in all, and what would become impossible."""

    peers: tuple[PeerPlan, ...]
    zones: tuple[ZonePlan, ...]
    partitions: int
    records: int
    bytes: int
    problems: tuple[str, ...]

    def bytes_into(self, zone: str) -> int:
        """Return what the peers of a zone would take in."""
        return sum(one.bytes for one in self.peers if one.zone == zone)

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self) | {
            "peers": [asdict(one) for one in self.peers],
            "zones": [asdict(one) for one in self.zones],
            "problems": list(self.problems),
        }


def plan(before: Topology, after: Topology, status: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Return what it takes to come from one placement to another.

    Args:
        before: the topology as it is.
        after: the topology with the change under way.
        status: by member, what those that answered say of themselves (``records``,
            ``used_bytes``, ``free_bytes``).
    """
    old = placement(before.before(), before.replicas)
    new = placement(after.after(), after.replicas)
    peers = _peers(before, after, old, new, weigh(old, status))
    problems = [
        *_too_few(before, after),
        *_no_room(peers, status),
        *_no_source(after, old, new, status),
    ]
    return Plan(
        peers,
        _zones(peers),
        sum(one.incoming for one in peers),
        sum(one.records for one in peers),
        sum(one.bytes for one in peers),
        tuple(problems),
    )


@dataclass(frozen=True, slots=True)
class LossPlan:
    """What is given up with the vote of members, in partitions.

    Attributes:
        peers: the members.
        held: partitions of which they are replicas.
        at_risk: those where too few other replicas have their data to know every acked write.
        without_replica: those where no other replica has its data.
    """

    peers: tuple[str, ...]
    held: int
    at_risk: int
    without_replica: int

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self) | {"peers": list(self.peers)}


def plan_loss(before: Topology, peers: Sequence[str]) -> LossPlan:
    """Return what it means to accept the loss of what members held."""
    view, named = View(before), set(peers)
    synced = {one.id for one in before.members if one.synced} - named
    held = [owners for owners in view.readers if named.intersection(owners)]
    left = [(len(synced.intersection(owners)), view.votes_needed(owners)) for owners in held]
    return LossPlan(
        tuple(peers),
        len(held),
        sum(there < needed for there, needed in left),
        sum(not there for there, _ in left),
    )


def weigh(table: Table, status: Mapping[str, Mapping[str, Any]]) -> Weight:
    """Return what one copy of a partition weighs on the peers that answered."""
    held = Counter(peer for peers in table for peer in peers)
    copies = sum(held[peer] for peer in status)
    if not copies:
        return Weight()
    sums = (
        sum(details.get(name, 0) for peer, details in status.items() if held[peer])
        for name in ("records", "used_bytes")
    )
    return Weight(*(total / copies for total in sums))


def _peers(
    before: Topology, after: Topology, old: Table, new: Table, weight: Weight
) -> tuple[PeerPlan, ...]:
    had = Counter(peer for peers in old for peer in peers)
    gets = Counter(peer for peers in new for peer in peers)
    pairs = list(zip(old, new, strict=True))
    incoming = Counter(peer for was, will in pairs for peer in will if peer not in was)
    loses = Counter(peer for was, will in pairs for peer in was if peer not in will)
    members = {one.id: one for one in (*before.members, *after.members)}
    return tuple(
        PeerPlan(
            peer,
            member.zone,
            had[peer],
            gets[peer],
            incoming[peer],
            loses[peer],
            round(incoming[peer] * weight.records),
            round(incoming[peer] * weight.bytes),
        )
        for peer, member in sorted(members.items())
    )


def _zones(peers: Sequence[PeerPlan]) -> tuple[ZonePlan, ...]:
    return tuple(
        ZonePlan(
            zone,
            sum(one.before for one in peers if one.zone == zone),
            sum(one.after for one in peers if one.zone == zone),
            sum(one.incoming for one in peers if one.zone == zone),
        )
        for zone in sorted({one.zone for one in peers})
    )


def _too_few(before: Topology, after: Topology) -> list[str]:
    """Say where there would be fewer members, or zones, than replicas."""
    wanted = after.replicas
    left = after.after()
    problems = []
    if len(left) < wanted:
        problems.append(f"{_many(len(left), 'member')} for {wanted} replicas: fewer copies")
    had, zones = _zone_names(before.before()), _zone_names(left)
    if len(zones) < min(wanted, len(had)):
        problems.append(
            f"{_many(len(zones), 'zone')} for {wanted} replicas: "
            "a zone that fails may take a quorum with it"
        )
    return problems


def _no_room(peers: Sequence[PeerPlan], status: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say which peers would gain more than they have room for."""
    rooms = {peer: details.get("free_bytes") for peer, details in status.items()}
    return [
        f"peer {one.id} would gain {one.bytes} bytes and has room for {room}"
        for one in peers
        if (room := rooms.get(one.id)) is not None and one.bytes > room
    ]


def _no_source(
    after: Topology, old: Table, new: Table, status: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Say how many partitions have too few live replicas to be copied completely."""
    synced = {one.id for one in after.members if one.synced and one.id in status}
    view = View(after)
    waiting = 0
    missing: set[str] = set()
    for was, will in zip(old, new, strict=True):
        needed = view.votes_needed(was)
        incoming = set(will) - set(was) or survivors_lack_quorum(was, will)
        if incoming and len(synced.intersection(was)) < needed:
            waiting += 1
            missing |= set(was) - synced
    if not waiting:
        return []
    names = ", ".join(sorted(missing))
    so = f"if their data is lost for good: dstash cluster accept-loss {' '.join(sorted(missing))}"
    return [f"{_many(waiting, 'partition')} could not be copied until one of {names} is back; {so}"]


def _zone_names(members: Sequence[Member]) -> set[str]:
    return {one.zone for one in members}


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
