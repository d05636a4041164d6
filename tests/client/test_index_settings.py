"""Settings of indexes: which expiry peers give to writes, and that replicas agree on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dstash.client.operations.indexes.requests import IndexSettingsOperation
from dstash.client.operations.indexes.sizes import IndexDefaults, defaults_in
from dstash.client.operations.reads import RecordOperation
from dstash.client.operations.writes import ApplyOperation, TouchOperation
from dstash.client.session import Session
from dstash.cluster.repair.antientropy import compare_all
from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.indexes.settings import MAX_TTL_MS, IndexSettings
from dstash.cluster.topology.indexes.steps import MAX_INDEXES, with_settings, with_settings_kept
from dstash.cluster.topology.joining import under_own_epoch
from dstash.cluster.topology.topology import Topology
from dstash.errors import ChangeConflict, LimitError, ProtocolError, TimedOut, UsageError
from dstash.peer.background.maintenance import Pace
from dstash.store.record import Record, build_record, open_record, partition_of
from dstash.types import NEVER, Level, RecordFlag
from dstash.version import stamp_at, stamp_milliseconds, with_touch, write_stamp
from dstash.wire.envelope import Envelope
from dstash.wire.messages import AdminReply, Put
from tests.harness.joined import TYPES, Joined

SECOND = 1000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
KEY = "k"


@pytest.fixture
def joined() -> Joined:
    """Three peers that run nothing in the background."""
    joined = Joined(pace=Pace(10**9, 10**9, 0))
    joined.now += 3000
    joined.settle()  # each reads the clocks of the others
    return joined


@pytest.fixture(scope="module")
def topology() -> Topology:
    """The topology of three members."""
    return Joined().topology


def held(joined: Joined, peer: str) -> Record:
    return open_record(joined.record(peer, KEY) or b"")


def ttl_of(record: Record) -> int | None:
    """Return milliseconds from the write to the expiry."""
    if record.expiry == NEVER:
        return None
    return record.expiry - stamp_milliseconds(write_stamp(record.version))


def stored(joined: Joined) -> Record:
    """Return the record, which must be the same on all replicas."""
    records = {joined.record(peer, KEY) for peer in "abc"}
    assert len(records) == 1
    return held(joined, "a")


def record_of(joined: Joined) -> Record:
    read = RecordOperation(
        joined.session, joined.now + 5000, "i", [KEY], Level.ALL, TYPES.decode_values
    )
    record: Record = joined.run(read)[KEY]
    return record


def apply(joined: Joined, record: Record, level: str = "all") -> Any:
    items = [(KEY, KEY.encode(), build_record(b"i", KEY.encode(), record))]
    return joined.run(ApplyOperation(joined.session, joined.now + 5000, "i", Level(level), items))


def touch(joined: Joined, ttl: int | None) -> None:
    record = record_of(joined)
    version = with_touch(record.version, joined.session.stamp())
    expiry = NEVER if ttl is None else joined.now + ttl
    apply(joined, record._replace(version=version, expiry=expiry)).raise_first()


def another_client(joined: Joined) -> Session:
    """Return the session of a client that knows the present topology."""
    other = Session(lambda: joined.now, random_bytes=lambda n: b"\7" * n)
    other.install(joined.topology.encode(), list("abc"))
    for name in "abc":
        other.learn_clock(name, joined.now, joined.now, joined.now)
    return other


def compare(joined: Joined) -> None:
    """Run anti-entropy on every peer, and again after it has changed replicas."""
    for core in [*joined.peers.values()] * 2:
        joined.now += 10 * SECOND  # the partition is at rest
        core.scheduler.spawn("test", compare_all(core.maintenance.replica))
        while core.scheduler.running("test"):
            joined.settle()
            joined.now += 1


class TestPuts:
    @pytest.mark.parametrize(
        ("settings", "sent", "given"),
        [
            ({}, None, None),
            ({"ttl": HOUR}, None, HOUR),
            ({"ttl": HOUR}, 2 * DAY, 2 * DAY),
            ({"ttl": DAY, "max_ttl": HOUR}, None, HOUR),
            ({"max_ttl": HOUR}, None, HOUR),
            ({"max_ttl": HOUR}, DAY, HOUR),
            ({"max_ttl": HOUR}, SECOND, SECOND),
            ({"ttl": MAX_TTL_MS}, None, MAX_TTL_MS),
            ({"max_ttl": HOUR}, 200 * 365 * DAY, HOUR),
        ],
    )
    def test_put_gets_the_expiry_that_settings_give(
        self, joined: Joined, settings: dict[str, int], sent: int | None, given: int | None
    ) -> None:
        if settings:
            joined.set_index(**settings)
        joined.put({KEY: 1, "more": 2}, "all", ttl=sent).raise_first()
        assert ttl_of(stored(joined)) == given
        assert joined.lookup(KEY, "more") == {KEY: 1, "more": 2}

    def test_other_indexes_and_stored_records_keep_their_expiry(self, joined: Joined) -> None:
        joined.put({KEY: 1}, "all")
        joined.set_index("other", ttl=HOUR)
        joined.set_index("i", ttl=DAY, max_ttl=DAY)
        assert ttl_of(stored(joined)) is None
        joined.set_index("i", ttl=0, max_ttl=0)
        joined.put({KEY: 2}, "all")
        assert ttl_of(stored(joined)) is None

    def test_expiry_does_not_depend_on_the_clock_of_a_peer(self, joined: Joined) -> None:
        joined.offsets = {"a": 400, "b": -400}
        joined.set_index(ttl=HOUR, max_ttl=HOUR)
        joined.put({KEY: 1}, "all")
        assert ttl_of(stored(joined)) == HOUR

    def test_value_is_gone_when_the_default_has_passed(self, joined: Joined) -> None:
        joined.set_index(ttl=HOUR)
        joined.put({KEY: 1})
        joined.now += HOUR - SECOND
        assert joined.lookup(KEY) == {KEY: 1}
        joined.now += 2 * SECOND
        assert joined.lookup(KEY) == {}

    def test_delete_leaves_a_tombstone_without_expiry(self, joined: Joined) -> None:
        joined.put({KEY: 1}, "all")
        joined.set_index(ttl=HOUR, max_ttl=HOUR)
        joined.delete(KEY, level="all")
        assert (stored(joined).is_tombstone, stored(joined).expiry) == (True, NEVER)


class TestEpochs:
    """Writes that replicas admit in different epochs, with other settings."""

    def test_write_sent_under_the_old_topology_gets_the_new_settings(self, joined: Joined) -> None:
        other = another_client(joined)
        joined.set_index(max_ttl=HOUR)
        joined.session = other
        joined.put({KEY: 1}, "all")
        assert ttl_of(stored(joined)) == HOUR

    @pytest.mark.parametrize(
        ("settings", "ttl"), [({"max_ttl": HOUR}, 10 * DAY), ({"ttl": HOUR}, None)]
    )
    def test_record_of_a_lagging_replica_loses_on_all_replicas(
        self, joined: Joined, settings: dict[str, int], ttl: int | None
    ) -> None:
        joined.unaware = {"c"}
        other = another_client(joined)
        joined.set_index(**settings)
        joined.session = other
        dies = []

        def die_when_stored(peer: str, envelope: Envelope) -> Envelope | None:
            """Let the lagging replica answer its first request, the only one that it takes."""
            if peer == "c" and isinstance(envelope.message, Put):
                dies.append(envelope.epoch)
                return envelope if len(dies) == 1 else None
            return envelope

        joined.tamper = die_when_stored
        joined.put({KEY: 1}, ttl=ttl).raise_first()
        expected = ttl if "ttl" in settings and ttl else HOUR
        assert dies[0] < joined.topology.epoch
        assert held(joined, "c").expiry != held(joined, "a").expiry or expected == ttl
        joined.install(joined.topology, "c")
        compare(joined)
        assert ttl_of(stored(joined)) == expected

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ({}, {"ttl": HOUR}),
            ({"ttl": DAY}, {"ttl": HOUR}),
            ({"max_ttl": HOUR}, {"ttl": 0, "max_ttl": DAY}),
        ],
    )
    def test_replicas_with_other_expiries_of_a_version_converge(
        self, joined: Joined, before: dict[str, int], after: dict[str, int]
    ) -> None:
        """A client of an earlier version sends a version again under another topology."""
        if before:
            joined.set_index(**before)
        joined.put({KEY: 1}, "all")
        version = stored(joined).version
        joined.set_index(**after)
        settings = joined.topology.index_settings("i")
        assert settings is not None
        changed = settings.expiry(version, NEVER)
        highest = max(stored(joined).expiry, changed)
        joined.expire("b", KEY, changed)
        joined.peers["b"].local_partitions.changed([partition_of(KEY.encode())], joined.now)
        compare(joined)
        assert stored(joined).expiry == highest
        assert joined.lookup(KEY) == {KEY: 1}

    def test_write_admitted_before_a_change_is_committed_with_the_settings_of_its_epoch(
        self, joined: Joined
    ) -> None:
        other = another_client(joined)
        core = joined.peers["c"]
        take = core.next_commit
        begun: list[bool] = []

        def next_commit(now: int) -> Any:
            if core._backlog.has_waiting and not begun:
                begun.append(True)
                joined.topology = with_settings(joined.topology, "i", {"max_ttl": HOUR}, 1)
                joined.install(joined.topology)
            return take(now)

        core.next_commit = next_commit  # type: ignore[method-assign]
        joined.session = other
        joined.put({KEY: 1}, "all")
        assert begun
        assert ttl_of(stored(joined)) is None  # all replicas had admitted it in the old epoch

    def test_request_waits_until_no_quorum_has_the_earlier_topology(self, joined: Joined) -> None:
        joined.unaware = {"b", "c"}
        text = "the change of settings is requested, but too few peers"
        with pytest.raises(TimedOut, match=text):
            joined.set_index(ttl=HOUR, timeout=300)

    def test_request_fails_if_a_restored_topology_lacks_it(self, joined: Joined) -> None:
        restored = replace(joined.topology, epoch=joined.topology.epoch + 1000)
        joined.unaware = set("abc")

        def restore(envelope: Envelope) -> Envelope:
            if isinstance(envelope.message, AdminReply):
                joined.install(restored)
            return envelope

        joined.tamper_answer = restore
        text = (
            "the change of settings is not in the topology of most peers any more: the membership"
        )
        with pytest.raises(TimedOut, match=text):
            joined.set_index(ttl=HOUR, timeout=300)


class TestWholeRecords:
    def test_touch_that_a_lagging_replica_stored_loses_on_all_replicas(
        self, joined: Joined
    ) -> None:
        joined.put({KEY: 1}, "all", ttl=DAY)
        record = record_of(joined)
        joined.unaware = {"c"}
        other = another_client(joined)
        joined.now += 2000
        joined.settle()
        joined.set_index(max_ttl=HOUR)
        joined.session = other
        sent = []

        def lose_second(peer: str, envelope: Envelope) -> Envelope | None:
            sent.append(peer)
            return envelope if peer != "c" or sent.count("c") == 1 else None

        joined.tamper = lose_second
        version = with_touch(record.version, other.stamp())
        touched = record._replace(version=version, expiry=joined.now + 10 * DAY)
        items = [(KEY, KEY.encode(), build_record(b"i", KEY.encode(), touched))]
        touch = TouchOperation(other, joined.now + 5000, "i", Level.QUORUM, items)
        joined.run(touch).raise_first()
        assert held(joined, "c").expiry == touched.expiry
        joined.tamper = lambda peer, envelope: envelope
        joined.install(joined.topology, "c")
        compare(joined)
        assert 0 < stored(joined).expiry <= joined.now + HOUR

    @pytest.mark.parametrize("ttl", [None, 3 * DAY])
    def test_touch_is_cut(self, joined: Joined, ttl: int | None) -> None:
        joined.set_index(ttl=SECOND, max_ttl=DAY)
        joined.put({KEY: 1}, "all", ttl=HOUR)
        joined.now += 500
        touch(joined, ttl)
        assert stored(joined).expiry == joined.now + DAY
        touch(joined, HOUR)
        assert stored(joined).expiry == joined.now + HOUR

    def test_touch_of_a_client_whose_clock_is_late_is_cut(self, joined: Joined) -> None:
        joined.put({KEY: 1}, "all")
        record = record_of(joined)
        moment = joined.now
        joined.now += 2000
        joined.settle()
        joined.set_index(max_ttl=HOUR)
        version = with_touch(record.version, stamp_at(moment))
        touched = record._replace(version=version, expiry=moment + DAY)
        items = [(KEY, KEY.encode(), build_record(b"i", KEY.encode(), touched))]
        level, deadline = Level.ALL, joined.now + 5000
        joined.run(TouchOperation(joined.session, deadline, "i", level, items)).raise_first()
        assert stored(joined).expiry == moment + HOUR

    def test_touch_without_ttl_removes_the_expiry_where_none_is_required(
        self, joined: Joined
    ) -> None:
        joined.set_index(ttl=HOUR)
        joined.put({KEY: 1}, "all")
        touch(joined, None)
        assert stored(joined).expiry == NEVER

    def test_read_repair_copies_earlier_records_as_they_are(self, joined: Joined) -> None:
        joined.put({KEY: 1}, "all", ttl=10 * DAY)
        touch(joined, 20 * DAY)
        before = joined.record("a", KEY)
        joined.now += SECOND
        joined.set_index(max_ttl=HOUR)
        joined.forget("b", KEY)
        assert joined.lookup(KEY, level="all") == {KEY: 1}
        assert [joined.record(peer, KEY) for peer in "abc"] == [before] * 3

    def test_hint_and_comparison_copy_records_as_they_are(self, joined: Joined) -> None:
        joined.put({KEY: 1}, "all")
        joined.set_index(max_ttl=HOUR)
        joined.forget("b", KEY)
        compare(joined)
        assert ttl_of(stored(joined)) is None

    @pytest.mark.parametrize("flags", [0, RecordFlag.RESTORED])
    def test_record_of_a_restore_is_cut_if_it_counts_as_written_now(
        self, joined: Joined, flags: int
    ) -> None:
        joined.put({KEY: 1}, "all")
        saved = record_of(joined)
        joined.now += SECOND
        joined.set_index(max_ttl=HOUR)
        apply(joined, saved)
        assert stored(joined).expiry == NEVER
        restored = with_touch(saved.version, joined.session.stamp())
        apply(joined, saved._replace(version=restored, flags=flags))
        assert stored(joined).expiry == joined.now + HOUR
        apply(joined, saved._replace(version=joined.session.new_version(), flags=flags))
        assert ttl_of(stored(joined)) == HOUR

    def test_tombstone_and_corrupt_record_stay_as_they_are(self, joined: Joined) -> None:
        joined.put({KEY: 1}, "all")
        joined.set_index(max_ttl=HOUR)
        version = joined.session.new_version()
        corrupt = build_record(b"other", KEY.encode(), record_of(joined)._replace(version=version))
        items = [(KEY, KEY.encode(), corrupt)]
        operation = ApplyOperation(joined.session, joined.now + 500, "i", Level.ALL, items)
        assert joined.run(operation).stored == 0
        assert joined.lookup(KEY) == {KEY: 1}
        apply(joined, Record(version, RecordFlag.TOMBSTONE, NEVER, b""))
        assert stored(joined) == Record(version, RecordFlag.TOMBSTONE, NEVER, b"")


class TestTopology:
    def test_settings_survive_encoding_and_are_sorted(self, topology: Topology) -> None:
        changed = with_settings(topology, "z", {"ttl": 5}, 7)
        changed = with_settings(changed, "a", {"max_ttl": 6}, 8)
        changed = with_settings(changed, "z", {"max_ttl": 9}, 10)
        assert Topology.decode(changed.encode()) == changed
        assert changed.indexes == (
            IndexSettings("a", 0, 6, 8, changed.epoch - 1),
            IndexSettings("z", 5, 9, 10, changed.epoch),
        )
        assert changed.indexes_epoch == changed.epoch == topology.epoch + 3

    def test_setting_removed_leaves_the_other_and_no_empty_entry(self, topology: Topology) -> None:
        changed = with_settings(topology, "i", {"ttl": 5, "max_ttl": 6}, 7)
        changed = with_settings(changed, "i", {"max_ttl": 0}, 8)
        assert changed.indexes == (IndexSettings("i", 5, number=changed.epoch),)
        assert with_settings(changed, "i", {"ttl": 0}, 9).indexes == ()

    def test_same_settings_change_nothing(self, topology: Topology) -> None:
        changed = with_settings(topology, "i", {"max_ttl": 6}, 7)
        assert with_settings(changed, "i", {"max_ttl": 6, "ttl": 0}, 8) is changed

    def test_member_of_an_earlier_version_is_named(self, joined: Joined) -> None:
        old = replace(joined.topology.members[1], features="drop")
        joined.topology = joined.topology.with_member(old)
        with pytest.raises(ChangeConflict, match=r"^b runs an earlier version, which does not"):
            with_settings(joined.topology, "i", {"ttl": 1}, 1)
        joined.session.install(replace(joined.topology, epoch=6).encode(), list("abc"))
        with pytest.raises(ChangeConflict, match=r"^b runs an earlier version"):
            joined.set_index(ttl=1)

    def test_settings_are_not_read_from_a_topology_with_an_earlier_version(
        self, topology: Topology
    ) -> None:
        changed = with_settings(topology, "i", {"ttl": 1500}, 1)
        assert defaults_in(changed) == [IndexDefaults("i", 1.5, None)]
        old = replace(changed.members[1], features="drop")
        with pytest.raises(ChangeConflict, match=r"^b runs an earlier version"):
            defaults_in(replace(changed.with_member(old), indexes=(), indexes_epoch=0))

    def test_candidate_of_an_earlier_version_is_refused(self, topology: Topology) -> None:
        old = Announcement("d", "tcp://d:1", "store-d", "d", 1.0, features="drop")
        changed = with_settings(topology, "i", {"ttl": 1}, 1)
        with pytest.raises(ChangeConflict, match="'d' runs an earlier version, which does not"):
            transitions.add(changed, [old])
        assert transitions.add(changed, [old._replace(features=FEATURES)]).member("d")
        assert transitions.add(topology, [old]).member("d")

    @pytest.mark.parametrize(
        ("index", "settings", "error", "text"),
        [
            ("", {"ttl": 1}, LimitError, "index name has 0 bytes"),
            ("@locks", {"ttl": 1}, UsageError, "'@locks' is reserved for registers"),
            ("i", {}, UsageError, "no setting is given; there are ttl, max_ttl"),
            ("i", {"tll": 1}, UsageError, "no setting 'tll' of an index; there are ttl, max_ttl"),
            ("i", {"ttl": -1}, LimitError, "ttl is -1 ms; allowed are 1 ms to 36,500 days"),
            ("i", {"max_ttl": MAX_TTL_MS + 1}, LimitError, "max_ttl is 3153600000001 ms; allowed"),
        ],
    )
    def test_arguments_are_checked_by_client_and_peer(
        self,
        joined: Joined,
        index: str,
        settings: dict[str, int],
        error: type[Exception],
        text: str,
    ) -> None:
        with pytest.raises(error, match=text):
            with_settings(joined.topology, index, settings, 1)
        with pytest.raises(error, match=text):
            IndexSettingsOperation(joined.session, joined.now, index, settings)

    def test_number_of_indexes_is_bounded(self, topology: Topology) -> None:
        for number in range(MAX_INDEXES):
            topology = with_settings(topology, f"i{number}", {"ttl": 1}, 1)
        with pytest.raises(ChangeConflict, match="128 indexes have settings; allowed are 128"):
            with_settings(topology, "more", {"ttl": 1}, 1)
        changed = with_settings(topology, "i3", {"ttl": 2}, 1)
        assert len(with_settings(changed, "i4", {"ttl": 0}, 1).indexes) == MAX_INDEXES - 1

    def test_unknown_fields_of_a_later_version_are_ignored(self, topology: Topology) -> None:
        changed = with_settings(topology, "i", {"ttl": 5}, 7)
        data = changed.encode().replace(b'"ttl": 5', b'"ttl": 5, "later": [1]')
        assert Topology.decode(data) == changed

    @pytest.mark.parametrize("entry", ['{"name": ""}', '{"ttl": 1}', '{"name": "i", "ttl": -1}'])
    def test_malformed_settings_are_refused(self, topology: Topology, entry: str) -> None:
        data = topology.encode().replace(b'"indexes": []', f'"indexes": [{entry}]'.encode())
        with pytest.raises(ProtocolError):
            Topology.decode(data)

    def test_lower_floors_lowers_the_stamp_of_max_ttl(self, topology: Topology) -> None:
        topology = with_settings(topology, "i", {"max_ttl": 5}, 100)
        lowered = transitions.lower_floors(topology, dict.fromkeys("abc"), 50)
        assert lowered.indexes == (IndexSettings("i", 0, 5, 50, topology.epoch),)

    def test_request_has_a_stamp_below_later_touches(self, joined: Joined) -> None:
        joined.set_index(max_ttl=DAY)
        [settings] = joined.topology.indexes
        assert settings.since == stamp_at(joined.now - 500)  # max_clock_skew_ms

    def test_settings_that_an_earlier_version_removed_come_back(self, topology: Topology) -> None:
        last = with_settings(topology, "i", {"ttl": 5}, 1)
        erased = replace(last, indexes=(), indexes_epoch=0).next()
        kept = with_settings_kept(erased, last)
        assert kept == replace(last, epoch=erased.epoch + 1)
        assert with_settings_kept(kept, last) is None
        removed = with_settings(last, "i", {"ttl": 0}, 1)
        assert with_settings_kept(removed, last) is None
        assert with_settings_kept(replace(erased, cluster_id="other"), last) is None
        assert with_settings_kept(erased, None) is None

    def test_settings_of_another_history_stay(self, topology: Topology) -> None:
        """An older topology was put back, and the cluster has changed since."""
        last = with_settings(replace(topology, epoch=topology.epoch + 5), "i", {"ttl": 5}, 1)
        stored = with_settings(topology, "i", {"ttl": 6}, 1)
        assert stored.indexes_epoch < last.indexes_epoch
        assert with_settings_kept(replace(stored, epoch=last.epoch + 1), last) is None
        assert with_settings_kept(under_own_epoch(replace(stored, epoch=last.epoch)), last) is None
