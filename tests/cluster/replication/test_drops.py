"""Drops: what reads, writes, repairs and removal do with dropped records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dstash.client.operations.indexes.requests import DropOperation
from dstash.client.operations.reads import RecordOperation
from dstash.client.operations.writes import ApplyOperation
from dstash.client.session import Session
from dstash.cluster.repair.antientropy import compare_with
from dstash.cluster.repair.dropped_records import remove_dropped
from dstash.cluster.replication.partitions import BUSY_MS
from dstash.cluster.replication.tasks import Merge
from dstash.cluster.replication.tombstone_gc import agree_all
from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.drop_steps import MAX_DROPS, with_drop, with_swept, without_settled
from dstash.cluster.topology.drops import Drop, Floors
from dstash.cluster.topology.indexes.acks import DropAcks, serves_quorum
from dstash.cluster.topology.joining import confirm, restore, under_own_epoch
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.errors import BelowFloor, ChangeConflict, LimitError, TimedOut, UsageError
from dstash.peer.background.maintenance import Pace
from dstash.store.record import build_record, open_record, partition_of
from dstash.types import Level, Outcome
from dstash.version import newest_stamp, pack, stamp_at, stamp_milliseconds, with_touch
from dstash.wire import codec
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import Count, Put, ScanKeys, TopologyReply, TopologyRequest
from dstash.wire.replication import Push
from dstash.wire.shapes import Frame
from tests.cluster.virtual import NOW, PARTITION, Cluster
from tests.harness.joined import TYPES, Joined

KEYS = {f"k{number:03}": number for number in range(60)}
QUIET = Pace(10**9, 10**9, 0)


@pytest.fixture
def joined() -> Joined:
    """Three peers that hold the same, and run nothing in the background."""
    joined = Joined(pace=QUIET)
    joined.put(KEYS, "all")
    joined.now += 3000
    joined.settle()  # each reads the clocks of the others
    return joined


def on_disk(joined: Joined, peer: str) -> set[str]:
    return {key for key in KEYS if joined.record(peer, key) is not None}


def record_of(joined: Joined, key: str) -> Any:
    found = joined.run(
        RecordOperation(
            joined.session, joined.now + 5000, "i", [key], Level.QUORUM, TYPES.decode_array
        )
    )
    return found.get(key)


def apply(joined: Joined, key: str, record: Any) -> Any:
    content = build_record(b"i", key.encode(), record)
    item = (key, key.encode(), content)
    return joined.run(ApplyOperation(joined.session, joined.now + 1000, "i", Level.QUORUM, [item]))


class TestReads:
    def test_no_read_finds_a_dropped_record_before_it_is_removed(self, joined: Joined) -> None:
        joined.drop()
        assert [on_disk(joined, peer) for peer in "abc"] == [set(KEYS)] * 3
        assert joined.lookup(*KEYS) == {}
        assert joined.exists(*KEYS) == {}
        assert record_of(joined, "k001") is None
        for level in ("one", "quorum", "all"):
            assert joined.walk(Count, level) == [0] * len(joined.walk(Count, level))
            assert joined.walk(ScanKeys, level) == []
            assert joined.scan(level) == {}

    def test_other_indexes_and_later_writes_are_found(self, joined: Joined) -> None:
        joined.drop("other")
        assert joined.lookup("k001") == {"k001": 1}
        joined.drop()
        joined.put({"k001": "new", "k999": "more"})
        assert joined.lookup(*KEYS, "k999") == {"k001": "new", "k999": "more"}
        assert joined.scan("quorum") == {"k001": "new", "k999": "more"}

    def test_only_keys_with_the_prefix_are_dropped(self, joined: Joined) -> None:
        joined.drop(prefix=b"k01")
        kept = {key: number for key, number in KEYS.items() if not key.startswith("k01")}
        assert joined.lookup(*KEYS) == kept
        assert joined.scan("quorum") == kept

    def test_replica_with_older_topology_does_not_answer_alone(self, joined: Joined) -> None:
        joined.unaware = {"c"}
        joined.drop()
        assert joined.lookup(*KEYS) == {}

    def test_drop_waits_until_no_quorum_has_an_older_topology(self, joined: Joined) -> None:
        joined.unaware = {"b", "c"}
        with pytest.raises(TimedOut, match="the drop is requested, but too few peers"):
            joined.drop(timeout=300)

    def test_drop_is_sent_to_another_peer_than_a_silent_one(self, joined: Joined) -> None:
        joined.put({"old": 1})
        joined.silent = {"a"}
        joined.drop()
        assert joined.lookup("old") == {}

    def test_drop_waits_until_peers_have_it_on_disk(self, joined: Joined) -> None:
        def forget(envelope: Envelope) -> Envelope:
            message = envelope.message
            if isinstance(message, TopologyReply) and joined.now < full_until:
                assert message.is_kept
                return envelope._replace(message=replace(message, is_kept=False))
            return envelope

        joined.tamper_answer = forget
        full_until = joined.now + 500
        with pytest.raises(TimedOut, match="the drop is requested, but too few peers"):
            joined.drop(timeout=300)
        joined.drop()
        assert joined.now >= full_until

    def test_drop_that_the_membership_lost_before_peers_knew_it_is_not_acked(
        self, joined: Joined
    ) -> None:
        before = joined.topology
        restored = confirm(restore(before, None, "a"), "b")
        joined.unaware = set("abc")

        def lose(peer: str, envelope: Envelope) -> Envelope:
            if isinstance(envelope.message, TopologyRequest):
                joined.install(restored)
            return envelope

        joined.tamper = lose
        with pytest.raises(TimedOut, match="not in the topology of most peers any more"):
            joined.drop()
        assert joined.session.epoch == restored.epoch > before.epoch
        assert joined.lookup(*KEYS) == KEYS

    def test_earlier_drop_does_not_answer_a_later_request(self, joined: Joined) -> None:
        late = with_drop(joined.topology, "i", b"", stamp_at(joined.now + 3_600_000))
        request = DropOperation(joined.session, joined.now + 1000, "i", b"k01")
        assert request.is_shown(late, late.epoch - 1)
        assert not request.is_shown(late.next(), late.epoch)

    def test_drop_of_another_history_with_the_same_number_is_applied(self, joined: Joined) -> None:
        before = joined.topology
        joined.install(with_drop(before, "other", b"", stamp_at(joined.now)), "a")
        joined.peers["a"].local_partitions.drops.unswept.clear()
        joined.change(under_own_epoch(with_drop(before, "i", b"", stamp_at(joined.now))))
        assert joined.lookup(*KEYS, level="all") == {}
        assert joined.walk(ScanKeys, "one") == []
        pass_time(joined)
        assert on_disk(joined, "a") == set()

    def test_corrupt_record_of_dropped_index_does_not_count_as_absent(self, joined: Joined) -> None:
        joined.drop()
        joined.corruption("a", "k001")
        assert joined.peers["a"].local_partitions.drops.present(
            [(joined.place("k001"), joined.record("a", "k001") or b"")]
        )
        assert joined.lookup("k001") == {}  # the other two agree


class TestWrites:
    def test_write_of_a_client_with_the_old_topology_is_stamped_past_the_drop(
        self, joined: Joined
    ) -> None:
        other = Session(lambda: joined.now, random_bytes=lambda n: b"\7" * n)
        other.install(joined.topology.encode(), list("abc"))
        for name in "abc":
            other.learn_clock(name, joined.now, joined.now, joined.now)
        joined.drop()
        [drop] = joined.topology.drops
        joined.session, mine = other, joined.session
        assert joined.put({"k001": "late"}).ok
        joined.session = mine
        assert joined.lookup("k001") == {"k001": "late"}
        stored = open_record(joined.record("a", "k001") or b"")
        assert newest_stamp(stored.version) > drop.stamp

    def test_stamp_of_a_drop_is_above_every_stamp_that_peers_accept(self, joined: Joined) -> None:
        joined.drop()
        [drop] = joined.topology.drops
        assert stamp_milliseconds(drop.stamp) >= joined.now + 500

    def test_commit_refuses_a_write_that_was_accepted_before_the_drop(self, joined: Joined) -> None:
        core = joined.peers["a"]
        version = pack(stamp_at(joined.now), b"abcd")
        put = Put(
            "i",
            version,
            0,
            Frame(codec.pack_blobs([b"k001"])),
            Frame(codec.pack_blobs(TYPES.encode_many(["x"]))),
        )
        core.receive(b"x", encode(Envelope(1, joined.topology.epoch, 0, put)), joined.now)
        changed = with_drop(joined.topology, "i", b"", stamp_at(joined.now + 1))
        core.install(View(changed, frozenset("abc")), joined.now)
        commit = core.next_commit(joined.now)
        assert commit is not None
        commit.run(joined.stores["a"])
        [reply] = commit.replies
        assert reply[1].error().details["floor"] == stamp_at(joined.now + 1)  # type: ignore[attr-defined]
        assert open_record(joined.record("a", "k001") or b"").version != version

    def test_touch_of_a_record_that_was_read_before_the_drop_fails(self, joined: Joined) -> None:
        record = record_of(joined, "k001")
        joined.drop()
        touched = record._replace(version=with_touch(record.version, joined.session.stamp()))
        result = apply(joined, "k001", touched)
        assert result.outcomes == {"k001": Outcome.FAILED}
        with pytest.raises(BelowFloor, match="dropped with its index"):
            result.raise_first()
        assert joined.lookup("k001") == {}

    def test_delete_reports_that_a_dropped_key_did_not_exist(self, joined: Joined) -> None:
        joined.drop()
        assert joined.delete("k001", "k002").deleted == 0
        joined.put({"k003": 1})
        assert joined.delete("k003", "k004").deleted == 1

    def test_records_that_a_replica_pushes_are_left_out(self, joined: Joined) -> None:
        old = {key: joined.record("a", key) for key in KEYS}
        joined.drop()
        core = joined.peers["a"]
        joined.forget("a", *KEYS)
        push = Push(
            Frame(codec.pack_blobs([joined.place(key) for key in KEYS])),
            Frame(codec.pack_blobs(list(old.values()))),
        )
        core.receive(b"b:1", encode(Envelope(1, joined.topology.epoch, 0, push)), joined.now)
        commit = core.next_commit(joined.now)
        assert commit is not None
        commit.run(joined.stores["a"])
        assert on_disk(joined, "a") == set()

    def test_corrupt_record_is_not_replaced_by_a_dropped_record(self, joined: Joined) -> None:
        place, record = joined.place("k001"), joined.record("a", "k001")
        joined.drop()
        core = joined.peers["a"]
        core.group_commit.add(Merge(replacements=[(place, record)]), lambda error: None)
        commit = core.next_commit(joined.now)
        assert commit is not None
        joined.corruption("a", "k001")
        commit.run(joined.stores["a"])
        assert joined.record("a", "k001") is None


class TestRemoval:
    def test_peers_remove_what_is_dropped_and_keep_the_rest(self, joined: Joined) -> None:
        joined.drop(prefix=b"k01")
        joined.put({"k012": "new"}, "all")
        pass_time(joined)
        kept = {key for key in KEYS if not key.startswith("k01")} | {"k012"}
        assert [on_disk(joined, peer) for peer in "abc"] == [kept] * 3
        for core in joined.peers.values():
            assert core.maintenance.describe()["drop_left"] == 0
            assert core.maintenance.describe()["drop_removed"] == 9

    def test_peer_that_was_restarted_in_the_middle_removes_the_rest(self, joined: Joined) -> None:
        joined.drop()
        task = remove_dropped(joined.peers["a"].maintenance.replica)
        for _ in range(40):  # a part of its steps, without their effect
            next(task)
        joined.restart("a")
        assert joined.lookup(*KEYS) == {}
        pass_time(joined)
        assert on_disk(joined, "a") == set()

    def test_replica_that_was_away_brings_nothing_back(self, joined: Joined) -> None:
        joined.unaware = {"c"}
        joined.drop()
        joined.put({"k001": "new"})
        pass_time(joined)
        assert on_disk(joined, "a") == {"k001"}
        assert len(on_disk(joined, "c")) == len(KEYS)
        joined.unaware = set()
        joined.restart("c")
        for name in "abc":
            joined.peers[name].maintenance._pace = Pace(1000, 10**9, 0)
            joined.peers[name].maintenance._next_compare = 0
        pass_time(joined)
        assert [on_disk(joined, peer) for peer in "abc"] == [{"k001"}] * 3
        assert joined.lookup(*KEYS) == {"k001": "new"}

    def test_corrupt_record_stays_until_it_is_repaired(self, joined: Joined) -> None:
        joined.mute = {"b", "c"}  # they do not answer what they hold
        joined.drop()
        joined.corruption("a", "k001")
        pass_time(joined)
        assert on_disk(joined, "a") == {"k001"}
        assert joined.peers["a"].maintenance.describe()["drop_left"] == 1
        joined.mute = set()
        pass_time(joined)
        assert on_disk(joined, "a") == set()
        assert joined.peers["a"].maintenance.describe()["drop_left"] == 0

    def test_second_drop_begins_the_walk_again(self, joined: Joined) -> None:
        joined.drop(prefix=b"k01")
        core = joined.peers["a"]
        core.local_partitions.drops.unswept = {7}  # it has walked the rest
        joined.drop(prefix=b"k02")
        assert len(core.local_partitions.drops.unswept) == 4096
        pass_time(joined)
        assert on_disk(joined, "a") == {key for key in KEYS if key[:3] not in ("k01", "k02")}


class TestRepair:
    def test_replicas_compare_equal_whether_or_not_they_have_removed(self) -> None:
        cluster = Cluster(joins=False)
        for peer in "abc":
            cluster.write(peer, stamp_at(NOW - 5000))
        changed = replace(cluster.view.topology, drops=(dropped(NOW),))
        cluster.view = View(changed, cluster.view.alive)
        for peer in "abc":
            cluster.peers[peer].local_partitions.install_drops(changed.drops)
        cluster.run("a", remove_dropped(cluster.peers["a"]))
        assert [cluster.records(peer) for peer in "abc"] == [0, 1, 1]
        for peer in "abc":
            for other in sorted(set("abc") - {peer}):
                cluster.now += BUSY_MS
                cluster.run(peer, compare_with(cluster.peers[peer], other))
        assert [cluster.peers[peer].differed for peer in "abc"] == [0, 0, 0]
        assert cluster.asked[Push] == 0

    def test_digest_from_before_the_drop_is_not_used(self) -> None:
        cluster = Cluster(joins=False)
        cluster.write("a", stamp_at(NOW - 5000))
        partitions = cluster.peers["a"].local_partitions
        before = cluster.run("a", partitions.digests.of(PARTITION))
        partitions.install_drops((dropped(NOW),))
        empty = cluster.run("a", cluster.peers["b"].local_partitions.digests.of(PARTITION))
        assert before != empty
        assert cluster.run("a", partitions.digests.of(PARTITION)) == empty

    def test_horizons_pass_a_drop_without_tombstones_and_not_before_its_stamp(self) -> None:
        cluster = Cluster(joins=False)
        drops = (dropped(NOW - 40_000),)
        for peer in "abc":
            cluster.write(peer, stamp_at(NOW - 50_000))
            cluster.peers[peer].local_partitions.install_drops(drops)
        first = cluster.view.readers[PARTITION][0]
        cluster.run(first, agree_all(cluster.peers[first], 45_000))
        assert cluster.peers[first].local_partitions.horizons[PARTITION] == 0
        cluster.run(first, agree_all(cluster.peers[first], 30_000))
        for peer in "abc":
            horizon = cluster.peers[peer].local_partitions.horizons[PARTITION]
            assert horizon == stamp_at(NOW - 30_000)


def lowered_after(topology: Topology) -> Topology:
    """Return a topology after the removal of what was dropped, and after floors were lowered."""
    swept = with_swept(topology, topology.drops)
    assert swept is not None
    return transitions.lower_floors(swept, dict.fromkeys("abc"), 50)


def dropped(milliseconds: int, index: str = "index") -> Drop:
    return Drop(index, "", stamp_at(milliseconds), 2)


class TestSettling:
    def test_drop_ends_after_removal_and_horizons_of_all_members(self) -> None:
        joined = Joined("a", replicas=1, pace=Pace(10**9, 3000, 500))
        joined.put({"k001": 1})
        old = joined.record("a", "k001")
        joined.drop()
        assert len(joined.topology.drops) == 1
        for _ in range(60):
            joined.now += 500
            joined.settle()
            apply_proposals(joined)
            if not joined.topology.drops:
                break
        assert joined.topology.drops == ()
        joined.session.install(joined.topology.encode(), ["a"])
        result = apply(joined, "k001", open_record(old or b""))
        assert result.outcomes == {"k001": Outcome.FAILED}, "the horizon keeps it out now"
        assert joined.lookup("k001") == {}

    def test_drop_does_not_end_while_a_member_has_not_removed_its_records(
        self, joined: Joined
    ) -> None:
        for core in joined.peers.values():
            core.maintenance._pace = Pace(10**9, 1000, 500)
            core.maintenance._next_gc = 0
        joined.unaware = {"c"}
        joined.drop()
        for _ in range(40):
            joined.now += 500
            joined.settle()
            apply_proposals(joined)
        assert [drop.swept for drop in joined.topology.drops] == [False]

    def test_drop_does_not_end_while_a_member_knows_another_of_its_number(
        self, joined: Joined
    ) -> None:
        """An older topology was put back, and one member still uses the newer one."""
        for core in joined.peers.values():
            core.maintenance._pace = Pace(10**9, 1000, 500)
            core.maintenance._next_gc = 0
        other = with_drop(joined.topology, "other", b"", 1)
        joined.unaware = {"c"}
        joined.install(other, "c")
        joined.drop()
        assert [drop.number for drop in joined.topology.drops] == [other.drops[0].number]
        for _ in range(40):
            joined.now += 500
            joined.settle()
            apply_proposals(joined)
        assert on_disk(joined, "a") == set()
        assert not joined.peers["c"].local_partitions.drops.unswept
        assert [drop.swept for drop in joined.topology.drops] == [False]


def apply_proposals(joined: Joined) -> None:
    for core in joined.peers.values():
        for step in core.take_proposals():
            changed = step(joined.topology)
            if changed is not None:
                joined.change(changed)


def pass_time(joined: Joined) -> None:
    for _ in range(20):
        joined.now += 1000
        joined.settle()


class TestTopology:
    def test_drop_survives_encoding(self, joined: Joined) -> None:
        changed = with_drop(joined.topology, "i", b"\xff\x00", 7)
        assert Topology.decode(changed.encode()) == changed
        assert changed.drops == (Drop("i", "ff00", 7, changed.epoch),)

    def test_drop_takes_the_place_of_those_within_it(self, joined: Joined) -> None:
        topology = with_drop(joined.topology, "i", b"ab", 9)
        topology = with_drop(topology, "i", b"x", 5)
        topology = with_drop(topology, "other", b"", 6)
        topology = with_drop(topology, "i", b"a", 7)
        assert [(drop.index, drop.prefix, drop.stamp) for drop in topology.drops] == [
            ("i", b"x".hex(), 5),
            ("other", "", 6),
            ("i", b"a".hex(), 9),  # a lower stamp would bring records with ab back
        ]

    def test_member_of_an_earlier_version_is_named(self, joined: Joined) -> None:
        old = replace(joined.topology.members[1], features="")
        joined.topology = joined.topology.with_member(old)
        with pytest.raises(ChangeConflict, match=r"^b runs an earlier version"):
            with_drop(joined.topology, "i", b"", 1)
        joined.session.install(replace(joined.topology, epoch=6).encode(), list("abc"))
        with pytest.raises(ChangeConflict, match=r"^b runs an earlier version"):
            joined.drop()

    def test_candidate_of_an_earlier_version_is_refused_while_drops_are_left(
        self, joined: Joined
    ) -> None:
        old = Announcement("d", "tcp://d:1", "store-d", "d", 1.0)
        dropping = with_drop(joined.topology, "i", b"", 1)
        with pytest.raises(ChangeConflict, match="'d' runs an earlier version"):
            transitions.add(dropping, [old])
        assert transitions.add(dropping, [old._replace(features=FEATURES)]).member("d")
        assert transitions.add(joined.topology, [old]).member("d")

    def test_arguments_are_checked(self, joined: Joined) -> None:
        with pytest.raises(LimitError, match="index name has 0 bytes"):
            with_drop(joined.topology, "", b"", 1)
        with pytest.raises(UsageError, match="prefix has 401 bytes; allowed are up to 400"):
            with_drop(joined.topology, "i", b"x" * 401, 1)
        with pytest.raises(ChangeConflict, match="has not formed"):
            with_drop(replace(joined.topology, formed=False), "i", b"", 1)

    def test_ack_needs_both_of_two_replicas(self) -> None:
        members = tuple(Member(peer, "", f"s-{peer}", peer, features=FEATURES) for peer in "ab")
        before = Topology("c", "id", 5, 2, formed=True, members=members)
        requested = with_drop(before, "i", b"k", 100)
        acks = DropAcks(requested, requested.drops[0])
        acks.take("a", requested, is_kept=True)
        assert not acks.is_acked(View(requested)), "b served reads alone while a had lost its data"
        acks.take("b", requested, is_kept=True)
        assert acks.is_acked(View(requested))

    def test_ack_needs_a_majority_that_knows_the_drop_and_no_quorum_without_it(self) -> None:
        members = tuple(
            Member(peer, "", f"s-{peer}", zone, features=FEATURES)
            for peer, zone in zip("abcde", "xyzzz", strict=True)
        )
        before = Topology("c", "id", 5, 3, formed=True, members=members)
        requested = with_drop(before, "i", b"k", 100)
        acks = DropAcks(requested, requested.drops[0])
        for peer in "ab":
            acks.take(peer, requested, is_kept=True)
        assert not serves_quorum(View(requested), acks.passed)
        assert not acks.is_acked(View(requested)), "c, d and e may restore the topology without it"
        acks.take("c", before, is_kept=True)
        acks.take("d", replace(requested, cluster_id="another"), is_kept=True)
        assert not acks.is_acked(View(requested))
        acks.take("c", with_drop(requested, "i", b"", 101), is_kept=True)
        assert acks.is_acked(View(requested))

    def test_peer_confirms_a_drop_only_when_it_is_on_its_disk(self, joined: Joined) -> None:
        requested, view = with_drop(joined.topology, "i", b"", 100), View(joined.topology)
        acks = DropAcks(requested, requested.drops[0])
        for peer in "abc":
            acks.take(peer, requested, is_kept=False)
        assert not acks.is_acked(view), "after a restart they serve without it"
        assert not acks.is_lost(view)
        for peer in "ab":
            acks.take(peer, requested, is_kept=True)
        assert acks.is_acked(view)

    def test_peer_knows_a_drop_only_if_its_topology_has_the_entry(self, joined: Joined) -> None:
        before, view = joined.topology, View(joined.topology)
        requested = with_drop(before, "i", b"k", 100)
        [drop] = requested.drops
        lost = restore(before, None, "a")
        # In another history, a drop of the same number may be an earlier one.
        earlier = with_drop(before, "i", b"k", 50)
        assert earlier.drops[0].number == drop.number
        others = [
            with_swept(earlier, earlier.drops),
            lowered_after(requested),
            with_drop(lost, "i", b"k", 99),
            with_drop(lost, "i", b"k0", 101),
            with_drop(lost, "j", b"", 101),
            replace(requested, drops=(replace(drop, stamp=99),)),
        ]
        for topology in filter(None, (lost, *others)):
            acks = DropAcks(requested, drop)
            for peer, is_lost in ("a", False), ("b", True):
                acks.take(peer, topology, is_kept=True)
                assert (acks.passed, acks.is_lost(view)) == (set(), is_lost)
        acks = DropAcks(requested, drop)
        for peer in "abc":
            acks.take(peer, before, is_kept=True)
        assert not acks.is_lost(view), "they have not read the membership yet"
        for later in (requested, with_drop(lost, "i", b"", 100)):
            acks = DropAcks(requested, drop)
            acks.take("a", later, is_kept=True)
            assert acks.passed == {"a"}

    def test_number_of_drops_is_bounded(self, joined: Joined) -> None:
        topology = joined.topology
        for number in range(MAX_DROPS):
            topology = with_drop(topology, f"i{number}", b"", 1)
        with pytest.raises(ChangeConflict, match="64 drops are not settled yet"):
            with_drop(topology, "more", b"", 1)
        assert len(with_drop(topology, "i3", b"", 2).drops) == MAX_DROPS

    def test_settled_needs_the_members_that_confirmed_it(self, joined: Joined) -> None:
        topology = with_drop(joined.topology, "i", b"", 1)
        [drop] = topology.drops
        members = frozenset("abc")
        settled = without_settled(topology, [drop], members)
        assert settled is not None
        assert settled.drops == ()
        assert without_settled(topology, [drop], frozenset("ab")) is None
        assert without_settled(topology, [replace(drop, number=drop.number + 1)], members) is None
        lost = topology.with_member(replace(topology.members[0], synced=False))
        assert without_settled(lost, [drop], members) is None
        moving = transitions.remove(topology, ["a"])
        assert without_settled(moving, [drop], members) is None

    def test_drops_of_another_history_do_not_end_with_those_of_the_same_number(
        self, joined: Joined
    ) -> None:
        core = joined.peers["a"]
        core.maintenance._pace = Pace(10**9, 1000, 500)
        other = with_drop(joined.topology, "other", b"", stamp_at(joined.now - 60_000))
        mine = with_drop(joined.topology, "i", b"", stamp_at(joined.now))
        joined.change(other)
        proposals: list[Any] = []
        for _ in range(20):
            joined.now += 1000
            joined.settle()
            proposals += core.take_proposals()
        steps = [step for step in proposals if step(other) is not None]
        assert steps, "all members have removed the records"
        assert [step(mine) for step in proposals] == [None] * len(proposals)

    def test_lower_floors_waits_for_removal(self, joined: Joined) -> None:
        topology = with_drop(joined.topology, "i", b"", 100)
        alive = dict.fromkeys("abc")
        with pytest.raises(ChangeConflict, match="index 'i' is still being dropped"):
            transitions.lower_floors(topology, alive, 50)
        swept = with_swept(topology, topology.drops)
        assert swept is not None
        assert [drop.stamp for drop in transitions.lower_floors(swept, alive, 50).drops] == [50]

    def test_floors_take_the_latest_of_all_prefixes_of_a_key(self) -> None:
        floors = Floors([Drop("i", "", 3, 1), Drop("i", b"ab".hex(), 9, 2), Drop("j", "", 5, 3)])
        place = partition_of(b"abc").to_bytes(2, "big") + b"\x01i"
        assert (floors.of_key(place + b"abc"), floors.of_key(place + b"a")) == (9, 3)
        assert (floors.of_index("i"), floors.of_index("j"), floors.of_index("k")) == (9, 5, 0)
        assert floors.newest == 9
