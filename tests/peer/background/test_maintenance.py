"""Maintenance of a peer, with cores joined in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from dstash import events
from dstash.client.refusals import is_because
from dstash.cluster.replication import corruption
from dstash.cluster.replication.partitions import HORIZONS_MARK
from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.view import View
from dstash.errors import BelowFloor, DiskFull
from dstash.limits import PARTITIONS
from dstash.peer.assembly import Settings
from dstash.peer.background.maintenance import Pace
from dstash.peer.core import PeerCore
from dstash.store.memory import TwinStore
from dstash.store.record import open_record, partition_of
from dstash.types import RecordFlag
from dstash.version import stamp_at
from dstash.wire.envelope import decode
from dstash.wire.packing import unpack_partitions
from dstash.wire.replication import DigestsRequest
from tests.harness.joined import START, Joined


class Tight(TwinStore):
    """A store whose disk has a limited size."""

    free = 1 << 40

    def has_room(self, reserve: int) -> bool:
        """Whether more than ``reserve`` is free."""
        return self.free > reserve


def live(horizon_ms: int = 0) -> Pace:
    """Return a pace at which only hints are due."""
    return Pace(compare_ms=10**9, gc_interval_ms=10**9, gc_grace_ms=horizon_ms)


def missed_by_c(joined: Joined) -> None:
    """Store a key that ``c`` misses, with a hint on ``a``."""
    joined.down = {"c"}
    joined.put({"k": 1})
    joined.down = set()


def keeps_hints(joined: Joined) -> int:
    return sum(len(core.hints) for core in joined.peers.values())


def test_refused_hint_is_kept_and_replayed_after_a_pause() -> None:
    joined = Joined(pace=live())
    missed_by_c(joined)
    assert keeps_hints(joined) == 1
    partition = partition_of(b"k")
    joined.peers["c"].local_partitions.promise(partition, stamp_at(joined.now), joined.now)
    joined.settle()
    assert joined.record("c", "k") is None
    assert keeps_hints(joined) == 1
    joined.peers["c"].local_partitions.promises(joined.now + 60_000)  # the promise has ended
    joined.settle()
    assert joined.record("c", "k") is None, "it is left alone for a second"
    joined.now += 1500
    joined.settle()
    assert joined.record("c", "k") == joined.record("a", "k")
    assert keeps_hints(joined) == 0


def test_hints_survive_a_restart_of_their_holder() -> None:
    joined = Joined(pace=live())
    joined.down = {"c"}
    joined.put({f"k{number}": number for number in range(20)})
    joined.settle()
    assert keeps_hints(joined) == 20
    holder = next(name for name, core in joined.peers.items() if len(core.hints))
    restarted = PeerCore(Settings(holder, "c", pace=live()), joined.stores[holder], joined.now)
    restarted.health.not_ready = None
    joined.peers[holder] = restarted
    joined.install(joined.topology, holder)
    assert restarted.hints.waiting() == ["c"]
    joined.down = set()
    for _ in range(30):
        joined.now += 500
        joined.settle()
    for number in range(20):
        assert joined.record("c", f"k{number}") == joined.record(holder, f"k{number}")
    assert restarted.hints.waiting() == []
    again = PeerCore(Settings(holder, "c", pace=live()), joined.stores[holder], joined.now)
    joined.peers[holder] = again
    joined.install(joined.topology, holder)
    assert again.hints.waiting() == []


def test_hints_past_the_limit_are_repaired_by_partition() -> None:
    joined = Joined(pace=live(), hint_limit=3)
    joined.down = {"c"}
    joined.put({f"k{number}": number for number in range(20)})
    joined.down = set()
    assert keeps_hints(joined) == 3
    for _ in range(30):
        joined.settle()
    assert [joined.record("c", f"k{n}") for n in range(20)] == [
        joined.record("a", f"k{n}") for n in range(20)
    ]


def test_expired_hints_are_repaired_by_partition() -> None:
    joined = Joined(pace=Pace(10_000, 10**9, 0), hint_max_age_ms=1000)
    missed_by_c(joined)
    agent = next(core for core in joined.peers.values() if len(core.hints))
    agent.hints.age(joined.now + 2000)
    assert (len(agent.hints), agent.hints.describe()) == (0, {"c": 1})
    joined.settle()
    assert joined.record("c", "k") == joined.record("a", "k")


def test_hints_for_a_removed_peer_are_dropped() -> None:
    joined = Joined(pace=live())
    missed_by_c(joined)
    agent = next(core for core in joined.peers.values() if len(core.hints))
    agent.hints.forget("c")
    assert agent.hints.waiting() == []


def pass_time(joined: Joined) -> None:
    """Run some rounds of comparison."""
    for _ in range(6):
        joined.now += 2500
        for _ in range(20):
            joined.settle()


def test_repairs_leave_the_last_room_of_a_full_disk_to_deletes() -> None:
    joined = Joined(pace=Pace(2000, 10**9, 0), disk_reserve=1000)
    tight = Tight("store-c")
    joined.stores["c"] = joined.peers["c"].store = tight
    joined.peers["c"].local_partitions.store = tight
    tight.free = 700  # puts are refused; repairs may use half of the reserve
    assert is_because(joined.put({"k": 1}, "all").reasons[0], DiskFull)
    joined.put({"k": 1})
    pass_time(joined)
    assert joined.record("c", "k") is not None
    tight.free = 400
    joined.put({"l": 1})
    pass_time(joined)
    assert joined.record("c", "l") is None
    joined.delete("k", level="all")
    tombstone = joined.record("c", "k")
    assert tombstone is not None
    assert open_record(tombstone).is_tombstone
    tight.free = 1 << 40
    pass_time(joined)
    assert joined.record("c", "l") == joined.record("a", "l"), "it recovers by itself"


def test_tombstones_of_single_replica_are_collected() -> None:
    joined = Joined("a", replicas=1, pace=Pace(10**9, 1000, 500))
    joined.put({"k": 1, "l": 2})
    joined.delete("k")
    record = joined.record("a", "k")
    assert record is not None
    assert open_record(record).flags & RecordFlag.TOMBSTONE
    for _ in range(300):
        joined.now += 1100
        joined.settle()
        if joined.record("a", "k") is None:
            break
    assert joined.record("a", "k") is None
    assert joined.lookup("k", "l") == {"l": 2}


def test_horizon_known_to_one_replica_reaches_the_others() -> None:
    joined = Joined(pace=Pace(2500, 5000, 2000))
    joined.put({"k": 1})
    joined.delete("k")
    partition = partition_of(b"k")
    first = View(joined.topology).readers[partition][0]  # without tombstones it starts no agreement
    joined.now += 3000
    first_partitions = joined.peers[first].local_partitions
    first_partitions.advance([partition], stamp_at(joined.now - 2000))
    del joined.stores[first].records[joined.place("k")]
    pass_time(joined)
    assert [joined.record(peer, "k") for peer in "abc"] == [None] * 3
    horizons = {core.local_partitions.horizons[partition] for core in joined.peers.values()}
    assert len(horizons) == 1


def test_restart_with_earlier_clock_refuses_writes_below_horizon() -> None:
    store = TwinStore("store-a")
    horizons = Joined("a").peers["a"].local_partitions.horizons
    for partition in range(PARTITIONS):
        horizons[partition] = stamp_at(START + 3_600_000)
    store.mark(HORIZONS_MARK, horizons.tobytes())
    core = PeerCore(Settings("a", "c"), store, START)
    assert core.local_partitions.floor == stamp_at(START + 3_600_000)
    joined = Joined("a", replicas=1)
    joined.peers["a"].local_partitions.floor = core.local_partitions.floor
    result: Any = joined.put({"k": 1}, timeout=500)
    assert not result.ok
    assert any(
        isinstance(reason, BelowFloor) or "older" in str(reason) for reason in result.reasons
    )


def asked_by(joined: Joined, name: str) -> list[set[int]]:
    """Return a list that collects the partitions of each request for digests by a peer."""
    core, asked = joined.peers[name], []
    tick = core.tick

    def listening(now: int) -> Any:
        replies, outgoing = tick(now)
        messages = [decode(request.frames).message for request in outgoing]
        questions = [message for message in messages if isinstance(message, DigestsRequest)]
        asked.extend(set(unpack_partitions(request.partitions)) for request in questions)
        return replies, outgoing

    core.tick = listening  # type: ignore[method-assign]
    return asked


def test_resumed_streaming_continues_where_it_paused() -> None:
    joined = Joined("abcd", pace=live())
    three = replace(joined.topology, members=joined.topology.members[:3], epoch=6)
    joined.install(three)
    joined.session.install(three.encode(), list("abc"))
    joined.put({f"k{n}": "v" * 100 for n in range(4000)}, "all")
    joiner = Announcement("d", "tcp://d:1", "store-d", "z-d", 1.0)
    begun = transitions.steer(transitions.add(three, [joiner]), rate=1_000_000)
    gained = set(transitions.incoming(begun)["d"])
    joined.install(begun)
    core = joined.peers["d"]
    for _ in range(200):
        joined.now += 1
        joined.settle()
    begun = transitions.steer(begun, rate=2_000_000)
    joined.install(begun)
    before = core.maintenance.describe()
    assert 0 < before["streaming"] < len(gained) - 500, "another rate does not restart streaming"

    paused = transitions.steer(begun, paused=True)
    joined.install(paused)
    joined.now += 60_000
    joined.settle()
    assert core.maintenance.describe() == before, "nothing moves, and no time passes"

    asked = asked_by(joined, "d")
    resumed = transitions.steer(paused, paused=False)
    joined.install(resumed)
    assert core.maintenance.describe()["streaming"] == before["streaming"]
    while core.maintenance.describe()["streaming"]:
        joined.now += 1
        joined.settle()
    assert len(core.take_proposals()) == 1
    assert len(set().union(*asked)) == before["streaming"]
    after = core.maintenance.describe()
    assert after["streaming"] == 0
    assert after["streamed_records"] >= len(joined.stores["d"].records) > 2500
    assert after["streaming_ms"] < 3000, "the pause does not count"
    assert after["streaming_of"] == len(gained)

    paused = transitions.steer(resumed, paused=True)
    joined.install(paused)
    joined.install(transitions.steer(paused, paused=False))
    joined.now += 60_000
    joined.settle()
    assert core.maintenance.describe() == after
    assert len(core.take_proposals()) == 1, "it says once more that it has all"


def test_streaming_is_logged_with_its_figures() -> None:
    joined = Joined("abcd", pace=live())
    three = replace(joined.topology, members=joined.topology.members[:3], epoch=6)
    joined.install(three)
    joined.session.install(three.encode(), list("abc"))
    joined.put({f"k{n}": "v" * 100 for n in range(1000)}, "all")
    joiner = Announcement("d", "tcp://d:1", "store-d", "z-d", 1.0)
    begun = transitions.steer(transitions.add(three, [joiner]), rate=1_000_000)
    gained = len(transitions.incoming(begun)["d"])
    with capture_logs() as logs:
        joined.install(begun)
        for _ in range(20):
            joined.now += 1
            joined.settle()
        joined.install(paused := transitions.steer(begun, paused=True))
        joined.install(transitions.steer(paused, paused=False))
        while joined.peers["d"].maintenance.describe()["streaming"]:
            joined.now += 1
            joined.settle()
    lines = [line for line in logs if line["event"].startswith("streaming")]
    names = [line["event"] for line in lines]
    assert names == [
        *(events.STREAMING_BEGUN, events.STREAMING_STOPPED),
        *(events.STREAMING_BEGUN, events.STREAMING_ENDED),
    ]
    first, stopped, again, ended = lines
    assert (first["partitions"], first["purpose"]) == (gained, "change")
    assert again["partitions"] == gained - stopped["partitions"] > 0
    status = joined.peers["d"].maintenance.describe()
    assert (ended["partitions"], ended["of"]) == (gained, gained)
    assert (ended["records"], ended["bytes"]) == (
        *(status["streamed_records"], status["streamed_bytes"]),
    )
    assert ended["records"] >= len(joined.stores["d"].records) > 500
    assert ended["seconds"] == round(status["streaming_ms"] / 1000, 1)


def test_cancelled_streaming_does_not_resume() -> None:
    joined = Joined("abcd", pace=live())
    begun = transitions.remove(joined.topology, ["d"])
    joined.install(begun)
    core = joined.peers["a"]
    assert core.maintenance.describe()["streaming"] == len(transitions.incoming(begun)["a"])
    paused = transitions.steer(begun, paused=True)
    joined.install(paused)
    assert core.maintenance.describe()["streaming"] > 0
    joined.install(transitions.cancel(paused))
    assert core.maintenance.describe()["streaming"] == 0


def test_change_of_another_history_with_the_same_number_is_streamed_by_itself() -> None:
    joined = Joined("abcde", pace=live())
    begun = transitions.remove(joined.topology, ["e"])
    joined.install(begun)
    core = joined.peers["a"]
    while core.maintenance.describe()["streaming"]:
        joined.now += 1
        joined.settle()
    [propose] = core.take_proposals()
    other = transitions.remove(joined.topology, ["c"])
    assert other.change == begun.change
    assert propose(other) is None
    done = propose(begun)
    assert done is not None
    assert done.change is not None
    assert done.change.complete == ("a",)
    joined.install(replace(other, epoch=begun.epoch + 1))
    assert core.maintenance.describe()["streaming"] == len(transitions.incoming(other)["a"])


def compare_once(joined: Joined) -> None:
    """Run one round of comparison."""
    joined.now += 2600  # no recent change, and one round is due
    for _ in range(400):
        joined.settle()
        joined.now += 1


def test_one_round_of_comparison_makes_partitions_of_all_batches_equal() -> None:
    joined = Joined(pace=Pace(1_000_000, 10**9, 0))
    names = [f"k{number}" for number in range(300)]
    joined.put(dict.fromkeys(names, 1), "all")
    joined.forget("c", *names)
    joined.now += 200_001
    compare_once(joined)
    compared = {name: core.maintenance.replica.compared for name, core in joined.peers.items()}
    assert sum(compared.values()) <= 3 * PARTITIONS, f"one round: {compared}"
    assert [key for key in names if joined.record("c", key) is None] == []


def test_refusal_of_one_partition_does_not_block_repair_of_others() -> None:
    joined = Joined(pace=Pace(1_000_000, 10**9, 0))
    names = [f"k{number}" for number in range(100)]
    joined.put(dict.fromkeys(names, 1), "all")
    joined.forget("c", *names)
    refused = partition_of(names[0].encode())
    joined.now += 200_001
    joined.peers["c"].local_partitions.promise(refused, stamp_at(joined.now), joined.now)
    compare_once(joined)
    assert [name for name in names if joined.record("c", name) is None] == [names[0]]


@pytest.mark.parametrize("names", ["a", "abc"])
def test_store_with_corrupt_keys_is_used_only_without_other_replicas(names: str) -> None:
    joined = Joined(names, replicas=len(names))
    joined.put({"k": 1})
    core, store = joined.peers["a"], joined.stores["a"]
    [storage_key] = store.records
    core.local_partitions.corruption.report([storage_key + b"?"])
    joined.settle()
    assert (store.check_writable() is not None) == (names == "abc")
    assert (core.failure is not None) == (names == "abc")


def test_corrupt_records_beyond_the_tracked_number_are_repaired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(corruption, "_MAX_TRACKED", 10)
    joined = Joined(pace=live())
    names = [f"k{number}" for number in range(60)]
    joined.put(dict.fromkeys(names, 1), "all")
    for name in names:
        joined.corruption("c", name)
    local_partitions = joined.peers["c"].local_partitions
    joined.down = {"a", "b"}  # so no record is repaired until all are found
    joined.peers["c"].maintenance.repair()
    for _ in range(200):
        joined.settle()
    assert len(local_partitions.corruption) == 10
    joined.down = set()
    for _ in range(400):
        joined.now += 50
        joined.settle()
    assert [
        partition for partition in range(PARTITIONS) if partition in local_partitions.corruption
    ] == []
    assert [key for key in names if joined.record("c", key) != joined.record("a", key)] == []
    assert local_partitions.corruption.repaired == len(names)


def with_arriving_peer() -> Joined:
    """Return a cluster in which ``d`` takes the place of ``a``."""
    joined = Joined("abcd", pace=live())
    joined.change(replace(joined.topology.without("d"), epoch=6))
    joined.settle()
    arrives = Announcement("d", "tcp://d:1", "store-d", "z-d", 1.0)
    joined.change(transitions.swap(joined.topology, "a", arrives))
    return joined


def proposed(joined: Joined) -> list[Any]:
    """Return the topology steps that peers propose within six seconds; none is made."""
    found = []
    for _ in range(300):
        joined.settle()
        joined.now += 20
        found += [step for core in joined.peers.values() for step in core.take_proposals()]
    return found


def test_end_of_streaming_is_proposed_again_in_a_topology_restored_without_it() -> None:
    joined = with_arriving_peer()
    assert len(proposed(joined)) == 1, "it is stored, and lost at once"
    assert proposed(joined) == []
    joined.change(replace(joined.topology, epoch=joined.topology.epoch + 1000))
    [step] = proposed(joined)
    topology = step(joined.topology)
    assert topology.change.complete == ("d",)
    joined.change(topology)
    joined.change(replace(topology, epoch=topology.epoch + 1))
    assert proposed(joined) == [], "the topology has it"


def test_end_of_a_change_is_proposed_again_in_a_topology_restored_without_it() -> None:
    joined = with_arriving_peer()

    [complete] = proposed(joined)
    switched = transitions.switch(complete(joined.topology))
    assert switched is not None
    joined.change(switched)
    assert len(proposed(joined)) == 1, "it is stored, and lost at once"
    joined.change(replace(switched, epoch=switched.epoch + 1000))
    [step] = proposed(joined)
    finished = step(joined.topology)
    assert (finished.change, {member.id for member in finished.members}) == (None, set("bcd"))


def test_barrier_of_a_change_that_ended_otherwise_does_not_delay_the_next() -> None:
    joined = with_arriving_peer()
    [complete] = proposed(joined)
    switched = transitions.switch(complete(joined.topology))
    assert switched is not None
    joined.down = {"a", "c"}  # a quorum of the old replicas
    joined.change(switched)
    assert proposed(joined) == [], "the barrier waits for them"
    assert switched.change is not None
    later = replace(switched.change, number=switched.change.number + 7)
    joined.change(replace(switched, epoch=later.number, change=later))
    assert proposed(joined) == []
    assert joined.peers["b"].maintenance._ending == (later.number, later.number)
    joined.down = set()
    assert len(proposed(joined)) == 1
