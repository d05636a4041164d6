"""Plans: what a topology change would move, estimated in advance by pure functions.

Two topologies give the placement of each partition before and after. The size of a partition is
the average over the peers that replied, a good estimate because hashing spreads keys evenly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from dstash.cluster.topology.rendezvous import Table
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View, placement, survivors_lack_quorum


class Weight(NamedTuple):
    """The average size of one copy of a partition."""

    records: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """One peer before and after. Partition numbers are exact, records and bytes are estimates."""

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
    """One zone before and after, in copies of partitions."""

    zone: str
    before: int
    after: int
    incoming: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What would move, in total and by peer and zone, and the problems of the change."""

    peers: tuple[PeerPlan, ...]
    zones: tuple[ZonePlan, ...]
    partitions: int
    records: int
    bytes: int
    problems: tuple[str, ...]

    def bytes_into(self, zone: str) -> int:
        """Return the bytes that the peers of a zone would stream in."""
        return sum(peer.bytes for peer in self.peers if peer.zone == zone)

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self) | {
            "peers": [asdict(peer) for peer in self.peers],
            "zones": [asdict(zone) for zone in self.zones],
            "problems": list(self.problems),
        }


def plan(before: Topology, after: Topology, status: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Return the plan for the change from one topology to another.

    Args:
        before: the current topology.
        after: the topology with the change.
        status: by member, the status (``records``, ``used_bytes``, ``free_bytes``) of those that
            replied.
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
        sum(peer.incoming for peer in peers),
        sum(peer.records for peer in peers),
        sum(peer.bytes for peer in peers),
        tuple(problems),
    )


@dataclass(frozen=True, slots=True)
class LossPlan:
    """The effect of accepting the loss of members' data, in partitions.

    Attributes:
        peers: the members.
        held: partitions that they replicate.
        at_risk: partitions where too few other replicas are synced to have every acked write.
        without_replica: partitions where no other replica is synced.
    """

    peers: tuple[str, ...]
    held: int
    at_risk: int
    without_replica: int

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self) | {"peers": list(self.peers)}


def plan_loss(before: Topology, peers: Sequence[str]) -> LossPlan:
    """Return the effect of accepting the loss of members' data."""
    view, named = View(before), set(peers)
    synced = {member.id for member in before.members if member.synced} - named
    held = [owners for owners in view.readers if named.intersection(owners)]
    votes = [(len(synced.intersection(owners)), view.votes_needed(owners)) for owners in held]
    return LossPlan(
        tuple(peers),
        len(held),
        sum(available < needed for available, needed in votes),
        sum(not available for available, _ in votes),
    )


def weigh(table: Table, status: Mapping[str, Mapping[str, Any]]) -> Weight:
    """Return the average size of one copy of a partition on the peers that replied."""
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
    members = {member.id: member for member in (*before.members, *after.members)}
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
            sum(peer.before for peer in peers if peer.zone == zone),
            sum(peer.after for peer in peers if peer.zone == zone),
            sum(peer.incoming for peer in peers if peer.zone == zone),
        )
        for zone in sorted({peer.zone for peer in peers})
    )


def _too_few(before: Topology, after: Topology) -> list[str]:
    """Report fewer members, or fewer zones, than replicas."""
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
    """Report the peers that would gain more than they have room for."""
    rooms = {peer: details.get("free_bytes") for peer, details in status.items()}
    return [
        f"peer {peer.id} would gain {peer.bytes} bytes and has room for {room}"
        for peer in peers
        if (room := rooms.get(peer.id)) is not None and peer.bytes > room
    ]


def _no_source(
    after: Topology, old: Table, new: Table, status: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Report the partitions with too few live replicas to stream every acked write."""
    synced = {member.id for member in after.members if member.synced and member.id in status}
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
    remedy = (
        f"if their data is permanently lost: dstash cluster accept-loss {' '.join(sorted(missing))}"
    )
    return [
        f"{_many(waiting, 'partition')} could not be copied until one of {names} is back; {remedy}"
    ]


def _zone_names(members: Sequence[Member]) -> set[str]:
    return {member.zone for member in members}


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
