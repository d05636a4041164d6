"""Tests of streaming records that are stamped ahead of every clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.cluster.replication.future.survey import Survey
from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.peer.background.maintenance import Pace
from dstash.store.record import build_record, head, open_record, partition_of, version_of
from dstash.version import newest_stamp, pack, stamp_at
from tests.harness.joined import TYPES, Joined

HOUR = 3_600_000


class Joining:
    """A cluster of seven peers, and a peer h that joins it and becomes a replica of a key.

    The three replicas of the key are no majority of the members.
    """

    def __init__(self) -> None:
        self.joined = joined = Joined("abcdefgh", pace=Pace(4000, 10**9, 0))
        before = replace(joined.topology.without("h"), epoch=6)
        self.change(before)
        arrives = Announcement("h", "tcp://h:1", "store-h", "z-h", 1.0, features=FEATURES)
        self.begun = transitions.add(before, [arrives])
        gained = set(transitions.incoming(self.begun)["h"])
        self.key = next(key for key in map(str, range(999)) if partition_of(key.encode()) in gained)
        self.partition = partition_of(self.key.encode())
        self.replicas = View(before).readers[self.partition]
        self.pass_time(3000)

    def change(self, topology: Topology) -> None:
        """Give a topology to all peers; those that are down are known to be."""
        joined = self.joined
        joined.topology = topology
        view = View(topology, frozenset(joined.peers) - joined.down)
        for name, core in joined.peers.items():
            joined._answer_each(name, core.install(view, joined.now))

    def stream(self) -> None:
        """Let the new peer stream, for ten seconds at most."""
        for _ in range(50):
            if not self.has_streamed():
                self.pass_time(200)

    def pass_time(self, milliseconds: int) -> None:
        """Let peers work, and take the steps of a topology change that they propose."""
        joined = self.joined
        for _ in range(milliseconds // 200):
            joined.now += 200
            joined.settle()
            for core in joined.peers.values():
                for step in core.take_proposals():
                    changed = step(joined.topology)
                    if changed is not None:
                        self.change(changed)

    def put_future(self, *peers: str) -> bytes:
        """Store a record of the future on peers, above a horizon from that time."""
        joined = self.joined
        for peer in self.replicas:
            mark = joined.peers[peer].local_partitions.advance(
                [self.partition], stamp_at(joined.now + HOUR)
            )
            joined.stores[peer].mark(*mark)
        version = pack(stamp_at(joined.now + 2 * HOUR), b"oops")
        fields = open_record(bytes(8) + head(version))._replace(
            payload=TYPES.encode_many(["future"])[0]
        )
        record = build_record(b"i", self.key.encode(), fields)
        for peer in peers:
            store = joined.stores[peer]
            store.records[joined.place(self.key)] = record
            store.high_water = newest_stamp(version_of(record))
            joined.peers[peer].local_partitions.changed([self.partition], joined.now)
        return record

    def has_streamed(self) -> bool:
        """Whether the new peer has streamed all that it gains."""
        change = self.joined.topology.change
        return change is None or "h" in change.complete


@pytest.fixture
def joining() -> Joining:
    return Joining()


@pytest.mark.parametrize("holders", [2, 3])
def test_record_of_the_future_on_a_quorum_is_streamed(joining: Joining, holders: int) -> None:
    record = joining.put_future(*joining.replicas[-holders:])
    joining.change(joining.begun)
    joining.stream()
    assert joining.has_streamed()
    streamed = joining.joined.record("h", joining.key)
    assert streamed is not None
    assert open_record(streamed).payload == open_record(record).payload


@pytest.mark.parametrize("holder", [0, 2])
def test_record_of_the_future_on_a_minority_does_not_spread(joining: Joining, holder: int) -> None:
    joined = joining.joined
    joined.put({joining.key: "old"}, "all")
    old = joined.record(joining.replicas[0], joining.key)
    joining.put_future(joining.replicas[holder])
    joining.change(joining.begun)
    joining.stream()
    assert joining.has_streamed()
    assert joined.record("h", joining.key) == old


def test_record_of_the_future_waits_for_a_replica_that_may_hold_it(joining: Joining) -> None:
    joined = joining.joined
    holder, other, down = joining.replicas
    record = joining.put_future(holder)
    assert joined.record(other, joining.key) is None
    joined.down = {down}
    joining.change(joining.begun)
    joining.stream()
    assert not joining.has_streamed()
    joined.down = set()
    joining.change(joined.topology)
    joining.stream()
    assert joining.has_streamed()
    assert joined.record("h", joining.key) is None
    assert joined.record(holder, joining.key) == record


def test_survey_counts_replicas_that_may_have_replaced_a_record() -> None:
    def record(stamp: int) -> bytes:
        return build_record(b"i", b"k", open_record(bytes(8) + head(pack(stamp, b"oops"))))

    low, high = record(1), record(2)
    survey = Survey([low, high], 3, 0, 1)
    assert survey.counts_as_acked(low)
    assert survey.may_be_acked(high)
    assert not survey.counts_as_acked(high)
    assert not Survey([low, high, None], 3, 0, 0).may_be_acked(high)
    assert Survey([high, None], 3, 1, 0).counts_as_acked(high), "another has lost its data"
