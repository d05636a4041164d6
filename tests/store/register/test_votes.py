"""The votes of a store: each rule of ``docs/atomic.md`` that a voter keeps, on both stores."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dstash.errors import StoreError
from dstash.limits import PARTITIONS
from dstash.store.interface import Store, Write
from dstash.store.lmdb import LmdbStore
from dstash.store.memory import TwinStore
from dstash.store.record import Record, build_record, identity_of, version_of
from dstash.store.register.ballot import Promise, is_sound_promise, pack_promise
from dstash.store.register.header import Entry
from dstash.store.register.voter import Bounds, Verdict
from dstash.types import Durability
from dstash.version import MAX_STAMP, ZERO, pack, stamp_at
from tests.store.register.parts import (
    INDEX,
    KEY,
    PARTITION,
    STORAGE_KEY,
    A,
    B,
    accept,
    commit,
    merge,
    prepare,
    register,
)

VOTED, PREEMPTED, TOO_OLD, TOO_FAR, CORRUPT = list(Verdict)[:5]


@pytest.fixture(params=["twin", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "twin":
        yield TwinStore()
        return
    store = LmdbStore(tmp_path, Durability.NONE)
    yield store
    store.close()


def stored(store: Store) -> bytes | None:
    with store.snapshot() as snapshot:
        return snapshot.get(STORAGE_KEY)


class TestPrepare:
    """V1: when a round is promised."""

    def test_round_is_promised_once(self, store: Store) -> None:
        assert prepare(store, 10).verdict is VOTED
        assert prepare(store, 10).verdict is PREEMPTED, "even for the same writer"
        assert prepare(store, 10, B).verdict is PREEMPTED
        assert prepare(store, 9).verdict is PREEMPTED
        assert prepare(store, 11, B).verdict is VOTED

    def test_round_up_to_that_of_the_record_is_refused(self, store: Store) -> None:
        assert accept(store, register(10, 3)).verdict is VOTED
        vote = prepare(store, 10, B)
        assert (vote.verdict, vote.past) == (PREEMPTED, 10)
        assert prepare(store, 11, B).verdict is VOTED

    def test_answer_has_record_unless_proposer_knows_it(self, store: Store) -> None:
        record = register(10, 3)
        accept(store, record)
        vote = prepare(store, 11)
        assert (vote.version, vote.record) == (version_of(record), record)
        vote = prepare(store, 12, known=version_of(record))
        assert (vote.version, vote.record) == (version_of(record), None)

    def test_round_zero_promises_nothing(self, store: Store) -> None:
        before = store.high_water
        vote = prepare(store, 0)
        assert (vote.verdict, vote.version, vote.stamp) == (VOTED, ZERO, 0)
        assert store.high_water == before
        assert accept(store, register(1)).verdict is VOTED

    @pytest.mark.parametrize("limit", ["floor", "horizon"])
    def test_round_up_to_floor_or_horizon_is_too_old(self, store: Store, limit: str) -> None:
        vote = prepare(store, 10, **{limit: stamp_at(10)})
        assert (vote.verdict, vote.past) == (TOO_OLD, 10)
        assert prepare(store, 11, **{limit: stamp_at(10)}).verdict is VOTED

    def test_round_up_to_floor_of_registers_is_too_old(self, store: Store) -> None:
        """T7: it is the highest horizon that a replica of the partition had."""
        floors = [0] * PARTITIONS
        floors[PARTITION] = stamp_at(10)
        accept(store, register(5, value=b""))
        vote = prepare(store, 10, floors=floors)
        assert (vote.verdict, vote.past, vote.horizon) == (TOO_OLD, 10, 0)
        assert prepare(store, 10, floors=floors, floors_are_horizons=True).horizon == stamp_at(10)
        assert accept(store, register(10), floors=floors).verdict is TOO_OLD
        assert prepare(store, 11, floors=floors).verdict is VOTED
        floors[PARTITION] = 0
        assert accept(store, register(11), floors=floors).verdict is VOTED

    def test_round_of_a_dropped_index_is_too_old(self, store: Store) -> None:
        def dropped_at(storage_key: bytes) -> int:
            return stamp_at(10) if storage_key == STORAGE_KEY else 0

        assert prepare(store, 10, dropped_at=dropped_at).verdict is TOO_OLD
        assert prepare(store, 11, dropped_at=dropped_at).verdict is VOTED

    def test_tombstone_that_the_horizon_covers_is_reported_as_absent(self, store: Store) -> None:
        accept(store, register(10, value=b""))
        vote = prepare(store, 11, horizon=stamp_at(10))
        assert (vote.version, vote.record, vote.horizon) == (ZERO, None, stamp_at(10))

    def test_tombstone_with_later_request_is_reported(self, store: Store) -> None:
        record = register(10, value=b"", entries=(Entry(bytes(8), stamp_at(12), 1),))
        accept(store, record)
        assert prepare(store, 20, horizon=stamp_at(11)).record == record
        assert prepare(store, 21, horizon=stamp_at(12)).record is None


class TestAccept:
    """V2: when a version is taken."""

    def test_lower_round_than_promised_is_refused(self, store: Store) -> None:
        prepare(store, 10)
        vote = accept(store, register(9))
        assert (vote.verdict, vote.past) == (PREEMPTED, 10)
        assert stored(store) is None

    def test_promised_round_is_taken_from_its_writer_only(self, store: Store) -> None:
        prepare(store, 10)
        assert accept(store, register(10, 0, B)).verdict is PREEMPTED
        assert accept(store, register(10)).verdict is VOTED

    def test_later_round_is_taken_without_promise(self, store: Store) -> None:
        prepare(store, 10)
        assert accept(store, register(11, 0, B)).verdict is VOTED

    def test_accept_is_a_promise(self, store: Store) -> None:
        accept(store, register(10, 1))
        assert accept(store, register(10, 0)).verdict is PREEMPTED
        assert accept(store, register(9, 7, B)).verdict is PREEMPTED
        assert accept(store, register(10, 2)).verdict is VOTED

    def test_same_record_is_acked_again(self, store: Store) -> None:
        record = register(10, 1)
        assert accept(store, record).stamp == stamp_at(10, 1)
        again = accept(store, record)
        assert (again.verdict, again.stamp) == (VOTED, 0)

    def test_same_version_with_other_content_is_refused(self, store: Store) -> None:
        record = register(10, 1)
        accept(store, record)
        assert accept(store, register(10, 1, value=b"\x02")).verdict is PREEMPTED
        assert accept(store, register(10, 1, value=b"\x00")).verdict is PREEMPTED
        assert stored(store) == record

    def test_other_writer_of_the_same_round_is_refused(self, store: Store) -> None:
        accept(store, register(10, 1, A))
        assert accept(store, register(10, 2, B)).verdict is PREEMPTED

    def test_same_record_is_acked_again_after_a_promise(self, store: Store) -> None:
        record = register(10)
        accept(store, record)
        assert prepare(store, 11, B).record == record
        assert accept(store, record).verdict is VOTED
        assert accept(store, register(10, 1)).verdict is PREEMPTED

    def test_promise_outlasts_a_lower_round_and_ends_with_its_own(self, store: Store) -> None:
        prepare(store, 10)
        prepare(store, 20, B)
        assert accept(store, register(10)).verdict is PREEMPTED
        assert accept(store, register(20, 0, B)).verdict is VOTED
        assert accept(store, register(21, 0, A)).verdict is VOTED

    @pytest.mark.parametrize("limit", ["floor", "horizon"])
    def test_version_up_to_floor_or_horizon_is_too_old(self, store: Store, limit: str) -> None:
        assert accept(store, register(10), **{limit: stamp_at(10)}).verdict is TOO_OLD
        assert accept(store, register(10, 1), **{limit: stamp_at(10)}).verdict is VOTED

    def test_register_replaces_a_plain_record_with_a_higher_stamp(self, store: Store) -> None:
        plain = build_record(INDEX, KEY, Record(pack(stamp_at(99), A), 0, 0, b"\x01"))
        commit(store, Write([(STORAGE_KEY, plain)], 0))
        assert prepare(store, 10).version == ZERO
        assert accept(store, register(10)).verdict is VOTED
        assert commit(store, Write([(STORAGE_KEY, plain)], 0)).superseded
        assert stored(store) == register(10)


class TestFuture:
    """V5: rounds ahead of the cluster clock."""

    def test_round_above_the_clock_is_refused(self, store: Store) -> None:
        assert prepare(store, 101, latest=stamp_at(100, 9)).verdict is TOO_FAR
        assert accept(store, register(101), latest=stamp_at(100, 9)).verdict is TOO_FAR
        assert prepare(store, 100, latest=stamp_at(100, 9)).verdict is VOTED

    def test_needed_round_is_promised_ahead_of_the_clock_only(self, store: Store) -> None:
        """P10: the promise has all other bounds, and an accept in another round has this one."""
        limits: dict[str, Any] = {"latest": stamp_at(100), "is_needed": True}
        assert prepare(store, 500, floor=stamp_at(500), **limits).verdict is TOO_OLD
        assert prepare(store, 500, horizon=stamp_at(500), **limits).verdict is TOO_OLD
        assert prepare(store, 500, **limits).verdict is VOTED
        assert prepare(store, 500, **limits).verdict is PREEMPTED
        assert accept(store, register(502), latest=stamp_at(100)).verdict is TOO_FAR
        assert accept(store, register(500), latest=stamp_at(100)).verdict is VOTED

    def test_round_continues_above_a_record_of_the_future(self, store: Store) -> None:
        accept(store, register(500))
        assert prepare(store, 502, latest=stamp_at(100)).verdict is TOO_FAR
        assert prepare(store, 501, latest=stamp_at(100)).verdict is VOTED
        assert accept(store, register(501), latest=stamp_at(100)).verdict is VOTED

    @pytest.mark.parametrize("limit", ["horizon", "floors"])
    def test_round_continues_above_a_horizon_of_the_future(self, store: Store, limit: str) -> None:
        """No replica takes part in a round up to it."""
        ahead = stamp_at(500, 3)
        limits: dict[str, Any] = {limit: ahead if limit == "horizon" else [ahead] * PARTITIONS}
        assert prepare(store, 500, latest=stamp_at(100), **limits).verdict is TOO_OLD
        assert prepare(store, 502, latest=stamp_at(100), **limits).verdict is TOO_FAR
        assert prepare(store, 501, latest=stamp_at(100), **limits).verdict is VOTED
        assert prepare(store, 601, latest=stamp_at(100), floor=stamp_at(600)).verdict is TOO_FAR

    def test_refused_round_does_not_raise_the_high_water(self, store: Store) -> None:
        """Otherwise a peer with a wrong clock would move the time that others accept."""
        prepare(store, 100)
        before = store.high_water
        for round_ in range(102, 2000, 100):
            prepare(store, round_, latest=stamp_at(100))
        assert store.high_water == before

    def test_record_of_the_future_does_not_lose_to_every_record(self, store: Store) -> None:
        accept(store, register(500))
        merged = merge(store, register(400), latest=stamp_at(100))
        assert merged.superseded == [(0, version_of(register(500)))]
        merge(store, register(400), replaces=frozenset({version_of(register(500))}))
        assert stored(store) == register(500)


class TestMerge:
    """V3: registers from other replicas."""

    def test_promise_forbids_a_merge_also_for_an_absent_key(self, store: Store) -> None:
        prepare(store, 10)
        assert merge(store, register(9)).preempted == [0]
        assert stored(store) is None
        assert merge(store, register(10)).preempted == []
        assert stored(store) == register(10)

    def test_merge_removes_a_promise_that_it_reaches(self, store: Store) -> None:
        prepare(store, 10)
        merge(store, register(12, 0, B))
        assert accept(store, register(12, 1, B)).verdict is VOTED

    def test_known_records_are_not_refused(self, store: Store) -> None:
        accept(store, register(10))
        prepare(store, 20, B)
        merged = merge(store, register(10), register(9))
        assert merged.preempted == []
        assert merged.superseded == [(1, version_of(register(10)))]

    def test_merge_obeys_the_horizon_and_the_agreement_on_it(self, store: Store) -> None:
        horizons = [stamp_at(10)] * PARTITIONS
        assert merge(store, register(10), horizons=horizons).past == [0]
        assert merge(store, register(10, 1), horizons=horizons).past == []
        promises = {PARTITION: stamp_at(20)}
        assert merge(store, register(20), horizons=horizons, promises=promises).promised == [0]

    def test_merge_ignores_the_floor(self, store: Store) -> None:
        """A floor only concerns new writes: replicas must become equal above the horizon."""
        prepare(store, 0, floor=stamp_at(50))
        assert merge(store, register(10)).past == []
        assert stored(store) == register(10)

    def test_merge_ignores_the_floor_of_registers(self, store: Store) -> None:
        floors = [stamp_at(50)] * PARTITIONS
        assert merge(store, register(10), bounds=Bounds(floors=floors)).past == []
        assert stored(store) == register(10)

    def test_plain_neighbours_are_merged(self, store: Store) -> None:
        prepare(store, 10)
        plain = build_record(b"i", KEY, Record(pack(5, A), 0, 0, b"\x01"))
        plain_key = STORAGE_KEY[:2] + b"\1ikey"
        entries = [(STORAGE_KEY, register(9)), (plain_key, plain)]
        merged = commit(store, Write(entries, 0))
        assert merged.preempted == [0]
        with store.snapshot() as snapshot:
            assert snapshot.get(plain_key) == plain

    def test_dropped_tombstone_leaves_the_promise(self, store: Store) -> None:
        accept(store, register(10, value=b""))
        prepare(store, 20)
        commit(store, Write([], 0, drops=[(STORAGE_KEY, identity_of(register(10, value=b"")))]))
        assert stored(store) is None
        assert accept(store, register(19, 0, B)).verdict is PREEMPTED


class TestEarlierVoters:
    """T2 and T3: the promises of voters from which a store was streamed."""

    def test_earlier_promise_refuses_votes_but_no_merge(self, store: Store) -> None:
        commit(store, Write([], 0, earlier=[(STORAGE_KEY, 20)]))
        assert prepare(store, 20).verdict is PREEMPTED
        assert accept(store, register(20)).verdict is PREEMPTED
        merge(store, register(10))
        assert stored(store) == register(10)
        assert prepare(store, 0).verdict is Verdict.UNSETTLED

    def test_record_stays_unsettled_until_a_later_round_is_accepted(self, store: Store) -> None:
        accept(store, register(10))
        commit(store, Write([], 0, earlier=[(STORAGE_KEY, 20)]))
        assert prepare(store, 30).verdict is Verdict.UNSETTLED
        assert prepare(store, 0).verdict is Verdict.UNSETTLED, "its own promise changes nothing"
        assert merge(store, register(25)).preempted == [0], "its own promise forbids merges"
        assert accept(store, register(30)).verdict is VOTED
        assert prepare(store, 0).verdict is VOTED
        assert store.promises_between(b"", b"\xff", 9) == []

    def test_own_promises_of_a_streamed_partition_become_those_of_an_earlier_voter(
        self, store: Store
    ) -> None:
        accept(store, register(10))
        prepare(store, 30)
        commit(store, Write([], 0, resting=[PARTITION]))
        assert prepare(store, 0).verdict is Verdict.UNSETTLED
        merge(store, register(20, writer=B))
        assert stored(store) == register(20, writer=B)
        assert prepare(store, 30).verdict is PREEMPTED

    def test_corrupt_promise_of_a_streamed_partition_forbids_votes_but_no_merge(self) -> None:
        store = TwinStore()
        store.promises[STORAGE_KEY] = pack_promise(STORAGE_KEY, Promise(10, A))[:-1] + b"?"
        commit(store, Write([], 0, resting=[PARTITION], bounds=Bounds(high_water=stamp_at(50))))
        assert is_sound_promise(STORAGE_KEY, store.promises[STORAGE_KEY])
        assert merge(store, register(20)).preempted == []
        assert accept(store, register(50)).verdict is PREEMPTED
        assert prepare(store, 51).verdict is Verdict.UNSETTLED

    def test_horizon_settles(self, store: Store) -> None:
        commit(store, Write([], 0, earlier=[(STORAGE_KEY, 20)]))
        assert prepare(store, 0, horizon=stamp_at(21)).verdict is VOTED

    def test_promises_are_read_by_range(self, store: Store) -> None:
        prepare(store, 20)
        begin, end = PARTITION.to_bytes(2, "big"), (PARTITION + 1).to_bytes(2, "big")
        assert [key for key, _ in store.promises_between(begin, end, 5)] == [STORAGE_KEY]
        assert store.promises_between(begin, end, 0) == []
        assert store.promises_between(STORAGE_KEY + b"\0", end, 5) == []


class TestCorruption:
    """V4: corrupt records and promises, on the twin, whose content can be changed."""

    @pytest.fixture
    def store(self) -> TwinStore:
        store = TwinStore()
        accept(store, register(10))
        record = bytearray(store.records[STORAGE_KEY])
        record[-1] ^= 1
        store.records[STORAGE_KEY] = bytes(record)
        return store

    def test_voter_with_corrupt_record_promises_blindly_above_its_bound(
        self, store: TwinStore
    ) -> None:
        limits = {"high_water": stamp_at(50)}
        assert prepare(store, 0, **limits).verdict is CORRUPT
        assert prepare(store, 50, **limits).verdict is CORRUPT
        vote = prepare(store, 60, **limits)
        assert (vote.verdict, vote.version, vote.record) == (Verdict.BLIND, bytes(20), None)
        assert accept(store, register(59), **limits).verdict is PREEMPTED

    def test_corrupt_record_is_replaced_above_its_bound_only(self, store: TwinStore) -> None:
        limits = {"high_water": stamp_at(50)}
        assert accept(store, register(50), **limits).verdict is CORRUPT
        assert merge(store, register(50), bounds=None).corrupt == [0]
        assert accept(store, register(50, 1), **limits).verdict is VOTED
        assert prepare(store, 51, **limits).verdict is VOTED

    def test_bound_stays_where_corruption_was_found(self, store: TwinStore) -> None:
        """Otherwise it would rise with every write to the store, and never be passed."""
        corruption: dict[bytes, int] = {}
        prepare(store, 0, high_water=stamp_at(50), corruption=corruption)
        assert corruption == {STORAGE_KEY: stamp_at(50)}
        limits = {"high_water": stamp_at(90), "corruption": corruption}
        assert accept(store, register(51), **limits).verdict is VOTED

    def test_bound_ends_when_the_record_is_sound(self, store: TwinStore) -> None:
        """A later corruption must be judged by what was voted since."""
        corruption: dict[bytes, int] = {}
        accept(store, register(51), high_water=stamp_at(50), corruption=corruption)
        prepare(store, 60, high_water=stamp_at(60), corruption=corruption)
        assert corruption == {}

    def test_corrupt_promise_forbids_rounds_up_to_its_bound(self) -> None:
        store = TwinStore()
        store.promises[STORAGE_KEY] = pack_promise(STORAGE_KEY, Promise(10, A))[:-1] + b"?"
        limits = {"high_water": stamp_at(50), "corruption": {}}
        assert prepare(store, 50, **limits).verdict is PREEMPTED
        assert accept(store, register(50), **limits).verdict is PREEMPTED
        assert merge(store, register(50)).preempted == [0]
        assert prepare(store, 51, **limits).verdict is Verdict.UNSETTLED, "it may be an earlier one"
        assert store.promises[STORAGE_KEY] == pack_promise(STORAGE_KEY, Promise(51, A, 50))


class TestHighWater:
    """V6: a store that lost a commit with votes is recognised."""

    def test_every_vote_raises_high_water(self, store: Store) -> None:
        commit(store, Write([], 0, newest=stamp_at(100)))
        seen = [store.high_water]
        for round_ in (10, 20):
            prepare(store, round_)
            seen.append(store.high_water)
            accept(store, register(round_))
            seen.append(store.high_water)
        assert all(later > earlier for earlier, later in pairwise(seen))

    def test_high_water_is_not_below_the_round(self, store: Store) -> None:
        prepare(store, 10)
        assert store.high_water >= stamp_at(10)
        accept(store, register(11, 5))
        assert store.high_water >= stamp_at(11, 5)

    def test_refused_votes_and_acks_leave_high_water(self, store: Store) -> None:
        accept(store, register(10))
        before = store.high_water
        accept(store, register(10))
        accept(store, register(9))
        prepare(store, 10, B)
        assert store.high_water == before

    def test_high_water_is_on_disk(self, tmp_path: Path) -> None:
        store = LmdbStore(tmp_path, Durability.NONE)
        commit(store, Write([], 0, newest=stamp_at(100)))
        prepare(store, 10)
        before = store.high_water
        store.close()
        store = LmdbStore(tmp_path, Durability.NONE)
        assert store.high_water == before > stamp_at(100)
        store.close()


class TestFormat:
    """A store that has a promise or a register is not opened by versions that would ignore it."""

    def test_votes_change_the_format(self, tmp_path: Path) -> None:
        for number, write in enumerate(
            (
                lambda store: prepare(store, 10),
                lambda store: accept(store, register(10)),
                lambda store: merge(store, register(10)),
            )
        ):
            folder = tmp_path / str(number)
            store = LmdbStore(folder, Durability.NONE)
            prepare(store, 0)
            assert format_of(store) == b"1"
            write(store)
            assert format_of(store) == b"2"
            store.close()
            store = LmdbStore(folder, Durability.NONE)
            assert prepare(store, 10, B).verdict is PREEMPTED, "it was kept"
            store.close()

    def test_unknown_format_is_refused(self, tmp_path: Path) -> None:
        store = LmdbStore(tmp_path, Durability.NONE)
        store._write(lambda transaction: transaction.put(b"format", b"3", db=store._meta))
        store.close()
        with pytest.raises(StoreError, match="store format 3; this version reads 1 and 2"):
            LmdbStore(tmp_path, Durability.NONE)

    def test_plain_records_keep_the_format(self, tmp_path: Path) -> None:
        store = LmdbStore(tmp_path, Durability.NONE)
        plain = build_record(b"i", KEY, Record(pack(5, A), 0, 0, b"\x01"))
        commit(store, Write([(STORAGE_KEY[:2] + b"\1ikey", plain)], 0))
        assert format_of(store) == b"1"
        store.close()


def format_of(store: LmdbStore) -> bytes:
    with store._env.begin(store._meta) as transaction:
        return bytes(transaction.get(b"format"))


def test_future_is_unbounded_without_limits(store: Store) -> None:
    assert prepare(store, MAX_STAMP >> 16).verdict is VOTED
