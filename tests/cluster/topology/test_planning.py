"""Tests of plans: the data that would move, and the warnings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.planning import Plan, plan, weigh
from dstash.cluster.topology.topology import Member, State, Topology
from dstash.cluster.topology.view import placement
from dstash.limits import PARTITIONS


def cluster(*names: str, zones: str = "", replicas: int = 3) -> Topology:
    """Return a formed cluster; ``zones`` has a letter per member (default: a zone each)."""
    zones = zones or "abcdefghijkl"[: len(names)]
    members = tuple(
        Member(name, f"tcp://{name}:1", f"store-{name}", zone)
        for name, zone in zip(names, zones, strict=True)
    )
    return Topology("test", "id", 7, replicas, formed=True, members=members)


def candidate(name: str, zone: str) -> Announcement:
    return Announcement(name, f"tcp://{name}:1", f"store-{name}", zone, 1.0)


def status(
    *names: str, records: int = 1000, used: int = 10**6, free: int = 10**9
) -> dict[str, dict[str, int]]:
    details = {"records": records, "used_bytes": used, "free_bytes": free}
    return {name: dict(details) for name in names}


def of(worked_out: Plan, peer: str) -> tuple[int, int, int, int]:
    share = next(share for share in worked_out.peers if share.id == peer)
    return share.before, share.after, share.incoming, share.loses


def test_plan_of_one_more_peer_moves_only_its_share() -> None:
    before = cluster("p1", "p2", "p3", "p4")
    worked_out = plan(
        before, transitions.add(before, [candidate("p5", "e")]), status("p1", "p2", "p3", "p4")
    )
    fair = 3 * PARTITIONS / 5
    assert of(worked_out, "p5")[2] == worked_out.partitions == pytest.approx(fair, rel=0.1)
    assert sum(peer_plan.loses for peer_plan in worked_out.peers) == worked_out.partitions
    assert sum(peer_plan.incoming for peer_plan in worked_out.peers if peer_plan.id != "p5") == 0
    assert worked_out.problems == ()


def test_zones_are_counted_like_peers() -> None:
    before = cluster("p1", "p2", "p3", "p4", zones="aabb", replicas=2)
    worked_out = plan(before, transitions.remove(before, ["p4"]), {})
    assert [
        (zone_plan.zone, zone_plan.before, zone_plan.after) for zone_plan in worked_out.zones
    ] == [
        ("a", PARTITIONS, PARTITIONS),
        ("b", PARTITIONS, PARTITIONS),
    ]
    assert of(worked_out, "p3")[1] == PARTITIONS
    weighed = plan(before, transitions.remove(before, ["p4"]), status("p1", "p2", "p3", "p4"))
    assert weighed.bytes_into("a") == 0
    assert weighed.bytes_into("b") == weighed.bytes > 0


def test_weight_is_the_average_of_replying_peers() -> None:
    before = cluster("p1", "p2", "p3", "p4")
    table = placement(before.before(), 3)
    answered = status("p1", "p2", records=3072, used=3_072_000)
    weight = weigh(table, answered)
    held = sum(peer in ("p1", "p2") for peers in table for peer in peers)
    assert weight.records == pytest.approx(2 * 3072 / held)
    assert weight.bytes == pytest.approx(1000 * weight.records)
    assert weigh(table, {}) == (0, 0)


def test_plan_counts_bytes_to_move() -> None:
    before = cluster("p1", "p2", "p3")
    answered = status("p1", "p2", "p3", records=PARTITIONS, used=100 * PARTITIONS)
    worked_out = plan(before, transitions.add(before, [candidate("p4", "d")]), answered)
    assert worked_out.records == worked_out.partitions
    assert worked_out.bytes == 100 * worked_out.partitions


@pytest.mark.parametrize(
    ("zones", "leaving", "problem"),
    [
        ("abc", "p3", "2 members for 3 replicas"),
        ("abcc", "p4", ""),
        ("abcb", "p3", "2 zones for 3 replicas"),
        ("aaaa", "p3", ""),  # as before the change
    ],
)
def test_plan_warns_of_too_few_members_or_zones(zones: str, leaving: str, problem: str) -> None:
    before = cluster(*("p1", "p2", "p3", "p4")[: len(zones)], zones=zones)
    worked_out = plan(before, transitions.remove(before, [leaving]), status("p1", "p2", "p3", "p4"))
    assert bool(worked_out.problems) == bool(problem)
    assert any(text.startswith(problem) for text in worked_out.problems or [""])


def test_plan_warns_of_too_little_room() -> None:
    before = cluster("p1", "p2", "p3", "p4")
    answered = status("p1", "p2", "p3", "p4", used=10**9, free=1000)
    worked_out = plan(before, transitions.remove(before, ["p4"]), answered)
    assert [text.split(" would")[0] for text in worked_out.problems] == [
        "peer p1", "peer p2", "peer p3",
    ]  # fmt: skip


def test_plan_warns_without_live_sources() -> None:
    before = cluster("p1", "p2", "p3", "p4")
    worked_out = plan(before, transitions.remove(before, ["p4"]), status("p1", "p2"))
    assert len(worked_out.problems) == 1
    assert "could not be copied until one of p3, p4 is back" in worked_out.problems[0]
    one_dead = plan(before, transitions.remove(before, ["p4"]), status("p1", "p2", "p3"))
    assert one_dead.problems == ()


def test_plan_during_a_change_starts_from_current_placement() -> None:
    before = cluster("p1", "p2", "p3", "p4")
    joining = replace(before.members[3], state=State.JOINING)
    running = before.with_member(joining)
    worked_out = plan(running, before, {})
    assert of(worked_out, "p4")[0] == 0
    assert of(worked_out, "p4")[2] == of(worked_out, "p4")[1] > 0
