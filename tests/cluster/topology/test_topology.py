"""Tests of the topology: its JSON form, and the values that it rejects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.cluster.topology.topology import Change, Member, State, Topology
from dstash.errors import ProtocolError
from dstash.limits import PARTITIONS

A, B = (Member(name, f"tcp://{name}:1", f"store-{name}", "zone") for name in "ab")
WHOLE = Topology(
    cluster="c",
    cluster_id="id",
    epoch=7,
    replicas=2,
    min_peers=2,
    formed=True,
    members=(A, B),
    change=Change(number=6, complete=("a",), paused=True, rate=5),
)

members = st.builds(
    Member,
    id=st.text(min_size=1, max_size=9),
    address=st.text(max_size=9),
    store_id=st.text(max_size=9),
    zone=st.text(max_size=9),
    weight=st.floats(0.001, 1000),
    state=st.sampled_from(State),
    synced=st.booleans(),
    http=st.text(max_size=9),
)
topologies = st.builds(
    Topology,
    cluster=st.text(max_size=9),
    cluster_id=st.text(max_size=9),
    epoch=st.integers(1, 2**50),
    replicas=st.integers(1, 9),
    min_peers=st.integers(1, 9),
    formed=st.booleans(),
    members=st.lists(members, unique_by=lambda member: member.id, max_size=4).map(tuple),
    change=st.none() | st.builds(Change, st.integers(1, 99), st.just(("a",)), st.booleans()),
)


@given(topologies)
def test_topology_round_trip(topology: Topology) -> None:
    assert Topology.decode(topology.encode()) == topology


def test_topology_is_encoded_as_readable_json() -> None:
    raw = json.loads(WHOLE.encode())
    assert raw["members"][0]["id"] == "a"
    assert raw["members"][0]["state"] == "active"
    assert raw["partitions"] == PARTITIONS


def test_equal_topologies_have_equal_encodings() -> None:
    assert Topology.decode(WHOLE.encode()).encode() == WHOLE.encode()


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(WHOLE.encode()) | fields).encode()


def with_member(**fields: Any) -> bytes:
    raw = json.loads(WHOLE.encode())
    raw["members"][0] |= fields
    return json.dumps(raw).encode()


def test_fields_of_a_later_version_are_ignored() -> None:
    raw = json.loads(WHOLE.encode()) | {"novelty": 1}
    raw["members"][0]["novelty"] = {"a": 1}
    raw["change"]["novelty"] = None
    assert Topology.decode(json.dumps(raw).encode()) == WHOLE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        changed(members=None),
        changed(members=[1]),
        changed(members=[{}]),
        changed(change=5),
        changed(epoch=0),
        changed(epoch="7"),
        changed(epoch=None),
        changed(replicas=0),
        changed(replicas="3"),
        changed(min_peers=0),
        changed(partitions=PARTITIONS * 2),
        with_member(state="dreaming"),
        with_member(id=""),
        with_member(id="b"),
        with_member(weight=0),
        with_member(weight=-1),
        with_member(weight=1e9),
        with_member(weight=None),
        with_member(weight=float("nan")),
    ],
)
def test_decode_fails_on_malformed_topologies(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Topology.decode(data)


@given(st.binary(max_size=50) | st.text(max_size=50).map(str.encode))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Topology.decode(data)


def test_members_are_found_added_replaced_and_removed() -> None:
    assert WHOLE.member("a") == A
    assert WHOLE.member("c") is None
    c = Member("0", "tcp://c:1", "s", "z")
    assert [member.id for member in WHOLE.with_member(c).members] == ["0", "a", "b"]
    moved = Member("a", "tcp://elsewhere:1", "s", "z")
    assert WHOLE.with_member(moved).members == (moved, B)
    assert WHOLE.without(["a", "stranger"]).members == (B,)
    assert WHOLE.next().epoch == 8


def test_topology_has_placement_before_and_after_change() -> None:
    states = {"stays": State.ACTIVE, "comes": State.JOINING, "goes": State.LEAVING}
    some = tuple(Member(name, "", "", "", state=state) for name, state in states.items())
    topology = Topology("c", "id", 1, members=some)
    assert [member.id for member in topology.before()] == ["stays", "goes"]
    assert [member.id for member in topology.after()] == ["stays", "comes"]
