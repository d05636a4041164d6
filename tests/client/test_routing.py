"""Routing: whom to ask and whom to tell, by liveness, zone, and what is known of the data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.client.routing import group, read_table, write_table
from dstash.cluster.topology.topology import Change, Member, State, Topology
from dstash.cluster.topology.view import View
from dstash.limits import PARTITIONS
from dstash.store.record import partition_of
from dstash.types import Level


def member(name: str, state: State = State.ACTIVE, *, synced: bool = True) -> Member:
    return Member(name, f"tcp://{name}:1", f"store-{name}", f"zone-{name}", 1.0, state, synced)


def view(*members: Member, replicas: int = 3, alive: str = "abcdefgh") -> View:
    change = Change(3) if any(one.state is not State.ACTIVE for one in members) else None
    topology = Topology("c", "id", 3, replicas, formed=True, members=members, change=change)
    return View(topology, frozenset(alive))


THREE = tuple(map(member, "abc"))


class TestReading:
    @pytest.mark.parametrize(("level", "asked"), [("one", 1), ("quorum", 2), ("all", 3)])
    def test_asks_as_many_as_the_level_needs(self, level: str, asked: int) -> None:
        table = read_table(view(*THREE), Level(level), "", ())
        assert {len(targets) for targets in table} == {asked}

    def test_asks_the_first_in_rank_when_nothing_speaks_against_it(self) -> None:
        seen = view(*THREE)
        for targets, row in zip(read_table(seen, Level.ONE, "", ()), seen.readers, strict=True):
            assert targets == row[:1]

    def test_spreads_over_all(self) -> None:
        firsts = [targets[0] for targets in read_table(view(*THREE), Level.ONE, "", ())]
        assert all(firsts.count(peer) > PARTITIONS / 4 for peer in "abc")

    def test_prefers_its_own_zone(self) -> None:
        table = read_table(view(*THREE), Level.QUORUM, "zone-b", ())
        assert {targets[0] for targets in table} == {"b"}

    def test_asks_those_last_that_hold_no_lock_or_are_avoided(self) -> None:
        table = read_table(view(*THREE, alive="bc"), Level.QUORUM, "zone-a", ())
        assert not any("a" in targets for targets in table)
        table = read_table(view(*THREE), Level.QUORUM, "zone-a", ("a",))
        assert not any("a" in targets for targets in table)

    def test_asks_who_is_behind_after_those_of_other_zones_and_before_the_avoided(self) -> None:
        table = read_table(view(*THREE), Level.QUORUM, "zone-a", (), lagging=("a",))
        assert {frozenset(targets) for targets in table} == {frozenset("bc")}
        table = read_table(view(*THREE), Level.QUORUM, "zone-a", ("b",), lagging=("a",))
        assert set(table) == {("c", "a")}
        table = read_table(view(*THREE, alive="ac"), Level.QUORUM, "zone-a", (), lagging=("a",))
        assert set(table) == {("c", "a")}

    def test_asks_them_all_the_same_when_there_is_nobody_else(self) -> None:
        table = read_table(view(*THREE, alive=""), Level.ALL, "", ("a", "b", "c"))
        assert {frozenset(targets) for targets in table} == {frozenset("abc")}

    def test_never_asks_who_has_lost_its_data(self) -> None:
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
            ("c", "quorum", 0),  # a write may be on the other two alone
            ("c", "one", 1),
            ("", "one", 0),
        ],
    )
    def test_asks_nobody_when_too_few_are_left_for_the_level(
        self, synced: str, level: str, asked: int
    ) -> None:
        some = [member(name, synced=name in synced) for name in "abc"]
        table = read_table(view(*some), Level(level), "", ())
        assert {len(targets) for targets in table} == {asked}

    def test_of_two_one_that_is_left_knows_every_quorum_write(self) -> None:
        two = view(member("a", synced=False), member("b"), replicas=2)
        assert set(read_table(two, Level.QUORUM, "", ())) == {("b",)}


class TestWriting:
    def test_tells_every_replica(self) -> None:
        for one in write_table(view(*THREE)):
            assert one.peers == one.old == one.new == ("a", "b", "c")

    @pytest.mark.parametrize(
        ("level", "enough", "too_few"),
        [("one", "b", ""), ("quorum", "ab", "a"), ("all", "abc", "bc")],
    )
    def test_is_done_when_the_level_is_met(self, level: str, enough: str, too_few: str) -> None:
        one = write_table(view(*THREE))[0]
        assert one.is_met(set(enough), Level(level))
        assert not one.is_met(set(too_few), Level(level))

    def test_while_a_change_is_under_way_both_sets_must_meet_it(self) -> None:
        moving = view(
            member("a"),
            member("b", State.LEAVING),
            member("c", State.LEAVING),
            member("d", State.JOINING),
            member("e", State.JOINING),
        )
        one = write_table(moving)[0]
        assert one.peers == ("a", "b", "c", "d", "e")
        assert (one.old, one.new) == (("a", "b", "c"), ("a", "d", "e"))
        assert not one.is_met({"b", "c"}, Level.QUORUM)
        assert not one.is_met({"d", "e"}, Level.QUORUM)
        assert not one.is_met({"a", "b"}, Level.QUORUM)
        assert one.is_met({"a", "b", "d"}, Level.QUORUM)
        assert one.is_met({"b", "c", "d", "e"}, Level.QUORUM)
        assert one.is_met({"a"}, Level.ONE)
        assert not one.is_met({"b"}, Level.ONE)

    def test_an_ack_of_who_has_lost_its_data_proves_nothing(self) -> None:
        one = write_table(view(member("a", synced=False), member("b"), member("c")))[0]
        assert one.peers == ("a", "b", "c")  # it is told all the same
        assert not one.is_met({"a", "b"}, Level.QUORUM)
        assert one.is_met({"b", "c"}, Level.QUORUM)


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=300), st.integers(1, 5))
def test_items_are_grouped_by_what_the_table_says(keys: list[bytes], groups: int) -> None:
    table = [partition % groups for partition in range(PARTITIONS)]
    grouped = group(keys, keys, table)
    assert sorted(key for some in grouped.values() for key in some) == sorted(keys)
    for target, some in grouped.items():
        assert some
        assert all(table[partition_of(key)] == target for key in some)


@pytest.mark.parametrize("band", [1, 64])
def test_a_large_batch_is_grouped_the_same(band: int) -> None:
    keys = [b"%d" % number for number in range(3 * PARTITIONS)]
    table = [partition % 7 for partition in range(PARTITIONS)]
    grouped = group(keys, keys, table, band)
    for target, some in grouped.items():
        assert {table[partition_of(key)] for key in some} == {target}
        bands = [partition_of(key) // band for key in some]
        assert bands == sorted(bands)
    assert sorted(key for some in grouped.values() for key in some) == sorted(keys)
