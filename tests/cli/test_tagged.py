"""Tagged JSON keeps every value that dstash can store."""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.cli import tagged
from dstash.errors import UsageError
from dstash.wire.values import TypeRegistry

_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    _TEXT,
    st.binary(),
    st.dates(),
    # ISO 8601 has no place for ``fold``.
    st.datetimes(timezones=st.sampled_from([None, dt.UTC])).map(lambda t: t.replace(fold=0)),
    st.times().map(lambda t: t.replace(fold=0)),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(version=4),
    st.complex_numbers(allow_nan=False),
)
_VALUES = st.recursive(
    _HASHABLE | st.binary().map(bytearray),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.sets(_HASHABLE),
        st.frozensets(_HASHABLE),
        st.dictionaries(_TEXT, inner),
        st.dictionaries(_HASHABLE, inner),
        st.dictionaries(st.sampled_from(["$bytes", "$map", "$other"]), inner),
    ),
    max_leaves=12,
)


def same(first: Any, second: Any) -> bool:
    """Whether values and all nested types are equal: 1, 1.0 and True differ."""
    return type(first) is type(second) and first == second and repr_of(first) == repr_of(second)


def repr_of(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [repr_of(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, dict):
        return [(repr(key), repr_of(item)) for key, item in value.items()]
    return repr(value)


def test_byte_order_mark_is_accepted_in_bytes_alone() -> None:
    assert tagged.loads(b'\xef\xbb\xbf"x"') == "x"
    with pytest.raises(UsageError, match="not JSON"):
        tagged.loads('\ufeff"x"')


@given(_VALUES)
def test_tagged_json_keeps_every_value(value: Any) -> None:
    text = tagged.dumps(value)
    assert "\n" not in text
    json.loads(text, parse_constant=pytest.fail)  # standard JSON, not Python's extension of it
    assert same(tagged.loads(text), value)


@given(_VALUES)
def test_tagged_json_keeps_stored_values(value: Any) -> None:
    types = TypeRegistry()
    stored = types.decode(types.encode(value))
    assert same(tagged.loads(tagged.dumps(stored)), stored)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", '"plain"'),
        ({"a": [1, 2.5, None, True]}, '{"a":[1,2.5,null,true]}'),
        (b"\x00\xff", '{"$bytes":"AP8="}'),
        (dt.datetime(2024, 1, 31, 10, tzinfo=dt.UTC), '{"$datetime":"2024-01-31T10:00:00+00:00"}'),
        (dt.timedelta(1, 2, 3), '{"$timedelta":[1,2,3]}'),
        (Decimal("1.10"), '{"$decimal":"1.10"}'),
        (uuid.UUID(int=1), '{"$uuid":"00000000-0000-0000-0000-000000000001"}'),
        ((1, (2,)), '{"$tuple":[1,{"$tuple":[2]}]}'),
        (1 << 64, '{"$int":"0x10000000000000000"}'),
        ((1 << 64) - 1, "18446744073709551615"),
        (math.inf, '{"$float":"inf"}'),
        ({1: "a"}, '{"$map":[[1,"a"]]}'),
        ({"$bytes": "x"}, '{"$map":[["$bytes","x"]]}'),
        ({"$oid": "x"}, '{"$oid":"x"}'),
        (msgpack.Timestamp(1, 2), '{"$timestamp":[1,2]}'),
        ("ä\u2028", '"ä\u2028"'),
    ],
)
def test_tagged_json_has_the_documented_form(value: Any, text: str) -> None:
    assert tagged.dumps(value) == text
    assert same(tagged.loads(text.encode()), value)


def test_tagged_json_keeps_nan() -> None:
    assert math.isnan(tagged.loads(tagged.dumps(math.nan)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": ', "not JSON: Expecting value"),
        (b"", "not JSON: Expecting value"),
        (b"1 2", "not JSON: Extra data"),
        (b"NaN", 'not JSON: NaN; write {"$float": "nan"}'),
        (b"1e400", "number 1e400 is beyond the range of floats"),
        (b"[-1e999]", "number -1e999 is beyond the range of floats"),
        (b'{"$float": "1e400"}', "number 1e400 is beyond the range of floats"),
        (b'{"$complex": ["0", "1e400"]}', "number 1e400 is beyond the range of floats"),
        (b"1" * 400 + b".0", f"number {'1' * 40}... is beyond the range of floats"),
        (b"\xff", "not UTF-8 text"),
        (b'{"$bytes": "a"}', "bad $bytes"),
        (b'{"$bytes": 5}', "bad $bytes"),
        (b'{"$datetime": "yesterday"}', "bad $datetime"),
        (b'{"$decimal": "x"}', "bad $decimal"),
        (b'{"$map": [[[], 1]]}', "bad $map"),
        (b'{"$set": [{}]}', "bad $set"),
        (b'{"$timedelta": [1, 2, 3, 4, 5, 6, 7, 8]}', "bad $timedelta"),
        (b'{"$complex": ["1"]}', None),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, 'an integer has too many digits; write {"$int": "0x..."}'),
    ],
)
def test_loads_refuses_bad_json_with_reason(text: bytes, words: str | None) -> None:
    if words is None:
        assert tagged.loads(text) == complex(1)
        return
    with pytest.raises(UsageError) as caught:
        tagged.loads(text)
    assert words in str(caught.value)


def test_dumps_refuses_unknown_types() -> None:
    with pytest.raises(UsageError, match="values of type object"):
        tagged.dumps(object())
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UsageError, match="nested too deeply"):
        tagged.dumps(deep)
    while deep:  # freed step by step: recursive freeing is not tested here
        deep = deep[0]
