"""Tests of transitions: no two consecutive steps let a read miss a write."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from dstash.client.routing import WriteSet, write_table
from dstash.cluster.topology import joining, transitions
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Member, State, Topology
from dstash.cluster.topology.view import View, can_read, survivors_lack_quorum
from dstash.errors import ChangeConflict
from dstash.types import Level

#: That members begin when they have streamed their gains.
LIFE = Life(1, 1, 0)


def cluster(*names: str, replicas: int = 3) -> Topology:
    """Return a formed cluster with a zone for each member."""
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in names)
    return Topology("test", "id", 7, replicas, formed=True, members=members)


def candidate(name: str, store: str = "") -> Announcement:
    return Announcement(name, f"tcp://{name}:1", store or f"store-{name}", name, 1.0)


def completed(topology: Topology) -> Topology:
    """Return the topology after every member has streamed its gains."""
    for member in topology.after():
        assert topology.change is not None
        topology = (
            transitions.complete(topology, member.id, topology.change.number, LIFE) or topology
        )
    return topology


def steps(before: Topology, begun: Topology) -> list[Topology]:
    """Return all topologies of a change, in order."""
    complete = completed(begun)
    switched = transitions.switch(complete)
    assert switched is not None
    assert switched.change is not None
    ended = transitions.finish(switched, switched.change.number)
    assert ended is not None
    return [before, begun, complete, switched, ended]


def read_quorums(view: View, partition: int) -> list[set[str]]:
    peers = view.readers[partition]
    return [set(some) for some in combinations(peers, Level.QUORUM.needed(len(peers)))]


def write_quorums(table: list[WriteSet], partition: int) -> list[set[str]]:
    target = table[partition]
    return [
        set(some)
        for count in range(1, len(target.peers) + 1)
        for some in combinations(target.peers, count)
        if target.is_met(some, Level.QUORUM)
    ]


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("names", "joining_", "leaving"),
    [
        ("abc", "d", ""),
        ("abcd", "", "d"),
        ("abcd", "ef", "ab"),
        ("ab", "c", ""),
        ("abcde", "f", "a"),
    ],
)
def test_no_read_misses_a_write_of_the_next_step(
    replicas: int, names: str, joining_: str, leaving: str
) -> None:
    before = cluster(*names, replicas=replicas)
    begun = transitions.add(before, [candidate(name) for name in joining_]) if joining_ else before
    begun = transitions.remove(begun, list(leaving)) if leaving else begun
    topologies = steps(before, begun)
    for earlier, later in pairwise(topologies):
        old, table = View(earlier), write_table(View(later))
        for partition in range(0, 4096, 97):
            for read in read_quorums(old, partition):
                assert all(read & write for write in write_quorums(table, partition))


def test_writes_leave_old_replicas_only_after_reads() -> None:
    before = cluster("a", "b", "c")
    topologies = steps(before, transitions.swap(before, "c", candidate("d")))
    unswitched, switched, ended = (View(topology) for topology in topologies[2:])
    missed = [
        (read, write)
        for read in read_quorums(unswitched, 0)
        for write in write_quorums(write_table(ended), 0)
        if not read & write
    ]
    assert missed  # so this must not happen
    assert can_read(switched, frozenset())
    assert can_read(switched, frozenset("a"))
    assert can_read(switched, frozenset("d"))
    for passed in combinations("abc", 2):
        assert not can_read(switched, frozenset(passed))
        for read, _ in missed:
            assert read & set(passed)


def test_change_of_two_replicas_waits_for_both() -> None:
    """One of them served reads alone, while the other had lost its data, and may still do so."""
    before = cluster("a", "b", replicas=2)
    *_, switched, _ = map(View, steps(before, transitions.swap(before, "b", candidate("d"))))
    assert can_read(switched, frozenset("a"))
    assert can_read(switched, frozenset("bd"))
    assert not can_read(switched, frozenset("ab"))


def test_remaining_replicas_stream_when_replicas_decrease() -> None:
    three = cluster("a", "b", "c")
    # A write may be acked only by b and c; then a quorum of a and b needs both.
    assert set(transitions.incoming(transitions.remove(three, ["c"]))) == {"a", "b"}
    assert len(transitions.incoming(transitions.remove(three, ["b", "c"]))["a"]) == 4096
    four = cluster(*"abcd", replicas=4)
    assert transitions.incoming(transitions.remove(four, ["d"])) == {}
    five = cluster(*"abcde", replicas=5)
    assert len(transitions.incoming(transitions.remove(five, ["d", "e"]))["a"]) == 4096
    swapped = transitions.incoming(transitions.swap(three, "c", candidate("d")))
    assert set(swapped) == {"d"}


@pytest.mark.parametrize("old", ["a", "ab", "abc", "abcd", "abcde", "abcdefg"])
@pytest.mark.parametrize("new", ["a", "x", "ab", "ax", "abc", "axy", "abcd", "abcx", "abcde"])
def test_quorum_has_every_acked_write_after_a_change(old: str, new: str) -> None:
    streamed = set(new) if survivors_lack_quorum(old, new) else set(new) - set(old)
    for acked in combinations(old, Level.QUORUM.needed(len(old))):
        assert len(streamed.union(acked).intersection(new)) >= Level.QUORUM.needed(len(new))


def test_switched_change_cannot_be_cancelled_or_joined() -> None:
    before = cluster("a", "b", "c", "d")
    switched = steps(before, transitions.remove(before, ["d"]))[3]
    with pytest.raises(ChangeConflict):
        transitions.cancel(switched)
    with pytest.raises(ChangeConflict):
        transitions.remove(switched, ["a"])
    with pytest.raises(ChangeConflict):
        transitions.add(switched, [candidate("e")])
    assert joining.join(switched, candidate("e")) is None


def test_joining_member_streams_again_after_losing_its_store() -> None:
    begun = transitions.add(cluster("a", "b", "c"), [candidate("d")])
    done = completed(begun)
    assert done.change is not None
    assert "d" in done.change.complete
    back = joining.join(done, candidate("d", "another store"))
    assert back is not None
    assert back.change is not None
    assert back.change.complete == ()
    assert back.change.number == back.epoch
    joiner = back.member("d")
    assert joiner is not None
    assert joiner.synced  # otherwise it could never stream: it has no partitions before the change
    assert transitions.incoming(back)["d"]


def test_member_that_loses_its_store_streams_its_gains_again() -> None:
    begun = transitions.remove(cluster("a", "b", "c", "d"), ["d"])
    done = completed(begun)
    back = joining.join(done, candidate("a", "another store"))
    assert back is not None
    assert back.change is not None
    assert back.change.complete == ()
    member = back.member("a")
    assert member is not None
    assert not member.synced
    assert transitions.switch(back) is None


def test_lost_marks_an_old_store_as_not_synced() -> None:
    begun = transitions.add(cluster("a", "b", "c"), [candidate("d")])
    assert transitions.lost(begun, "d", "store-d") is None  # no quorum includes it yet
    lost = transitions.lost(completed(begun), "d", "store-d")
    assert lost is not None
    assert transitions.lost(lost, "d", "store-d") is None  # not twice
    emptied = transitions.lost(begun, "a", "store-a")
    assert emptied is not None
    assert transitions.lost(emptied, "a", "store-a") is None


def test_join_keeps_rate_and_pause_of_the_running_change() -> None:
    begun = transitions.requested(cluster("a", "b", "c", "d"), {}, "remove", ["d"], 1000)
    paused = transitions.steer(begun, paused=True)
    grown = joining.join(paused, candidate("e"))
    assert grown is not None
    assert grown.change is not None
    assert (grown.change.rate, grown.change.paused) == (1000, True)
    assert grown.change.number == grown.epoch


def test_force_remove_begins_a_change_with_the_requested_rate() -> None:
    begun = transitions.requested(
        cluster("a", "b", "c", "d"),
        {name: candidate(name) for name in "abc"},
        "force-remove",
        ["d"],
        9,
    )
    assert begun.change is not None
    assert begun.change.rate == 9


def test_failed_joining_member_is_dropped() -> None:
    before = cluster("a", "b", "c", "d", "e")
    begun = transitions.add(before, [candidate("f")])
    assert transitions.drop_dead_joiners(begun, ["a"], 1) is None
    alone = transitions.drop_dead_joiners(begun, ["f"], 1)
    assert alone is not None
    assert alone.change is None
    assert [member.id for member in alone.members] == list("abcde")
    mixed = transitions.drop_dead_joiners(transitions.remove(begun, ["e"]), ["f"], 1)
    assert mixed is not None
    assert mixed.change is not None
    assert mixed.change.number == mixed.epoch
    assert [member.state for member in mixed.members][-1] is State.LEAVING
    assert transitions.drop_dead_joiners(begun, ["f"], 3) is None  # perhaps it is isolated


def test_replacement_ends_without_the_new_member_when_copies_would_be_missing() -> None:
    before = cluster("a", "b", "c")
    begun = transitions.swap(before, "c", candidate("f"))
    ended = transitions.drop_dead_joiners(begun, ["f"], 1)
    assert ended == replace(before, epoch=begun.epoch + 1)
    wanted = transitions.remove(begun, ["b"])  # an operator has asked for two copies
    fewer = transitions.drop_dead_joiners(wanted, ["f"], 1)
    assert fewer == replace(before, epoch=wanted.epoch + 1)


def test_forget_does_nothing_while_too_many_are_down() -> None:
    before = cluster("a", "b", "c", "d")
    assert transitions.forget(before, ["d"], 1) is not None
    assert transitions.forget(before, ["c", "d"], 2) is None
    assert transitions.forget(before, [], 0) is None
    assert transitions.forget(cluster("a", "b", "c"), ["c"], 1) is None  # there is nothing to do


def test_joining_member_cannot_be_replaced() -> None:
    begun = transitions.add(cluster("a", "b", "c"), [candidate("d")])
    for refused in (
        lambda: transitions.swap(begun, "d", candidate("e")),  # it would get reads
        lambda: transitions.remove(begun, ["d"]),
    ):
        with pytest.raises(ChangeConflict, match="'d' is joining"):
            refused()
    both = transitions.swap(begun, "a", candidate("e"))
    assert [member.id for member in both.before()] == ["a", "b", "c"]
    assert [member.id for member in both.after()] == ["b", "c", "d", "e"]


def test_forget_removes_only_failed_members() -> None:
    before = cluster(*"abcdef")
    alive = {name: candidate(name) for name in "abcdef"}
    with pytest.raises(ChangeConflict, match="'f' is alive"):
        transitions.requested(before, alive, "forget", ["f"], 0)
    del alive["f"], alive["e"]
    begun = transitions.requested(before, alive, "forget", ["f"], 0)
    assert [member.state for member in begun.members][-2:] == [State.ACTIVE, State.LEAVING]
    del alive["d"]
    with pytest.raises(ChangeConflict, match=r"3 of 6 members are down \(d, e, f\)"):
        transitions.requested(before, alive, "forget", ["f"], 0)
    assert transitions.requested(before, alive, "remove", ["f"], 0).members == begun.members


def test_change_round_trips_through_json() -> None:
    switched = steps(cluster("a", "b", "c", "d"), transitions.remove(cluster(*"abcd"), ["d"]))[3]
    assert Topology.decode(switched.encode()) == switched
    assert replace(switched, change=None) != switched
