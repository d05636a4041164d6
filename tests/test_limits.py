"""Limits: their exact values, and error messages that name them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash import limits
from dstash.errors import LimitError
from dstash.limits import MAX_INDEX_BYTES, MAX_KEY_BYTES, MAX_TTL_SECONDS, check_index, check_ttl


@pytest.mark.parametrize("name", ["i", "myIndex", "ä" * 32, "x" * 64, "a b", "日本", "a/b", "*"])
def test_valid_index_name_is_accepted(name: str) -> None:
    assert check_index(name) == name.encode()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "0 bytes; allowed are 1 to 64 bytes"),
        ("x" * 65, "65 bytes; allowed are 1 to 64 bytes"),
        ("ä" * 33, "66 bytes; allowed are 1 to 64 bytes"),
        (" a", "outer spaces"),
        ("a ", "outer spaces"),
        ("a\nb", "control characters"),
        ("a\x00", "control characters"),
        ("\u200b", "control characters"),
        ("\ud800", "not valid Unicode"),
        (b"bytes", "must be str, not bytes"),
        (None, "must be str, not NoneType"),
    ],
)
def test_invalid_index_name_is_refused(name: Any, text: str) -> None:
    with pytest.raises(LimitError, match=text):
        check_index(name)


@given(st.text(max_size=80) | st.binary(max_size=5))
def test_any_index_name_is_accepted_or_refused(name: Any) -> None:
    try:
        assert 1 <= len(check_index(name)) <= MAX_INDEX_BYTES
    except LimitError:
        return


@pytest.mark.parametrize(
    ("ttl", "milliseconds"),
    [
        *[(None, None), (1, 1000), (0.5, 500), (1e-9, 1), (0.0015, 2), (MAX_TTL_SECONDS - 1, None)],
        *[(timedelta(minutes=1), 60_000), (timedelta(microseconds=1), 1)],
    ],
)
def test_valid_ttl_is_accepted(ttl: Any, milliseconds: int | None) -> None:
    found = check_ttl(ttl)
    assert found == ((MAX_TTL_SECONDS - 1) * 1000 if ttl and milliseconds is None else milliseconds)


@pytest.mark.parametrize(
    "ttl", [0, -1, -0.0, math.nan, math.inf, -math.inf, MAX_TTL_SECONDS, 10**400, True, "1", b"1"]
)
def test_invalid_ttl_is_refused(ttl: Any) -> None:
    with pytest.raises(LimitError, match="ttl"):
        check_ttl(ttl)


def test_longest_storage_key_fits_into_lmdb() -> None:
    assert 2 + 1 + MAX_INDEX_BYTES + MAX_KEY_BYTES <= 511


def test_largest_value_fits_into_a_message_with_its_key() -> None:
    assert limits.MAX_VALUE_BYTES + MAX_KEY_BYTES + 4096 < limits.MAX_FRAME_BYTES


def test_partitions_are_a_power_of_two() -> None:
    assert limits.PARTITIONS.bit_count() == 1


@pytest.mark.parametrize("ttl", [timedelta(), timedelta(seconds=-1), timedelta(days=36_525)])
def test_check_ttl_with_timedelta_out_of_range_raises(ttl: timedelta) -> None:
    with pytest.raises(LimitError, match="allowed is more than 0 s and less than 100 years"):
        check_ttl(ttl)


@pytest.mark.parametrize("ttl", [True, "60", b"1", (1,)])
def test_check_ttl_with_other_type_names_it(ttl: Any) -> None:
    text = f"a number of seconds or a timedelta, not {type(ttl).__name__}"
    with pytest.raises(LimitError, match=text):
        check_ttl(ttl)
