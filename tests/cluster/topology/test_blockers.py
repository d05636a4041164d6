"""Tests of blockers: why a change waits, and the requests that end the wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.blockers import waits
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.planning import plan, plan_loss
from dstash.cluster.topology.topology import Member, State, Topology
from dstash.cluster.topology.view import View
from dstash.errors import ChangeConflict

ABC = frozenset("abc")


def formed(names: str = "abc", replicas: int = 3) -> Topology:
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", f"z-{name}") for name in names)
    return Topology("test", "id", 7, replicas, formed=True, members=members)


def announcement(name: str) -> Announcement:
    return Announcement(name, f"tcp://{name}:1", f"store-{name}", f"z-{name}", 1.0)


def adding(topology: Topology, name: str = "d") -> Topology:
    return transitions.add(topology, [announcement(name)])


def unsynced(topology: Topology, *names: str) -> Topology:
    members = tuple(
        replace(member, synced=member.synced and member.id not in names)
        for member in topology.members
    )
    return replace(topology, members=members)


def all_complete(topology: Topology) -> Topology:
    assert topology.change is not None
    for peer in transitions.incoming(topology):
        topology = (
            transitions.complete(topology, peer, topology.change.number, Life(1, 1, 0)) or topology
        )
    return topology


def test_no_blockers_in_a_healthy_cluster() -> None:
    assert waits(View(formed(), ABC), {}) == []
    assert waits(View(adding(formed()), frozenset("abcd")), {}) == []


def test_gaining_member_that_is_down_suggests_force_remove() -> None:
    (text,) = waits(View(adding(formed()), ABC), {})
    assert text.startswith("d gains ")
    assert "is down" in text
    assert text.endswith("dstash cluster force-remove d")


def test_paused_change_is_reported_as_blocker() -> None:
    paused = transitions.steer(adding(formed()), paused=True)
    assert waits(View(paused, frozenset("abcd")), {}) == [
        "the topology change is paused: dstash cluster resume"
    ]


def test_partitions_without_sources_suggest_start_or_accept_loss() -> None:
    lonely = View(adding(formed()), frozenset("ad"))
    found = waits(lonely, {})
    assert len(found) == 1
    assert "lack 1 of the replicas that have every write (b, c): start b or c" in found[0]
    assert "dstash cluster accept-loss b c" in found[0]


def test_removal_of_lost_members_names_accept_loss() -> None:
    removing = transitions.remove(formed(), ["b", "c"])
    (text,) = waits(View(removing, frozenset("a")), {})
    assert "4096 partitions of a lack 1 of the replicas" in text
    assert "dstash cluster accept-loss b c" in text
    before = formed()
    problems = plan(before, removing, {"a": {}}).problems
    assert any("dstash cluster accept-loss b c" in problem for problem in problems)


def test_new_stores_without_sources_name_missing_members() -> None:
    topology = unsynced(formed(), "b", "c")
    found = waits(View(topology, ABC), {})
    assert len(found) == 2
    assert "4096 partitions of b lack 1 of the replicas" in found[0]
    assert "dstash cluster accept-loss b c" in found[0]
    accepted = transitions.accept_loss(topology, ["b", "c"], ABC)
    assert waits(View(accepted, ABC), {}) == []


def test_end_of_change_names_members_with_an_older_epoch() -> None:
    switched = transitions.switch(all_complete(adding(formed())))
    assert switched is not None
    view = View(switched, frozenset("ad"))
    found = waits(view, {"a": {"epoch": switched.epoch}, "d": {"epoch": switched.epoch}})
    assert [text.split()[5].strip(",") for text in found] == ["b", "c"]
    assert "dstash cluster force-remove b" in found[0]


def test_force_remove_of_the_only_joining_member_ends_the_change() -> None:
    topology = transitions.force_remove(adding(formed()), ["d"], ABC)
    assert (topology.member("d"), topology.change) == (None, None)


def test_force_remove_of_a_joining_member_keeps_other_joins() -> None:
    both = adding(adding(formed()), "e")
    topology = transitions.force_remove(both, ["d"], frozenset("abce"))
    assert topology.member("d") is None
    assert topology.change is not None
    assert topology.change.number == topology.epoch
    joining = topology.member("e")
    assert joining is not None
    assert joining.state is State.JOINING


def test_force_remove_makes_a_gaining_member_leave() -> None:
    gaining = adding(formed("abcd"), "e")
    topology = transitions.force_remove(gaining, ["b"], frozenset("acde"))
    member = topology.member("b")
    assert member is not None
    assert member.state is State.LEAVING
    assert "b" not in transitions.incoming(topology)


def test_force_remove_unblocks_end_of_change() -> None:
    switched = transitions.switch(all_complete(adding(formed())))
    assert switched is not None
    topology = transitions.force_remove(switched, ["b"], frozenset("acd"))
    assert topology.change is not None
    assert topology.change.gone == ("b",)
    assert Topology.decode(topology.encode()) == topology


def test_force_remove_of_a_live_or_unknown_member_is_refused() -> None:
    with pytest.raises(ChangeConflict, match="'b' is alive; use remove"):
        transitions.force_remove(formed(), ["b"], ABC)
    with pytest.raises(ChangeConflict, match="no member 'x'"):
        transitions.force_remove(formed(), ["x"], ABC)


def test_accept_loss_fails_where_no_data_is_lost() -> None:
    with pytest.raises(ChangeConflict, match="'b' is alive and has its data"):
        transitions.accept_loss(formed(), ["b"], ABC)
    with pytest.raises(ChangeConflict, match="'d' is joining"):
        transitions.accept_loss(adding(formed()), ["d"], ABC)


def test_waiver_ends_when_the_member_is_synced_and_with_its_store() -> None:
    accepted = transitions.accept_loss(unsynced(formed(), "b"), ["b"], ABC)
    member = accepted.member("b")
    assert member is not None
    assert member.is_waived
    back = transitions.streamed(accepted, "b", "store-b", Life(9, 9, 9))
    assert back is not None
    assert back.members[1].waived == ""
    assert back.members[1].seen == (9, 9, 0)
    assert not replace(member, store_id="another").is_waived
    assert Topology.decode(accepted.encode()) == accepted


def test_accepted_members_are_not_waited_for() -> None:
    accepted = transitions.accept_loss(unsynced(formed(), "b", "c"), ["b", "c"], ABC)
    view = View(accepted)
    assert view.votes_needed(("a", "b", "c")) == 1
    assert View(formed()).votes_needed(("a", "b", "c")) == 2
    everything = transitions.accept_loss(unsynced(formed(), *"abc"), list("abc"), ABC)
    assert View(everything).votes_needed(("a", "b", "c")) == 0


def test_plan_of_a_loss_counts_partitions() -> None:
    topology = unsynced(formed("abcd"), "b", "c")
    found = plan_loss(topology, ["b", "c"])
    both = sum({"b", "c"} <= set(row) for row in View(topology).readers)
    assert (found.held, found.at_risk, found.without_replica) == (4096, both, 0)
    assert plan_loss(topology, ["b"]).at_risk == both
    assert plan_loss(unsynced(formed(), *"abc"), list("abc")).without_replica == 4096
