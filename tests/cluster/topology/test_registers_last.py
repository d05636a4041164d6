"""Topology changes that stream registers last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.blockers import waits
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Change, Member, Topology
from dstash.cluster.topology.view import View
from dstash.limits import PARTITIONS
from dstash.peer.registers.quorum import voters_of

#: That members begin when they have streamed their gains.
LIFE = Life(1, 1, 0)


def cluster(*names: str, replicas: int = 3) -> Topology:
    """Return a formed cluster that serves registers."""
    members = tuple(
        Member(name, f"tcp://{name}:1", f"store-{name}", name, features=FEATURES) for name in names
    )
    return Topology("test", "id", 7, replicas, formed=True, members=members, registers=True)


def candidate(name: str, features: str = FEATURES) -> Announcement:
    return Announcement(name, f"tcp://{name}:1", f"store-{name}", name, 1.0, features=features)


def change_of(topology: Topology | None) -> Change:
    assert topology is not None
    assert topology.change is not None
    return topology.change


def test_registers_are_served_by_old_replicas_until_data_is_copied() -> None:
    begun = transitions.swap(cluster(*"abc"), "a", candidate("d"))
    number = change_of(begun).number
    assert voters_of(View(begun), 0).members == View(begun).before[0]
    assert transitions.complete_registers(begun, "d", number) is None, "they do not rest yet"
    copied = transitions.complete(begun, "d", number, LIFE)
    assert copied is not None
    assert not voters_of(View(copied), 0).is_moving
    resting = transitions.switch(copied)
    assert change_of(resting).resting
    assert resting is not None
    assert resting.epoch == copied.epoch + 1
    assert voters_of(View(resting), 0).is_moving
    assert View(resting).resting == frozenset(range(PARTITIONS))
    assert View(resting).readers == View(resting).before
    assert transitions.switch(resting) is None, "d has to stream registers"
    complete = transitions.complete_registers(resting, "d", number)
    switched = transitions.switch(complete) if complete is not None else None
    assert change_of(switched).switched
    assert switched is not None
    assert voters_of(View(switched), 0).is_moving


def test_repeated_step_of_copying_does_not_complete_registers() -> None:
    """Else what changed since then could be missing."""
    begun = transitions.swap(cluster(*"abc"), "a", candidate("d"))
    number = change_of(begun).number
    copied = transitions.complete(begun, "d", number, LIFE)
    resting = transitions.switch(copied) if copied is not None else None
    assert resting is not None
    assert transitions.complete(resting, "d", number, LIFE) is None
    assert change_of(resting).registers_complete == ()


def test_change_that_begins_again_serves_registers_again() -> None:
    begun = transitions.swap(cluster(*"abcde"), "a", candidate("f"))
    gaining = transitions.incoming(begun)
    resting: Topology | None = begun
    for peer in gaining:
        assert resting is not None
        resting = transitions.complete(resting, peer, change_of(begun).number, LIFE)
    assert resting is not None
    resting = transitions.switch(resting)
    assert change_of(resting).resting
    assert resting is not None
    again = change_of(transitions.add(resting, [candidate("g")]))
    assert again.serves_registers
    assert (again.complete, again.registers_complete) == ((), ())


@pytest.mark.parametrize(
    "begun",
    [
        transitions.add(cluster("a", "b", "c"), [candidate("d", "registers drop index-settings")]),
        transitions.add(replace(cluster("a", "b", "c"), registers=False), [candidate("d")]),
        transitions.remove(cluster(*"abcd"), ["a", "b"]),
    ],
    ids=["member of an earlier version", "no registers", "replicas that stay have to stream"],
)
def test_registers_rest_at_once(begun: Topology) -> None:
    assert not change_of(begun).registers_last
    assert View(begun).resting


def test_member_that_has_to_stream_registers_and_is_down_is_named() -> None:
    begun = transitions.swap(cluster(*"abc"), "a", candidate("d"))
    copied = transitions.complete(begun, "d", change_of(begun).number, LIFE)
    resting = transitions.switch(copied) if copied is not None else None
    assert resting is not None
    [blocker] = waits(View(resting, frozenset("abc")), {})
    assert blocker.startswith("d gains 4096 partitions and is down")


def test_change_survives_its_encoding() -> None:
    begun = transitions.swap(cluster(*"abc"), "a", candidate("d"))
    change = replace(change_of(begun), resting=True, registers_complete=("d",))
    topology = replace(begun, change=change)
    assert Topology.decode(topology.encode()) == topology
