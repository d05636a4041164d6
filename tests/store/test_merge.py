"""Merging: replicas converge for any order and any repetition of records."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.limits import PARTITIONS
from dstash.store.interface import UNSURE, Write
from dstash.store.memory import TwinStore
from dstash.store.record import HEAD_BYTES, head, keyspace, partition_of, version_of
from dstash.store.sealing import seal
from dstash.types import RecordFlag
from dstash.version import MAX_STAMP, newest_stamp, pack, stamp_range_of

SPACE = keyspace(b"index", frozenset(range(PARTITIONS)))
NOW = 1_000_000

Entry = tuple[bytes, bytes]


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Return a record of one of few keys; some have equal versions and different content."""
    stamp, writer = draw(st.integers(1, 6)), draw(st.sampled_from([b"aaaa", b"bbbb"]))
    touched = draw(st.sampled_from([0, 7, 8]))
    key = draw(st.sampled_from([b"x", b"y", b"z"]))
    # A writer id given to two clients, or two touches in one millisecond, make equal versions.
    content = draw(st.integers(0, 2))
    is_tombstone = content == 0 and not touched
    flags, expiry = (RecordFlag.TOMBSTONE, 0) if is_tombstone else (0, touched * content)
    payload = b"" if is_tombstone else b"\xa1" + bytes([content]) + writer
    return seal(SPACE, [key], head(pack(stamp, writer, touched), flags, expiry), [payload])[0]


def merged(groups: Sequence[Sequence[Entry]]) -> dict[bytes, bytes]:
    store = TwinStore()
    for group in groups:
        store.commit([Write(group, NOW)])
    return store.records


@given(st.lists(entries(), max_size=12), st.randoms())
def test_merge_is_commutative(some: list[Entry], random: object) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert merged([some]) == merged([shuffled])


@given(st.lists(entries(), max_size=6), st.lists(entries(), max_size=6))
def test_merge_is_idempotent(some: list[Entry], more: list[Entry]) -> None:
    assert merged([some, more, some, more]) == merged([some, more])


@given(*[st.lists(entries(), max_size=5)] * 3)
def test_merge_is_associative(first: list[Entry], second: list[Entry], third: list[Entry]) -> None:
    assert (
        merged([first + second, third])
        == merged([first, second + third])
        == merged([first, second, third])
    )


@given(st.lists(entries(), min_size=1, max_size=12))
def test_merge_keeps_the_highest_version_of_each_key(some: list[Entry]) -> None:
    for storage_key, record in merged([some]).items():
        assert record[8:] == max(other[8:] for key, other in some if key == storage_key)


@given(st.lists(entries(), max_size=8), entries())
def test_superseded_entries_report_the_winning_version(some: list[Entry], entry: Entry) -> None:
    store = TwinStore()
    store.commit([Write(some, NOW)])
    before = store.records.get(entry[0])
    [result] = store.commit([Write([entry], NOW)])
    if before is not None and before[8:] > entry[1][8:]:
        assert result.superseded == [(0, before[8:28])]
        assert store.records[entry[0]] == before
    else:
        assert result.superseded == []
        assert store.records[entry[0]] == entry[1]


def put(stamp: int, expiry: int = 0, flags: int = 0, writer: bytes = b"aaaa") -> Entry:
    return seal(SPACE, [b"x"], head(pack(stamp, writer), flags, expiry), [b"\x01"])[0]


def test_existed_reports_live_records() -> None:
    store = TwinStore()

    def existed(entry: Entry, now: int = NOW) -> bool:
        [result] = store.commit([Write([entry], now)])
        return bool(result.existed[0])

    assert not existed(put(1))
    assert existed(put(2, expiry=NOW + 1))
    assert not existed(put(3), now=NOW + 1)
    assert existed(put(4, flags=RecordFlag.TOMBSTONE))
    assert not existed(put(5))


@pytest.mark.parametrize(
    ("stored", "existed"),
    [
        (put(5), UNSURE),
        (put(5, expiry=NOW + 1), UNSURE),
        (put(5, expiry=NOW), 0),
        (put(5, flags=RecordFlag.TOMBSTONE), 0),
        (put(5, writer=b"bbbb"), 0),
    ],
)
def test_existed_is_unsure_below_later_live_write_of_same_client(
    stored: Entry, existed: int
) -> None:
    store = TwinStore()
    store.commit([Write([stored], NOW, 5)])
    tombstone = put(4, flags=RecordFlag.TOMBSTONE)
    write = Write([tombstone], NOW, 4, version=pack(4, b"aaaa"), report_existed=True)
    [result] = store.commit([write])
    assert (len(result.superseded), result.existed[0]) == (1, existed)


def test_existed_is_known_below_later_dropped_write_of_same_client() -> None:
    store = TwinStore()
    store.commit([Write([put(5)], NOW, 5)])
    tombstone = put(4, flags=RecordFlag.TOMBSTONE)
    write = Write([tombstone], NOW, 4, version=pack(4, b"aaaa"), report_existed=True)
    write.is_dropped = lambda storage_key, record: True
    [result] = store.commit([write])
    assert (len(result.superseded), result.existed[0]) == (1, 0)


def corrupt_forms() -> list[bytes]:
    """Return a record of version 9 with flipped bits, or truncated."""
    _, record = put(9)
    flipped = [
        record[:8] + b"\xff" * 20 + record[28:],
        record[:8] + bytes(20) + record[28:],
        record[:-1] + b"\x02",
    ]
    return [*flipped, *(record[:length] for length in range(HEAD_BYTES))]


def corrupt_store(form: bytes) -> TwinStore:
    store = TwinStore()
    store.records[put(9)[0]] = form
    return store


def test_corrupt_record_is_replaced_only_by_a_later_record() -> None:
    for form in corrupt_forms():
        store = corrupt_store(form)
        for write in (Write([put(9)], NOW, upper_bound=9), Write([put(99)], NOW)):
            [result] = store.commit([write])
            assert (result.superseded, result.corrupt) == ([], [0])
            assert store.records[put(9)[0]] == form
        [result] = store.commit([Write([put(10)], NOW, upper_bound=9)])
        assert (result.superseded, result.corrupt) == ([], [])
        assert store.records[put(9)[0]] == put(10)[1]


def test_corrupt_record_is_not_replaced_by_a_touch() -> None:
    touched = seal(SPACE, [b"x"], head(pack(8, b"aaaa", touched=12)), [b"\x01"])[0]
    for form in corrupt_forms():
        store = corrupt_store(form)
        [result] = store.commit([Write([touched], NOW, 12, upper_bound=9)])
        assert result.corrupt == [0]
        assert store.records[put(9)[0]] == form


def test_replacement_replaces_only_a_corrupt_record() -> None:
    for form in corrupt_forms():
        for replacement in (put(3)[1], None):
            store = corrupt_store(form)
            store.commit([Write([], NOW, replacements=[(put(9)[0], replacement)])])
            assert store.records.get(put(9)[0]) == replacement
            store = corrupt_store(put(2)[1])
            store.commit([Write([], NOW, replacements=[(put(9)[0], replacement)])])
            assert store.records[put(9)[0]] == put(2)[1]


@given(st.lists(st.tuples(entries(), st.booleans()), max_size=12))
def test_write_with_one_version_merges_like_single_records(
    some: list[tuple[Entry, bool]],
) -> None:
    plain, quick = TwinStore(), TwinStore()
    for entry, is_of_a_client in some:
        version = entry[1][8:28]
        newest = newest_stamp(version)
        [expected] = plain.commit([Write([entry], NOW, newest)])
        shared = version if is_of_a_client else None
        write = Write([entry], NOW, newest, version=shared, report_existed=True)
        [result] = quick.commit([write])
        assert result.superseded == expected.superseded
        assert quick.records == plain.records


@given(
    st.lists(entries(), min_size=1, max_size=6),
    st.lists(entries(), min_size=1, max_size=6),
    st.integers(0, 8),
    st.sampled_from([b"x", b"y", b"z", None]),
)
def test_oldest_bound_does_not_change_the_result(
    before: list[Entry], some: list[Entry], horizon: int, without: bytes | None
) -> None:
    horizons = [horizon] * PARTITIONS
    if without is not None:
        horizons[partition_of(without)] = 0
    oldest = stamp_range_of([record[8:28] for _, record in some]).oldest
    careful, quick = TwinStore(), TwinStore()
    for store, known in ((careful, 0), (quick, oldest)):
        store.commit([Write(before, NOW)])
        store.commit([Write(some, NOW, horizons=horizons, oldest=known)])
    assert quick.records == careful.records


def test_record_stamped_at_a_horizon_is_rejected() -> None:
    for stamp, is_taken in ((5, False), (6, True)):
        for known in (0, stamp):
            store = TwinStore()
            store.commit([Write([put(stamp)], NOW, horizons=[5] * PARTITIONS, oldest=known)])
            assert bool(store.records) is is_taken


def test_rejected_record_that_would_replace_a_higher_one_is_reported() -> None:
    storage_key, record = put(9)
    replaces = frozenset({record[8:28]})
    for stored, replacing, is_reported in (
        (put(9), replaces, True),
        (put(9), frozenset(), False),
        (put(8), replaces, False),  # it was rewritten in the meantime
        (put(4), frozenset({put(4)[1][8:28]}), False),
    ):
        store = TwinStore()
        store.commit([Write([stored], NOW, 9)])
        promises = dict.fromkeys(range(PARTITIONS), 5)
        [result] = store.commit(
            [
                Write(
                    [put(4)],
                    NOW,
                    4,
                    horizons=[0] * PARTITIONS,
                    promises=promises,
                    replaces=replacing,
                )
            ]
        )
        assert result.promised == [0] * is_reported
        horizons = [5] * PARTITIONS
        [result] = store.commit([Write([put(4)], NOW, 4, horizons=horizons, replaces=replacing)])
        assert result.past == [0] * is_reported
        assert store.records[storage_key] == stored[1]


def test_write_above_the_ceiling_replaces_records_unread() -> None:
    for form in corrupt_forms():
        store = corrupt_store(form)
        store.commit([Write([], NOW, newest=9)])
        for stamp, replaced in ((9, False), (10, True)):
            version = put(stamp)[1][8:28]
            write = Write([put(stamp)], NOW, stamp, upper_bound=9, version=version)
            [result] = store.commit([write])
            assert result.corrupt == ([] if replaced else [0])
            assert (store.records[put(9)[0]] == put(10)[1]) is replaced


@pytest.mark.parametrize("named", [True, False])
def test_future_record_loses_only_to_writes_above_the_acked_stamps(named: bool) -> None:
    for stamp, is_known, is_taken in ((5, True, False), (6, True, True), (6, False, False)):
        store = TwinStore()
        future = put(100)
        store.commit([Write([future], NOW)])
        version = version_of(future[1])
        replaces = frozenset([version]) if named else frozenset()
        acked = {version: 5} if is_known else {}
        write = Write([put(stamp)], NOW, acked=acked, replaces=replaces)
        write.latest = MAX_STAMP if named else 50
        [result] = store.commit([write])
        assert (store.records[future[0]] == put(stamp)[1]) is is_taken
        is_old = is_known and not is_taken
        bound = pack(5, b"\xff" * 4)
        assert result.superseded == ([(0, bound)] if is_old else []), "it must exceed that"
        assert result.contested == ([] if is_known else [(0, version)])
