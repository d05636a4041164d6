"""Values: round trips of every type, and refusals of other types."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import sys
import uuid
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.errors import CorruptRecord, DStashError, LimitError, UnsupportedType, UsageError
from dstash.limits import MAX_VALUE_BYTES
from dstash.wire import codec
from dstash.wire.values import MAX_EXTENSION_NESTING, MAX_NESTING, TypeRegistry, Undecodable
from tests.harness.memory import at_most

TYPES = TypeRegistry()

_zones = st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(0, 7))])
_hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=_zones)
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
values = st.recursive(
    _hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_hashable, inner, max_size=4)
        | st.sets(_hashable, max_size=4)
    ),
    max_leaves=12,
)


def there_and_back(value: Any) -> Any:
    return TYPES.decode(TYPES.encode(value))


@given(values)
def test_value_round_trip_keeps_type(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@given(st.lists(values, max_size=20))
def test_payloads_joined_by_a_peer_are_read_as_one_array(many: list[Any]) -> None:
    joined = codec.join_payloads(TYPES.encode_many(many))
    assert TYPES.decode_array(joined) == many


@pytest.mark.parametrize("value", [bytearray(b"abc"), memoryview(b"abc")], ids=["array", "view"])
def test_bytes_like_values_are_read_as_bytes(value: Any) -> None:
    assert there_and_back(value) == b"abc"


def test_nan_round_trip() -> None:
    assert math.isnan(there_and_back(math.nan))
    assert there_and_back(Decimal("NaN")).is_nan()
    assert there_and_back(Decimal("-0")).is_signed()


BERLIN = ZoneInfo("Europe/Berlin")
#: This time occurs twice on the day when clocks are set back.
TWICE = dt.datetime(2024, 10, 27, 2, 30, 0, 5)
CLOCK_VALUES = [
    TWICE.replace(tzinfo=BERLIN),
    TWICE.replace(tzinfo=BERLIN, fold=1),
    TWICE.replace(fold=1),
    TWICE.replace(tzinfo=dt.UTC, fold=1),
    dt.datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN, fold=1),  # skipped when clocks are set forward
    dt.datetime(1850, 1, 1, tzinfo=BERLIN),  # the offset has seconds
    dt.datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("UTC")),
    dt.time(2, 30, tzinfo=BERLIN),
    dt.time(2, 30, tzinfo=BERLIN, fold=1),
    dt.time(2, 30, fold=1),
]


@pytest.mark.parametrize("value", CLOCK_VALUES, ids=str)
def test_value_round_trip_keeps_zone_and_fold(value: Any) -> None:
    back = there_and_back([value, {value: value}])[0]
    assert type(back) is type(value)
    assert back.replace(tzinfo=None, fold=0) == value.replace(tzinfo=None, fold=0)
    assert (back.fold, back.utcoffset()) == (value.fold, value.utcoffset())
    assert type(back.tzinfo) is type(value.tzinfo)
    assert getattr(back.tzinfo, "key", None) == getattr(value.tzinfo, "key", None)


def test_encoding_of_named_zones_on_disk_is_stable() -> None:
    text = b"2024-10-27T02:30:00.000005+01:00[Europe/Berlin][_fold=1]"
    value = TWICE.replace(tzinfo=BERLIN, fold=1)
    assert TYPES.encode(value) == bytes((0xC7, len(text), 111)) + text
    text = b"02:30:00[Europe/Berlin]"
    assert TYPES.encode(dt.time(2, 30, tzinfo=BERLIN)) == bytes((0xC7, len(text), 112)) + text
    old = TYPES.encode(dt.datetime(2024, 7, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))))
    assert old == bytes((0xC7, 25, 100)) + b"2024-07-01T00:00:00+02:00"


class Offset(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=1)

    def tzname(self, when: dt.datetime | None) -> str:
        return "own"


def test_encode_refuses_time_zones_that_cannot_be_restored() -> None:
    for value in (TWICE.replace(tzinfo=Offset()), dt.time(1, tzinfo=Offset())):
        with pytest.raises(UnsupportedType, match=r"test_values\.Offset, not timezone or ZoneInfo"):
            TYPES.encode(value)
    with open("/usr/share/zoneinfo/Europe/Berlin", "rb") as file:
        nameless = ZoneInfo.from_file(file)
    with pytest.raises(UnsupportedType, match="has no key"):
        TYPES.encode(TWICE.replace(tzinfo=nameless))


@pytest.mark.parametrize("text", ["2024-01-01T00:00:00[Nowhere/Land]", "2024-01-01[_fold=2]", "[]"])
def test_decode_of_unknown_zone_raises_corrupt_record(text: str) -> None:
    with pytest.raises(CorruptRecord, match="cannot be decoded"):
        TYPES.decode(msgpack.packb(msgpack.ExtType(111, text.encode())))


@pytest.mark.parametrize("bits", [63, 64, 65, 200, 10_000])
def test_integer_round_trip(bits: int) -> None:
    for value in (2**bits, 2**bits - 1, -(2**bits), -(2**bits) - 1):
        assert there_and_back(value) == value


class Colour(IntEnum):
    RED = 1


Pair = namedtuple("Pair", "a b")


@dataclass(frozen=True)
class Money:
    cents: int


class Text(str):
    __slots__ = ()


class Map(dict[str, int]):
    pass


class Scalar:
    """Has what scalars and arrays of numpy have."""

    dtype = "int64"

    def tolist(self) -> int:
        return 1


REFUSED = [
    (object(), ""),
    (range(3), ""),
    (print, ""),
    (Colour.RED, ", or store value.value"),
    (Pair(1, 2), ", or store value._asdict()"),
    (Money(1), ", or store dataclasses.asdict(value)"),
    (Money, ""),
    (Text("a"), ", or store str(value)"),
    (Map(a=1), ", or store dict(value)"),
    (OrderedDict(a=1), ", or store dict(value)"),
    (Scalar(), ", or store value.tolist()"),
]


@pytest.mark.parametrize(("value", "advice"), REFUSED, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize(
    "around", [lambda it: it, lambda it: [it], lambda it: {1: (it,)}], ids=["alone", "list", "map"]
)
def test_encode_refuses_other_types_with_key_type_and_advice(
    around: Any, value: Any, advice: str
) -> None:
    name = type(value).__name__
    with pytest.raises(UnsupportedType) as caught:
        TYPES.encode_entries(["good", b"bad"], [1, around(value)])
    assert str(caught.value) == (
        f"key b'bad': values of type {name} cannot be stored; register it with "
        f"client.types.register({name}, code=..., encode=..., decode=...){advice}"
    )


EXTENSION = msgpack.ExtType(5, b"data")


@pytest.mark.parametrize(
    "value",
    [
        EXTENSION,
        [EXTENSION],
        {"k": [1, {2: EXTENSION}]},
        {EXTENSION: 1},
        (1, (EXTENSION,)),
        {"k": {EXTENSION}},
        frozenset([EXTENSION]),
        msgpack.ExtType(100, b"2024-01-01T00:00:00"),  # a code that is in use
        msgpack.ExtType(7, bytes(70_000)),
    ],
    ids=range(9),
)
def test_encode_refuses_extension_of_msgpack(value: Any) -> None:
    with pytest.raises(UnsupportedType, match=r"key 'bad': msgpack\.ExtType cannot be stored"):
        TYPES.encode_entries(["good", "bad"], [{"k": (1, dt.date(2024, 1, 1))}, value])


def test_encode_allows_bytes_that_look_like_extensions() -> None:
    values = [b"\xd4\x05d", ["\u0500\u0200"], {"k": (-1.5e-300, dt.datetime(2024, 1, 1))}]
    assert [there_and_back(value) for value in values] == values
    stamp = msgpack.Timestamp(5, 6)
    assert there_and_back([stamp]) == [stamp]


@pytest.mark.parametrize("around", [lambda view: view, lambda view: [view]], ids=["alone", "list"])
def test_encode_refuses_memoryview_that_is_not_contiguous(around: Any) -> None:
    view = memoryview(b"abcdef")
    with pytest.raises(UnsupportedType, match=r"key 1: .*not contiguous.* store bytes\(view\)"):
        TYPES.encode_entries([1], [around(view[::2])])
    assert there_and_back(around(view[2:4])) == around(b"cd")


def test_decode_values_isolates_what_cannot_be_decoded() -> None:
    payloads = TYPES.encode_many([1, "two", (3,), None])
    payloads[1:1] = [
        msgpack.packb(msgpack.ExtType(42, b"?")),
        msgpack.packb([msgpack.ExtType(100, b"no date")]),
        b"\xa1\xff",
    ]
    bad: dict[Any, Undecodable] = {}
    keys = list("abcdefg")
    values = TYPES.decode_values(codec.join_payloads(payloads), keys, bad)
    assert [values[place] for place in (0, 4, 5, 6)] == [1, "two", (3,), None]
    assert values[1:4] == [bad["b"], bad["c"], bad["d"]]
    assert [failure.payload for failure in bad.values()] == payloads[1:4]
    assert (
        bad["b"].reason == "stored value has type code 42, which is not registered on this client"
    )
    assert "Invalid isoformat string" in bad["c"].reason
    assert "can't decode byte 0xff" in bad["d"].reason


@pytest.mark.parametrize(
    "frame", [b"", b"\xc0", b"\x92\xc1\xc0", b"\x93\xd4\x2a?", b"\x91\xd4\x2a?"]
)
def test_decode_values_of_malformed_array_raises(frame: bytes) -> None:
    with pytest.raises(DStashError):
        TYPES.decode_values(frame, ["a", "b"], {})


@pytest.mark.parametrize(
    ("value", "text"),
    [("\ud800", "surrogates"), (10**100_100, "about 100,100 digits; allowed are 100,000")],
    ids=["surrogate", "endless integer"],
)
def test_values_that_cannot_be_encoded_are_refused(value: Any, text: str) -> None:
    with pytest.raises(LimitError, match=text):
        TYPES.encode(value)


@pytest.mark.parametrize("limit", [640, 4300, 0])
@pytest.mark.parametrize("power", [4999, 5000, 20_000, 99_999])
def test_integer_does_not_depend_on_the_limit_of_the_interpreter(power: int, limit: int) -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(limit)
    try:
        for number in (10**power, -(10**power), 10**power + 7**power // 10, 1 - 10 ** (power + 1)):
            # "is": pytest would write the numbers of a failed comparison as text.
            assert (there_and_back(number) == number) is True
            assert (there_and_back([{number: (number,)}]) == [{number: (number,)}]) is True
    finally:
        sys.set_int_max_str_digits(before)


def test_large_integer_is_stored_as_decimal_text() -> None:
    assert TYPES.encode(-(2**70)) == b"\xc7\x17\x6d-1180591620717411303424"
    assert TYPES.encode(10**5000) == b"\xc8\x13\x89\x6d1" + b"0" * 5000


@pytest.mark.parametrize("text", [b"x", b"1" * 5000 + b"x", b"1" * 200_000])
def test_text_that_is_no_integer_is_corrupt(text: bytes) -> None:
    with pytest.raises(CorruptRecord, match="cannot be decoded"):
        TYPES.decode(msgpack.packb(msgpack.ExtType(109, text)))


def test_value_size_limit_is_exact() -> None:
    head = len(msgpack.packb(bytes(MAX_VALUE_BYTES - 5))) - (MAX_VALUE_BYTES - 5)
    assert len(TYPES.encode(bytes(MAX_VALUE_BYTES - head))) == MAX_VALUE_BYTES
    with pytest.raises(LimitError, match=str(MAX_VALUE_BYTES)):
        TYPES.encode(bytes(MAX_VALUE_BYTES - head + 1))


def nested(value: Any, around: Any, levels: int) -> Any:
    for _ in range(levels):
        value = around(value)
    return value


def content(value: Any) -> Any:
    return next(iter(value.values() if type(value) is dict else value))


SHAPES = {
    "list": lambda inner: [inner],
    "dict": lambda inner: {"k": inner},
    "tuple": lambda inner: (inner,),
    "frozenset": lambda inner: frozenset([inner]),
    "tuple in list": lambda inner: [(inner,)],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [1, 10, 30, 33, 64, 100, 300, 998, 1000, 1022, 1023, 1024, 5000])
def test_every_value_that_encodes_also_decodes(shape: str, levels: int) -> None:
    value = nested(1, SHAPES[shape], levels)
    try:
        payload = TYPES.encode(value)
    except LimitError as error:
        assert "nested too deeply" in str(error)  # noqa: PT017
        assert levels > 30
        return
    joined = codec.join_payloads([payload])
    decoded = TYPES.decode_array(joined)[0]
    while type(value) in (list, dict, tuple, frozenset):  # comparing them would recurse
        assert type(decoded) is type(value)
        value, decoded = (
            next(iter(v.values() if type(v) is dict else v)) for v in (value, decoded)
        )
    assert decoded == 1


@pytest.mark.parametrize("levels", [900, 1022, 1023, 1024])
def test_nesting_inside_tuples_is_limited(levels: int) -> None:
    value = (nested(1, SHAPES["list"], levels),)
    try:
        payload = TYPES.encode(value)
    except LimitError:
        assert levels > MAX_NESTING
        return
    assert len(TYPES.decode(payload)) == 1


def test_nesting_up_to_the_limit_is_allowed() -> None:
    assert TYPES.encode(nested(1, SHAPES["list"], MAX_NESTING))
    value = nested(1, SHAPES["tuple"], MAX_EXTENSION_NESTING)
    assert there_and_back(value) == value


def wrapped(code: int, levels: int, inner: bytes = b"\xc0") -> bytes:
    """Return an extension in an extension in an extension."""
    for _ in range(levels):
        inner = msgpack.packb(msgpack.ExtType(code, b"\x91" + inner))
    return inner


@pytest.mark.parametrize("levels", [40, 200, 1000, 3000])
def test_deeply_nested_tuples_are_refused(levels: int) -> None:
    with pytest.raises(CorruptRecord):
        TYPES.decode(wrapped(108, levels))


def test_nested_large_tuples_use_limited_memory() -> None:
    tower = wrapped(108, 300, inner=msgpack.packb(bytes(1 << 20)))
    with at_most(64), pytest.raises(CorruptRecord):
        TYPES.decode(tower)


@given(st.binary(max_size=200))
def test_decoding_garbage_returns_value_or_dstash_error(data: bytes) -> None:
    with contextlib.suppress(DStashError):
        TYPES.decode(data)


@given(st.sampled_from(range(100, 128)), st.binary(max_size=40))
def test_garbage_in_extension_returns_value_or_dstash_error(code: int, data: bytes) -> None:
    with contextlib.suppress(DStashError):
        TYPES.decode(msgpack.packb(msgpack.ExtType(code, data)))


class TestRegistry:
    def test_registered_type_round_trips_alone_and_nested(self) -> None:
        types = TypeRegistry()
        types.register(
            Money,
            code=7,
            encode=lambda money: b"%d" % money.cents,
            decode=lambda data: Money(int(data)),
        )
        value = [Money(5), {"a": (Money(1), {Money(2)})}]
        assert types.decode(types.encode(value)) == value
        assert types.encode(Money(5)) == b"\xd4\x075"

    def test_decoding_unregistered_type_names_its_code(self) -> None:
        types = TypeRegistry()
        types.register(Money, code=7, encode=lambda money: b"", decode=lambda data: Money(0))
        with pytest.raises(UnsupportedType, match="type code 7"):
            TypeRegistry().decode(types.encode(Money(1)))

    @pytest.mark.parametrize("code", [-1, 100, 127, 1.0, True, "1", None])
    def test_codes_out_of_range_are_refused(self, code: Any) -> None:
        with pytest.raises(UsageError, match="0 to 99"):
            TypeRegistry().register(Money, code=code, encode=repr, decode=Money)  # type: ignore[arg-type]

    def test_duplicate_code_or_type_is_refused(self) -> None:
        types = TypeRegistry()
        types.register(Money, code=7, encode=lambda m: b"", decode=lambda d: Money(0))
        with pytest.raises(UsageError, match="taken by Money"):
            types.register(Colour, code=7, encode=lambda m: b"", decode=lambda d: Colour.RED)
        with pytest.raises(UsageError, match="registered already, with code 7"):
            types.register(Money, code=8, encode=lambda m: b"", decode=lambda d: Money(0))
        with pytest.raises(UsageError, match="UUID is registered already"):
            types.register(
                uuid.UUID, code=8, encode=lambda u: b"", decode=lambda d: uuid.UUID(bytes=d)
            )

    def test_registering_same_type_and_code_replaces_functions(self) -> None:
        types = TypeRegistry()
        types.register(Money, code=7, encode=lambda m: b"", decode=lambda d: Money(0))
        types.register(Money, code=7, encode=lambda m: b"", decode=lambda d: Money(9))
        assert types.decode(types.encode(Money(1))) == Money(9)

    @pytest.mark.parametrize("kind", [Money(1), "Money", None, list[int]])
    def test_object_that_is_no_class_is_refused(self, kind: Any) -> None:
        types = TypeRegistry()
        for _ in range(2):
            with pytest.raises(UsageError, match="cannot be registered; allowed is a class"):
                types.register(kind, code=7, encode=lambda m: b"", decode=lambda d: d)
        types.register(Money, code=7, encode=lambda m: b"", decode=lambda d: Money(0))

    @pytest.mark.parametrize("around", [lambda v: v, lambda v: [v], lambda v: {"k": (v,)}])
    def test_error_of_an_encoder_names_key_and_type(self, around: Any) -> None:
        types = TypeRegistry()
        types.register(
            Money, code=7, encode=lambda m: b"%d" % (1 // m.cents), decode=lambda d: Money(int(d))
        )
        with pytest.raises(UnsupportedType) as caught:
            types.encode_entries(["good", "bad"], [around(Money(1)), around(Money(0))])
        assert str(caught.value).startswith(
            "key 'bad': the encoder of Money failed: ZeroDivisionError: "
        )
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert types.encode(Money(1)) == b"\xd4\x071"

    def test_encoder_must_return_bytes(self) -> None:
        types = TypeRegistry()
        types.register(Money, code=7, encode=repr, decode=Money)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedType, match="encoder of Money returned str, not bytes"):
            types.encode(Money(1))

    def test_failing_decoder_raises_corrupt_record(self) -> None:
        types = TypeRegistry()
        types.register(Money, code=7, encode=lambda m: b"", decode=lambda d: 1 // 0)
        with pytest.raises(CorruptRecord, match="division"):
            types.decode(types.encode(Money(1)))


def test_decoding_never_unpickles() -> None:
    import pickle  # noqa: TID251  # to show that it is of no use

    payload = msgpack.packb(msgpack.ExtType(42, pickle.dumps(print)))
    with pytest.raises(UnsupportedType):
        TYPES.decode(payload)
