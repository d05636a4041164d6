"""What a client may read by itself follows from its view and from the serving mark alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.client.local.rules import is_listed, readable, routes, why_foreign
from dstash.cluster.topology.topology import Member, State, Topology
from dstash.cluster.topology.view import View
from dstash.store.sharing.mark import ServingMark
from dstash.store.sharing.places import Machine, StorePlace

EPOCH = 5
ALL = frozenset(range(4096))


def topology_of(names: str, replicas: int = 2) -> Topology:
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in names)
    return Topology("c", "id", EPOCH, replicas=replicas, formed=True, members=members)


TOPOLOGY = topology_of("abc")
VIEW = View(TOPOLOGY)
#: The partitions of which ``a`` is a replica: two in three.
HELD = frozenset(number for number, row in enumerate(VIEW.readers) if "a" in row)
MARK = ServingMark(7, EPOCH, "id", HELD)


def test_partitions_of_the_mark_and_of_the_view_can_be_read() -> None:
    assert 2000 < len(HELD) < 3500
    assert readable(VIEW, "a", MARK) == HELD


@pytest.mark.parametrize(
    "mark",
    [
        ServingMark(0),
        MARK._replace(ticket=0),
        MARK._replace(epoch=EPOCH + 1),
        MARK._replace(epoch=EPOCH - 1),
        MARK._replace(cluster_id="of another history"),
        MARK._replace(partitions=frozenset()),
    ],
)
def test_other_marks_let_nothing_be_read(mark: ServingMark) -> None:
    assert readable(VIEW, "a", mark) == frozenset()


def _with(**changes: object) -> View:
    first, *others = TOPOLOGY.members
    return View(replace(TOPOLOGY, members=(replace(first, **changes), *others)))


@pytest.mark.parametrize(
    "view",
    [
        View(replace(TOPOLOGY, formed=False)),
        View(replace(TOPOLOGY, members=TOPOLOGY.members[1:])),
        _with(synced=False),
    ],
    ids=["forming", "removed", "unsynced"],
)
def test_other_views_let_nothing_be_read(view: View) -> None:
    assert readable(view, "a", MARK) == frozenset()


def test_partition_that_either_side_lacks_is_not_read() -> None:
    few = frozenset(sorted(HELD)[:3])
    assert readable(VIEW, "a", MARK._replace(partitions=few)) == few
    # The mark has more than the view gives to readers.
    assert readable(VIEW, "a", MARK._replace(partitions=ALL)) == HELD
    joining = _with(state=State.JOINING)
    assert readable(joining, "a", MARK._replace(partitions=ALL)) == frozenset()


def test_routes_use_every_store_that_has_the_partition() -> None:
    only = routes(VIEW, {"a": MARK})
    assert {number for number, peer in enumerate(only) if peer} == HELD
    both = routes(VIEW, {"a": MARK, "b": MARK._replace(ticket=8, partitions=ALL)})
    for peer, row in zip(both, VIEW.readers, strict=True):
        assert peer in row
    assert routes(VIEW, {}) == [None] * 4096


def test_store_of_another_peer_or_cluster_is_foreign() -> None:
    place = StorePlace(Machine("boot", ""), "/data", "store-a")
    assert why_foreign(VIEW, "a", place, ("id", "a")) == ""
    assert "peer 'b' of another cluster" in why_foreign(VIEW, "a", place, ("id", "b"))
    assert "another cluster" in why_foreign(VIEW, "a", place, ("other", "a"))


def test_store_is_listed_if_the_topology_has_its_id() -> None:
    place = StorePlace(Machine("boot", ""), "/data", "store-a")
    assert is_listed(VIEW, "a", place)
    assert not is_listed(VIEW, "a", place._replace(store_id="store-b"))
    assert not is_listed(VIEW, "d", place)
