"""Registers in a cluster whose floors and horizons are lowered after clocks were wrong (T7)."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from dstash.cluster.replication import handlers
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology import transitions
from dstash.errors import ChangeConflict, NotReady
from dstash.peer.background.maintenance import Pace
from dstash.store.digest import DigestKind
from dstash.store.memory import TwinStore
from dstash.store.record import partition_of
from dstash.version import Stamp, stamp_at
from dstash.wire.packing import pack_partitions
from dstash.wire.registers import ChangeKind as Kind
from dstash.wire.registers import ChangeOutcome as Outcome
from dstash.wire.replication import FloorRequest
from tests.harness.joined import Joined
from tests.harness.registers import Callers, Result
from tests.peer.registers.test_moves import Moving

HOUR = 3_600_000
ONE, TWO = b"\x01", b"\x02"
KEY = b"k"
PARTITION = partition_of(KEY)
#: A key of the same partition that has no register.
ABSENT = next(key for key in map(b"%d".__mod__, count()) if partition_of(key) == PARTITION)


class Lowering:
    """A cluster with a register, and a horizon an hour ahead on some replicas."""

    def __init__(self, *holders: str) -> None:
        self.joined = joined = Joined(registers=True, pace=Pace(10**9, 10**9, 0))
        self.callers = Callers(joined)
        self.change(Kind.PUT, values=[ONE])
        self.pass_time()
        self.ahead: Stamp = stamp_at(joined.now + HOUR)
        for peer, core in joined.peers.items():
            local_partitions, store = core.local_partitions, joined.stores[peer]
            local_partitions.floor = local_partitions.kept_floor = self.ahead
            store.mark(b"floor", self.ahead.to_bytes(8, "big"))
            if peer in holders:
                store.mark(*local_partitions.advance([PARTITION], self.ahead))

    def pass_time(self) -> None:
        """Let peers work for some seconds."""
        for _ in range(4):
            self.joined.now += 1000
            self.joined.settle()

    def change(self, kind: Kind, home: str = "a", **wanted: Any) -> Result:
        """Change the register."""
        return self.callers.run(self.callers.change(kind, KEY, home=home, **wanted)).result

    def lower(self) -> None:
        """Request to lower floors."""
        joined = self.joined
        stamp = stamp_at(joined.now)
        joined.change(transitions.lower_floors(joined.topology, frozenset("abc"), stamp))
        joined.session.install(joined.topology.encode(), list("abc"))

    def floors(self) -> list[Stamp]:
        """Return the floor of the register's partition on each peer."""
        cores = self.joined.peers.values()
        return [core.local_partitions.register_floors[PARTITION] for core in cores]


@pytest.mark.parametrize("holders", ["a", "c", "abc"])
def test_rounds_stay_above_every_horizon_that_a_replica_had(holders: str) -> None:
    lowering = Lowering(*holders)
    lowering.lower()
    lowering.pass_time()
    joined = lowering.joined
    assert lowering.floors() == [lowering.ahead] * 3
    for core in joined.peers.values():
        local_partitions = core.local_partitions
        assert max(local_partitions.floor, *local_partitions.horizons) <= stamp_at(joined.now)
    assert joined.put({"plain": 1}, "all").ok
    for home in "abc":
        result = lowering.change(Kind.INCREMENT, home)
        assert result.outcome is Outcome.APPLIED
        assert result.version > lowering.ahead


def test_floor_of_registers_survives_a_restart() -> None:
    lowering = Lowering("b")
    lowering.lower()
    lowering.pass_time()
    for peer in "abc":
        lowering.joined.restart(peer)
    lowering.pass_time()
    assert lowering.floors() == [lowering.ahead] * 3


def test_lowering_waits_for_replicas_that_are_down() -> None:
    lowering = Lowering("c")
    joined = lowering.joined
    joined.down = {"c"}
    lowering.lower()
    lowering.pass_time()
    local_partitions = joined.peers["a"].local_partitions
    assert local_partitions.is_lowering
    assert local_partitions.floor == lowering.ahead
    request = FloorRequest(pack_partitions([PARTITION]), 1, DigestKind.WRITES)
    with pytest.raises(NotReady, match="floors are being lowered"):
        next(handlers.floor(local_partitions, request, joined.now))
    joined.down = set()
    lowering.pass_time()
    assert lowering.floors() == [lowering.ahead] * 3
    assert not local_partitions.is_lowering


def test_horizon_that_was_promised_before_cannot_follow() -> None:
    lowering = Lowering("a")
    joined = lowering.joined
    later = lowering.ahead + 1
    for core in joined.peers.values():
        core.local_partitions.promise(PARTITION, later, joined.now + 8000)
    joined.down = {"c"}
    lowering.lower()
    lowering.pass_time()
    assert not joined.peers["a"].local_partitions.has_promised(PARTITION, later, joined.now)
    assert not joined.peers["b"].local_partitions.has_promised(PARTITION, later, joined.now)


def test_cluster_without_registers_keeps_no_floors() -> None:
    lowering = Lowering("a")
    joined = lowering.joined
    joined.topology = replace(joined.topology, registers=False)
    joined.down = {"c"}
    lowering.lower()
    lowering.pass_time()
    assert not joined.peers["a"].local_partitions.is_lowering
    assert not joined.peers["a"].local_partitions.register_floors


def test_register_below_a_horizon_of_the_future_is_changed() -> None:
    """Also before floors are lowered: the next round is above the horizon."""
    lowering = Lowering("a", "b", "c")
    for core in lowering.joined.peers.values():
        core.local_partitions.floor = 0
    result = lowering.change(Kind.INCREMENT)
    assert result.outcome is Outcome.APPLIED
    assert result.version > lowering.ahead


def test_new_replica_takes_the_highest_horizon_of_its_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moving = Moving()
    joined = moving.joined
    moving.callers.run(moving.callers.change(Kind.PUT, KEY, values=[ONE]))
    ahead = stamp_at(joined.now + HOUR)
    for peer in "abc":
        joined.stores[peer].mark(*joined.peers[peer].local_partitions.advance([PARTITION], ahead))
    # In a large cluster, three replicas are no majority.
    clock = joined.peers["d"].maintenance.replica.clock
    monkeypatch.setattr(clock, "latest", lambda: stamp_at(joined.now + 500))
    moving.begin()
    moving.end()
    local_partitions = joined.peers["d"].local_partitions
    assert local_partitions.horizons[PARTITION] < ahead, "its clock does not accept it"
    assert local_partitions.register_floors[PARTITION] == ahead
    again = LocalPartitions(joined.stores["d"])
    assert again.register_floors[PARTITION] == ahead
    assert again.floors_are_horizons, "no request has lowered the horizons of the sources"
    again.lowering_epoch = joined.topology.epoch + 1
    list(again.lower(1, again.lowering_epoch, {}))
    assert not again.floors_are_horizons
    assert again.register_floors[PARTITION] == ahead


def test_new_replica_takes_floors_of_the_past() -> None:
    """The time may have passed them, but clocks can be set back."""
    moving = Moving()
    joined = moving.joined
    moving.callers.run(moving.callers.change(Kind.PUT, KEY, values=[ONE]))
    floor = stamp_at(joined.now - HOUR)
    for peer in "abc":
        joined.peers[peer].local_partitions.raise_register_floors({PARTITION: floor})
    moving.begin()
    moving.end()
    assert joined.peers["d"].local_partitions.register_floors[PARTITION] == floor


class TestRequestIds:
    """Requests of before are not applied again, although horizons do not refuse them any more."""

    @pytest.fixture
    def lowering(self) -> Lowering:
        lowering = Lowering("a", "b")
        lowering.lower()
        lowering.pass_time()
        return lowering

    def put(self, lowering: Lowering, **wanted: Any) -> Result:
        callers = lowering.callers
        return callers.run(callers.change(Kind.PUT, ABSENT, values=[TWO], **wanted)).result

    def test_new_register_is_created_above_the_horizon(self, lowering: Lowering) -> None:
        result = self.put(lowering)
        assert result.outcome is Outcome.APPLIED
        assert result.version > lowering.ahead

    def test_repeated_request_of_before_is_refused(self, lowering: Lowering) -> None:
        epoch = lowering.joined.topology.epoch
        assert self.put(lowering, repeated=True).outcome is Outcome.FORGOTTEN
        before = self.put(lowering, repeated=True, epoch=epoch - 1, caller=b"caller02")
        assert before.outcome is Outcome.FORGOTTEN
        assert self.put(lowering, repeated=True, epoch=epoch).outcome is Outcome.APPLIED

    def test_restored_topology_without_the_request_keeps_horizons(self, lowering: Lowering) -> None:
        joined = lowering.joined
        earlier = replace(joined.topology, ceiling=0, ceiling_epoch=0).next()
        joined.change(earlier)
        assert self.put(lowering).outcome is Outcome.FORGOTTEN

    def test_repeated_request_above_every_horizon_is_applied(self, lowering: Lowering) -> None:
        joined = lowering.joined
        joined.now += 2 * HOUR
        lowering.pass_time()
        assert self.put(lowering, repeated=True).outcome is Outcome.APPLIED

    def test_request_that_left_a_trace_gets_its_answer_again(self) -> None:
        lowering = Lowering("a")
        number = stamp_at(lowering.joined.now, 7)
        first = lowering.change(Kind.INCREMENT, number=number)
        lowering.lower()
        lowering.pass_time()
        again = lowering.change(Kind.INCREMENT, "b", number=number, repeated=True)
        assert again == first

    def test_request_that_waits_at_its_home_is_refused(self) -> None:
        lowering = Lowering()
        joined, callers = lowering.joined, lowering.callers
        joined.mute = {"b", "c"}
        sent = callers.change(Kind.PUT, ABSENT, values=[TWO])
        joined.settle()
        lowering.lower()
        joined.mute = set()
        assert callers.run(sent).result.outcome is Outcome.FORGOTTEN

    def test_repeated_request_is_refused_while_floors_are_not_known(self) -> None:
        lowering = Lowering()
        joined, callers = lowering.joined, lowering.callers
        for core in joined.peers.values():
            core.local_partitions.floor = 0
        joined.down = {"c"}
        lowering.lower()
        joined.settle()
        assert joined.peers["a"].local_partitions.is_lowering
        assert self.put(lowering, repeated=True).outcome is Outcome.FORGOTTEN
        result = callers.run(callers.change(Kind.PUT, ABSENT, values=[TWO])).result
        assert result.outcome is Outcome.APPLIED


def test_member_of_an_earlier_version_keeps_no_floors_of_registers() -> None:
    topology = Joined(registers=True).topology
    old = replace(topology.members[1], features="drop registers index-settings")
    with pytest.raises(ChangeConflict, match="b runs an earlier version"):
        transitions.lower_floors(topology.with_member(old), frozenset("abc"), 1)
    plain = replace(topology, registers=False).with_member(old)
    assert transitions.lower_floors(plain, frozenset("abc"), 1).ceiling == 1


def test_floor_that_was_lowered_meanwhile_does_not_count_as_kept() -> None:
    local_partitions = LocalPartitions(TwinStore("s"))
    local_partitions.floor = stamp_at(HOUR)
    keeping = local_partitions.keep_floor()
    next(keeping)
    local_partitions.kept_floor = 0
    list(local_partitions.lower(1, 7))
    assert list(keeping) == []
    assert local_partitions.kept_floor == 0
