"""Tests of joining: the first peer, later peers, and members that return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.joining import (
    RESTORED_JUMP,
    found,
    join,
    restore_above,
    shares_epoch,
    supersedes,
    under_own_epoch,
)
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Change, State, Topology
from dstash.cluster.topology.transitions import complete, switch

#: That members begin when they have streamed their gains.
LIFE = Life(1, 1, 0)


def announce(
    name: str, *, store: str = "", address: str = "", zone: str = "z", weight: float = 1.0
) -> Announcement:
    return Announcement(
        peer=name,
        address=address or f"tcp://{name}:1",
        store_id=store or f"store-{name}",
        zone=zone,
        weight=weight,
    )


def joined(names: Sequence[str], min_peers: int) -> Topology:
    topology = found(announce(names[0]), "c", "id", 3, min_peers)
    for name in names[1:]:
        topology = join(topology, announce(name)) or topology
    return topology


def test_first_peer_forms_the_cluster() -> None:
    alone = found(announce("a"), "c", "id", 3, 1)
    assert (alone.epoch, alone.formed, [member.id for member in alone.members]) == (1, True, ["a"])
    assert not found(announce("a"), "c", "id", 3, 2).formed


@given(st.permutations("abcd"))
def test_forming_cluster_has_same_members_for_every_join_order(order: list[str]) -> None:
    topology = joined(order[:3], min_peers=3)
    assert topology.formed
    assert topology.epoch == 3
    assert topology.change is None
    assert [member.id for member in topology.members] == sorted(order[:3])
    assert {member.state for member in topology.members} == {State.ACTIVE}


def test_cluster_forms_with_the_last_required_peer() -> None:
    assert not joined("ab", min_peers=3).formed
    assert joined("abc", min_peers=3).formed


def test_later_peer_joins_by_a_topology_change() -> None:
    topology = joined("abcd", min_peers=3)
    member = topology.member("d")
    assert member is not None
    assert member.state is State.JOINING
    assert topology.change is not None
    assert topology.change.number == topology.epoch == 4


def test_two_concurrent_joins_are_one_change() -> None:
    topology = joined("abcde", min_peers=3)
    assert [member.id for member in topology.members if member.state is State.JOINING] == ["d", "e"]
    assert topology.change is not None
    assert topology.change.number == topology.epoch == 5
    assert topology.change.complete == ()


def test_join_of_an_unchanged_member_changes_nothing() -> None:
    topology = joined("abcd", min_peers=3)
    for name in "abcd":
        assert join(topology, announce(name)) is None


def test_member_at_a_new_address_keeps_its_partitions() -> None:
    topology = joined("abc", min_peers=3)
    moved = join(topology, announce("b", address="tcp://elsewhere:9"))
    assert moved is not None
    member = moved.member("b")
    assert member is not None
    assert (member.address, member.state, member.synced) == (
        "tcp://elsewhere:9",
        State.ACTIVE,
        True,
    )
    assert moved.change is None
    assert moved.epoch == topology.epoch + 1


def test_rejoin_keeps_zone_and_weight() -> None:
    topology = joined("abc", min_peers=3)
    assert join(topology, announce("b", zone="other", weight=5.0)) is None


def test_member_with_another_store_is_not_synced() -> None:
    topology = joined("abc", min_peers=3)
    back = join(topology, announce("b", store="new"))
    assert back is not None
    member = back.member("b")
    assert member is not None
    assert not member.synced
    assert member.state is State.ACTIVE
    again = join(back, announce("b", store="new"))
    assert again is None


def test_forming_member_with_another_store_stays_synced() -> None:
    back = join(joined("ab", min_peers=3), announce("b", store="new"))
    assert back is not None
    member = back.member("b")
    assert member is not None
    assert member.synced


def test_joining_member_with_another_store_restarts_the_change() -> None:
    topology = joined("abcd", min_peers=3)
    back = join(topology, announce("d", store="new"))
    assert back is not None
    member = back.member("d")
    assert member is not None
    assert member.synced  # it has no data yet and serves no reads
    assert back.change is not None
    assert topology.change is not None
    assert back.change.number > topology.change.number


def test_shared_epoch_restarts_a_change_that_streams_and_keeps_a_switched_one() -> None:
    streaming = joined("abcd", min_peers=3)
    ahead = under_own_epoch(complete(streaming, "d", streaming.epoch, LIFE) or streaming)
    assert ahead.epoch > streaming.epoch + RESTORED_JUMP
    assert ahead.change == Change(ahead.epoch)
    done = streaming
    for name in "abcd":
        done = complete(done, name, streaming.epoch, LIFE) or done
    switched = switch(done)
    assert switched is not None
    assert under_own_epoch(switched).change == switched.change


def test_topology_is_restored_above_an_epoch_that_only_clients_know() -> None:
    topology = joined("abc", min_peers=3)
    restored = restore_above(topology, "a", topology.epoch + 5)
    assert restored is not None
    assert restored.epoch > topology.epoch + 5
    assert restored.restored is not None, "a majority has to confirm it"
    assert supersedes(topology.next(), restored, "c"), "a member with a later topology objects"
    assert not supersedes(topology, restored, "c")


def test_topology_is_not_restored_above_epochs_that_cannot_have_been() -> None:
    topology = joined("abc", min_peers=3)
    restored = restore_above(topology, "a", topology.epoch + 5)
    assert restored is not None
    for latest, epoch in (
        (topology, topology.epoch),
        (topology, 2**63),
        (restored, restored.epoch + 5),
        (replace(topology, formed=False), topology.epoch + 5),
    ):
        assert restore_above(latest, "a", epoch) is None
    assert restore_above(topology, "d", topology.epoch + 5) is None, "it is no member"


def test_epoch_is_shared_only_by_another_topology_of_the_same_cluster() -> None:
    topology = joined("abc", min_peers=3)
    other = replace(topology, min_peers=2)
    assert shares_epoch(topology, other)
    assert not shares_epoch(topology, replace(topology))
    assert not shares_epoch(topology, other.next())
    assert not shares_epoch(topology, replace(other, cluster_id="another"))
    assert not shares_epoch(replace(topology, formed=False), other)
