"""Tests of routing by liveness, zone and state of the data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.client.routing import (
    Table,
    few_targets,
    group,
    read_table,
    sort_places,
    write_table,
)
from dstash.cluster.topology.topology import Change, Member, State, Topology
from dstash.cluster.topology.view import View
from dstash.limits import PARTITIONS
from dstash.store.record import partition_of
from dstash.types import Level


def member(name: str, state: State = State.ACTIVE, *, synced: bool = True) -> Member:
    return Member(name, f"tcp://{name}:1", f"store-{name}", f"zone-{name}", 1.0, state, synced)


def view(*members: Member, replicas: int = 3, alive: str = "abcdefgh") -> View:
    change = Change(3) if any(member.state is not State.ACTIVE for member in members) else None
    topology = Topology("c", "id", 3, replicas, formed=True, members=members, change=change)
    return View(topology, frozenset(alive))


THREE = tuple(map(member, "abc"))


class TestReading:
    @pytest.mark.parametrize(("level", "asked"), [("one", 1), ("quorum", 2), ("all", 3)])
    def test_read_table_has_as_many_peers_as_the_level_needs(self, level: str, asked: int) -> None:
        table = read_table(view(*THREE), Level(level), "", ())
        assert {len(targets) for targets in table} == {asked}

    def test_read_table_prefers_the_first_in_rank(self) -> None:
        seen = view(*THREE)
        for targets, row in zip(read_table(seen, Level.ONE, "", ()), seen.readers, strict=True):
            assert targets == row[:1]

    def test_read_table_spreads_over_all_members(self) -> None:
        firsts = [targets[0] for targets in read_table(view(*THREE), Level.ONE, "", ())]
        assert all(firsts.count(peer) > PARTITIONS / 4 for peer in "abc")

    def test_read_table_prefers_its_own_zone(self) -> None:
        table = read_table(view(*THREE), Level.QUORUM, "zone-b", ())
        assert {targets[0] for targets in table} == {"b"}

    def test_read_table_puts_peers_without_lock_and_suspects_last(self) -> None:
        table = read_table(view(*THREE, alive="bc"), Level.QUORUM, "zone-a", ())
        assert not any("a" in targets for targets in table)
        table = read_table(view(*THREE), Level.QUORUM, "zone-a", ("a",))
        assert not any("a" in targets for targets in table)

    def test_read_table_puts_lagging_peers_between_other_zones_and_suspects(self) -> None:
        table = read_table(view(*THREE), Level.QUORUM, "zone-a", (), lagging=("a",))
        assert {frozenset(targets) for targets in table} == {frozenset("bc")}
        table = read_table(view(*THREE), Level.QUORUM, "zone-a", ("b",), lagging=("a",))
        assert set(table) == {("c", "a")}
        table = read_table(view(*THREE, alive="ac"), Level.QUORUM, "zone-a", (), lagging=("a",))
        assert set(table) == {("c", "a")}

    def test_read_table_has_suspects_when_no_other_peer_is_left(self) -> None:
        table = read_table(view(*THREE, alive=""), Level.ALL, "", ("a", "b", "c"))
        assert {frozenset(targets) for targets in table} == {frozenset("abc")}

    def test_read_table_leaves_out_members_without_their_data(self) -> None:
        lost = view(member("a", synced=False), member("b"), member("c"))
        for level in (Level.ONE, Level.QUORUM):
            table = read_table(lost, level, "zone-a", ())
            assert not any("a" in targets for targets in table)
            assert {len(targets) for targets in table} == {level.needed(3)}

    @pytest.mark.parametrize(
        ("synced", "level", "asked"),
        [
            ("bc", "all", 0),
            ("c", "all", 0),
            ("c", "quorum", 0),  # a write may be only on the other two
            ("c", "one", 1),
            ("", "one", 0),
        ],
    )
    def test_read_table_row_is_empty_when_too_few_are_left(
        self, synced: str, level: str, asked: int
    ) -> None:
        some = [member(name, synced=name in synced) for name in "abc"]
        table = read_table(view(*some), Level(level), "", ())
        assert {len(targets) for targets in table} == {asked}

    def test_one_of_two_replicas_has_every_quorum_write(self) -> None:
        two = view(member("a", synced=False), member("b"), replicas=2)
        assert set(read_table(two, Level.QUORUM, "", ())) == {("b",)}


class TestWriting:
    def test_write_set_has_every_replica(self) -> None:
        for write_set in write_table(view(*THREE)):
            assert write_set.peers == write_set.old == write_set.new == ("a", "b", "c")

    @pytest.mark.parametrize(
        ("level", "enough", "too_few"),
        [("one", "b", ""), ("quorum", "ab", "a"), ("all", "abc", "bc")],
    )
    def test_write_set_is_met_at_the_level(self, level: str, enough: str, too_few: str) -> None:
        write_set = write_table(view(*THREE))[0]
        assert write_set.is_met(set(enough), Level(level))
        assert not write_set.is_met(set(too_few), Level(level))

    def test_write_set_must_be_met_in_both_sets_during_a_change(self) -> None:
        moving = view(
            member("a"),
            member("b", State.LEAVING),
            member("c", State.LEAVING),
            member("d", State.JOINING),
            member("e", State.JOINING),
        )
        write_set = write_table(moving)[0]
        assert write_set.peers == ("a", "b", "c", "d", "e")
        assert (write_set.old, write_set.new) == (("a", "b", "c"), ("a", "d", "e"))
        assert not write_set.is_met({"b", "c"}, Level.QUORUM)
        assert not write_set.is_met({"d", "e"}, Level.QUORUM)
        assert not write_set.is_met({"a", "b"}, Level.QUORUM)
        assert write_set.is_met({"a", "b", "d"}, Level.QUORUM)
        assert write_set.is_met({"b", "c", "d", "e"}, Level.QUORUM)
        assert write_set.is_met({"a"}, Level.ONE)
        assert not write_set.is_met({"b"}, Level.ONE)

    def test_ack_of_a_member_without_its_data_does_not_count(self) -> None:
        write_set = write_table(view(member("a", synced=False), member("b"), member("c")))[0]
        assert write_set.peers == ("a", "b", "c")  # the write is also sent to it
        assert not write_set.is_met({"a", "b"}, Level.QUORUM)
        assert write_set.is_met({"b", "c"}, Level.QUORUM)


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=300), st.integers(1, 5))
def test_group_groups_items_by_table_entry(keys: list[bytes], groups: int) -> None:
    table = Table(partition % groups for partition in range(PARTITIONS))
    grouped = group(keys, keys, table)
    assert sorted(key for some in grouped.values() for key in some) == sorted(keys)
    for target, some in grouped.items():
        assert some
        assert all(table[partition_of(key)] == target for key in some)


@pytest.mark.parametrize("band", [1, 64])
def test_group_of_large_batch_equals_that_of_small_ones(band: int) -> None:
    keys = [b"%d" % number for number in range(3 * PARTITIONS)]
    table = Table(partition % 7 for partition in range(PARTITIONS))
    grouped = group(keys, keys, table, band)
    for target, some in grouped.items():
        assert {table[partition_of(key)] for key in some} == {target}
        bands = [partition_of(key) // band for key in some]
        assert bands == sorted(bands)
    assert sorted(key for some in grouped.values() for key in some) == sorted(keys)


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=600))
def test_few_targets_ask_the_same_peers_for_every_key(keys: list[bytes]) -> None:
    table = read_table(view(*THREE), Level.QUORUM, "", ())
    groups = sort_places(keys, table)
    united = few_targets(groups)
    assert len(united) <= 3, "pairs of three peers"
    asked = {place: targets for targets, places in united.items() for place in places}
    assert sorted(asked) == list(range(len(keys)))
    for place, key in enumerate(keys):
        assert set(asked[place]) == set(table[partition_of(key)])
    assert list(united) == [targets for targets in groups if targets in united]
