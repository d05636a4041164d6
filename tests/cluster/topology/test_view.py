"""Tests of the view: replica sets before and after a topology change."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstash.cluster.topology import view as view_module
from dstash.cluster.topology.rendezvous import place
from dstash.cluster.topology.topology import Member, State, Topology
from dstash.cluster.topology.view import View, placement
from dstash.limits import PARTITIONS


def member(name: str, state: State = State.ACTIVE, weight: float = 1.0) -> Member:
    return Member(name, f"tcp://{name}:1", f"store-{name}", f"zone-{name}", weight, state)


def topology(*members: Member, replicas: int = 2) -> Topology:
    return Topology("c", "id", 5, replicas=replicas, formed=True, members=members)


def test_readers_equal_writers_without_change() -> None:
    view = View(topology(member("a"), member("b"), member("c")))
    assert view.readers is view.writers
    assert {peer for row in view.readers for peer in row} == {"a", "b", "c"}
    assert view.epoch == 5
    assert sorted(view.members) == ["a", "b", "c"]


def test_joining_member_gets_writes_and_leaving_member_reads() -> None:
    view = View(
        topology(
            member("a"), member("b"), member("new", State.JOINING), member("old", State.LEAVING)
        )
    )
    readers = {peer for row in view.readers for peer in row}
    writers = {peer for row in view.writers for peer in row}
    assert readers == {"a", "b", "old"}
    assert writers == {"a", "b", "new"}


def test_peer_owns_partitions_of_both_placements() -> None:
    view = View(topology(member("a"), member("b"), member("new", State.JOINING), replicas=1))
    for peer in ("a", "b", "new"):
        owned = view.owned_by(peer)
        for number in range(PARTITIONS):
            holds = peer in view.readers[number] or peer in view.writers[number]
            assert (number in owned) == holds
    assert view.owned_by("stranger") == frozenset()


def test_fewer_members_than_copies_all_hold_everything() -> None:
    view = View(topology(member("a"), member("b"), replicas=3))
    assert {frozenset(row) for row in view.readers} == {frozenset("ab")}


def test_placement_without_members_is_empty() -> None:
    assert set(View(topology()).readers) == {()}


names = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@settings(max_examples=15)
@given(st.lists(names, min_size=1, max_size=5), st.integers(1, 3))
def test_updated_placements_equal_computed_ones(
    steps: Sequence[Sequence[str]], replicas: int
) -> None:
    view_module._placed.clear()
    for step in steps:
        members = [member(name) for name in step]
        table = placement(members, replicas)
        assert table == place([member.candidate for member in members], replicas)
        assert placement(members, replicas) is table


def test_similar_placement_is_updated_from_a_cached_one(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member(name) for name in "abcdefgh"]
    placement(members, 3)
    monkeypatch.setattr(view_module, "place", None)
    placement([*members, member("one more")], 3)
    placement(members[1:], 3)
