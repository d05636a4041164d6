"""The header of a register: its bytes, its limits, and when a tombstone may be dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.errors import ProtocolError
from dstash.store.digest import is_reapable_at
from dstash.store.record import CHECKSUM_END, HEAD_BYTES, Record, build_record
from dstash.store.register.header import (
    MAX_ANSWER_BYTES,
    MAX_ENTRIES,
    MAX_HEADER_BYTES,
    Applied,
    Entry,
    Header,
    check_register,
    is_collectable,
    pack_header,
    split,
    value_of,
)
from dstash.types import RecordFlag
from dstash.version import pack, stamp_at
from tests.store.register.parts import INDEX, KEY, A, register

numbers = st.integers(0, 2**64 - 1)
entries = st.builds(
    Entry,
    st.binary(min_size=8, max_size=8),
    numbers,
    numbers,
    st.sampled_from(Applied),
    st.binary(max_size=32),
)
headers = st.builds(Header, numbers, numbers, numbers, st.lists(entries, max_size=5).map(tuple))


@given(headers, st.binary(max_size=20))
def test_header_is_read_again(header: Header, value: bytes) -> None:
    payload = pack_header(header) + value
    assert split(payload) == (header, value)
    assert value_of(payload) == value


def test_header_has_these_bytes() -> None:
    header = Header(1, 2, 3, (Entry(b"caller01", 4, 5, Applied.CONFLICT, b"answer"),))
    packed = pack_header(header).hex(" ", -4)
    assert packed == (
        "0000003e 00000000 00000001 00000000 00000002 00000000 00000003 "
        "00016361 6c6c6572 30310000 00000000 00040000 00000000 00050106 616e7377 6572"
    )


@given(headers, st.data())
def test_truncated_header_is_refused(header: Header, data: st.DataObject) -> None:
    packed = pack_header(header)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(ProtocolError):
        split(packed[:cut])


def test_header_with_wrong_size_is_refused() -> None:
    packed = bytearray(pack_header(Header(1)))
    packed[3] += 1
    with pytest.raises(ProtocolError, match="has 30 bytes, but states 31"):
        split(bytes(packed) + b"\x01\x01")


def test_too_many_entries_are_refused() -> None:
    entry = Entry(bytes(8), 1, 1)
    split(pack_header(Header(1, entries=(entry,) * MAX_ENTRIES)))
    with pytest.raises(ProtocolError, match="1025 entries; allowed are 1024"):
        split(pack_header(Header(1, entries=(entry,) * (MAX_ENTRIES + 1))))


def test_answer_over_its_limit_is_refused() -> None:
    with pytest.raises(ProtocolError, match="an answer of 33 bytes"):
        split(pack_header(Header(1, entries=(Entry(bytes(8), 1, 1, 0, bytes(33)),))))


@pytest.mark.parametrize(
    ("touched", "flags", "value", "text"),
    [
        (5, RecordFlag.REGISTER, b"\x01", "a version with a touch"),
        (0, RecordFlag.REGISTER | RecordFlag.RESTORED, b"\x01", "of a restored record"),
        (0, RecordFlag.REGISTER | RecordFlag.TOMBSTONE, b"\x01", "a tombstone has a value"),
    ],
)
def test_record_that_contradicts_itself_is_refused(
    touched: int, flags: int, value: bytes, text: str
) -> None:
    version, payload = pack(stamp_at(10), A, touched), pack_header(Header(1)) + value
    with pytest.raises(ProtocolError, match=text):
        check_register(build_record(INDEX, KEY, Record(version, flags, 0, payload)))


@pytest.mark.parametrize(
    ("number", "forgotten", "horizon", "expected"),
    [
        (0, 0, stamp_at(10), True),
        (0, 0, stamp_at(10) - 1, False),
        (stamp_at(12), 0, stamp_at(11), False),
        (stamp_at(12), 0, stamp_at(12), True),
        (0, stamp_at(12), stamp_at(11), False),
        (0, stamp_at(12), stamp_at(12), True),
    ],
)
def test_tombstone_is_dropped_when_horizon_covers_its_requests(
    number: int, forgotten: int, horizon: int, expected: bool
) -> None:
    entries = (Entry(bytes(8), number, 1),) if number else ()
    record = register(10, value=b"", entries=entries, forgotten=forgotten)
    assert is_collectable(record, horizon) is expected
    assert is_reapable_at(record, horizon) is expected


def test_tombstone_with_a_fencing_token_is_not_dropped() -> None:
    assert not is_reapable_at(register(10, value=b"", fence=5), stamp_at(1000))
    assert is_reapable_at(register(10, value=b""), stamp_at(1000))


def test_expired_register_is_not_dropped() -> None:
    record = register(10, expiry=20)
    assert not is_reapable_at(record, stamp_at(1000))
    plain = build_record(b"i", KEY, Record(record[CHECKSUM_END:28], 0, 20, b"\x01"))
    assert is_reapable_at(plain, stamp_at(1000))
    assert record[HEAD_BYTES:].endswith(b"\x01")


def test_largest_header_has_its_stated_size() -> None:
    entry = Entry(bytes(8), 1, 1, Applied.APPLIED, bytes(MAX_ANSWER_BYTES))
    assert len(pack_header(Header(1, entries=(entry,) * MAX_ENTRIES))) == MAX_HEADER_BYTES
