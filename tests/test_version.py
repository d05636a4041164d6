"""Versions: a total order of time, writers and touches, and a clock that never goes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dstash.version import (
    VERSION_BYTES,
    ZERO,
    Clock,
    newest_stamp,
    pack,
    stamp_at,
    stamp_milliseconds,
    stamp_range_of,
    unpack,
    with_touch,
)

stamps = st.integers(0, 2**64 - 1)
writers = st.binary(min_size=4, max_size=4)
parts = st.tuples(stamps, writers, stamps)


def test_version_layout_is_stable() -> None:
    assert pack(0x0102, b"wxyz", 0x0304).hex() == "00000000000001027778797a0000000000000304"
    assert bytes(VERSION_BYTES) == ZERO == pack(0, bytes(4))


@given(parts)
def test_version_pack_and_unpack_round_trip(fields: tuple[int, bytes, int]) -> None:
    assert unpack(pack(*fields)) == fields
    assert len(pack(*fields)) == VERSION_BYTES


@given(parts, parts)
def test_version_bytes_sort_like_their_parts(
    first: tuple[int, bytes, int], second: tuple[int, bytes, int]
) -> None:
    assert (pack(*first) < pack(*second)) == (first < second)


@given(parts, stamps)
def test_touch_changes_only_the_touch_part(fields: tuple[int, bytes, int], touched: int) -> None:
    assert unpack(with_touch(pack(*fields), touched)) == (*fields[:2], touched)


@given(parts, stamps, st.integers(1, 100))
def test_later_put_is_above_any_touch(
    fields: tuple[int, bytes, int], touched: int, later: int
) -> None:
    stamp = min(fields[0], 2**64 - 101)
    assert pack(stamp + later, bytes(4)) > with_touch(pack(stamp, *fields[1:]), touched)


@given(parts)
def test_newest_stamp_is_that_of_write_or_touch(fields: tuple[int, bytes, int]) -> None:
    assert newest_stamp(pack(*fields)) == max(fields[0], fields[2])


@given(st.lists(parts, min_size=1))
def test_stamp_range_contains_stamps_of_all_versions(
    fields: list[tuple[int, bytes, int]],
) -> None:
    versions = [pack(*each) for each in fields]
    oldest, newest = stamp_range_of(versions)
    assert oldest == min(stamp for stamp, _, _ in fields)
    assert newest == max(map(newest_stamp, versions))


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**16 - 1))
def test_stamps_hold_milliseconds_and_a_counter(milliseconds: int, counter: int) -> None:
    assert stamp_milliseconds(stamp_at(milliseconds, counter)) == milliseconds


@given(st.lists(st.integers(0, 2**40) | st.none(), min_size=1), st.lists(stamps, max_size=5))
def test_clock_never_goes_back(times: list[int | None], seen: list[int]) -> None:
    now = 0
    clock = Clock(lambda: now)
    last = -1
    for time in times:
        if time is None and seen:
            clock.observe(min(seen.pop(), 2**63))
        elif time is not None:
            now = time
        stamp = clock.tick()
        assert stamp > last
        assert stamp >= stamp_at(now)
        assert clock.last == stamp
        last = stamp


def test_clock_continues_from_its_last_stamp() -> None:
    assert Clock(lambda: 5, floor=stamp_at(9)).tick() == stamp_at(9) + 1


def test_clock_moves_past_observed_stamps() -> None:
    clock = Clock(lambda: 5)
    clock.observe(stamp_at(7))
    assert clock.tick() == stamp_at(7, 1)
    clock.observe(stamp_at(6))
    assert clock.tick() == stamp_at(7, 2)
