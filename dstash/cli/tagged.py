"""JSON for every value that dstash can store: a type that JSON lacks is an object with one tag.

::

    bytes      {"$bytes": "AP8="}  (base64)      bytearray  {"$bytearray": "AP8="}
    datetime   {"$datetime": "2024-01-31T10:00:00+00:00"}   date, time: likewise
    timedelta  {"$timedelta": [days, seconds, microseconds]}
    Decimal    {"$decimal": "1.10"}              UUID       {"$uuid": "..."}
    tuple      {"$tuple": [...]}                 set, frozenset: likewise
    complex    {"$complex": ["1.0", "-2.0"]}     nan, inf   {"$float": "nan"}
    int beyond 64 bits  {"$int": "0x1..."}       Timestamp  {"$timestamp": [s, ns]}
    dict with keys that are not str, or that looks like a tagged value
               {"$map": [[key, value], ...]}

The idea comes from MongoDB's Extended JSON. An object with any other ``$name`` is an ordinary dict.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import uuid
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NoReturn

import msgpack

from dstash.errors import UsageError

_TOO_DEEP: Final = "nested too deeply for JSON"
#: Characters of a number that an error shows.
_MAX_SHOWN: Final = 40


def dumps(value: Any) -> str:
    """Return a value as one line of JSON.

    Raises:
        UsageError: JSON cannot represent the value.
    """
    try:
        return json.dumps(to_plain(value), ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise UsageError(f"value is {_TOO_DEEP}; use msgpack") from None


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        UsageError: the text is not JSON, or a tag in it is malformed.
    """
    try:
        # Editors of Windows write a byte order mark.
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UsageError(f"not JSON: {error.msg} (column {error.pos + 1})") from None
    except RecursionError:
        raise UsageError(_TOO_DEEP) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text (byte {error.start})") from None
    except UsageError:
        raise
    except ValueError:  # Python refuses to read an int of thousands of digits
        raise UsageError('an integer has too many digits; write {"$int": "0x..."}') from None


def to_plain(value: Any) -> Any:
    """Return a value as a structure of JSON types."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is dict:
        return _plain_dict(value)
    if kind is list:
        return [to_plain(item) for item in value]
    write = _WRITERS.get(kind)
    if write is None and isinstance(value, str):  # a member of a StrEnum
        return str(value)
    if write is None:
        raise UsageError(f"JSON cannot represent values of type {kind.__name__}")
    return write(value)


def _plain_dict(value: dict[Any, Any]) -> Any:
    if all(type(key) is str for key in value) and not (len(value) == 1 and _READERS.keys() & value):
        return {key: to_plain(item) for key, item in value.items()}
    return {"$map": [[to_plain(key), to_plain(item)] for key, item in value.items()]}


def _plain_int(value: int) -> Any:
    return value if -(1 << 63) <= value < 1 << 64 else {"$int": hex(value)}


def _plain_float(value: float) -> Any:
    return value if math.isfinite(value) else {"$float": str(value)}


def _tagging(tag: str, write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {tag: write(value)}


def _items(value: Any) -> list[Any]:
    return [to_plain(item) for item in value]


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


_WRITERS: Final[dict[type, Callable[[Any], Any]]] = {
    int: _plain_int,
    float: _plain_float,
    bytes: _tagging("$bytes", _base64),
    bytearray: _tagging("$bytearray", _base64),
    dt.datetime: _tagging("$datetime", dt.datetime.isoformat),
    dt.date: _tagging("$date", dt.date.isoformat),
    dt.time: _tagging("$time", dt.time.isoformat),
    dt.timedelta: _tagging("$timedelta", lambda v: [v.days, v.seconds, v.microseconds]),
    Decimal: _tagging("$decimal", str),
    uuid.UUID: _tagging("$uuid", str),
    tuple: _tagging("$tuple", _items),
    set: _tagging("$set", _items),
    frozenset: _tagging("$frozenset", _items),
    complex: _tagging("$complex", lambda v: [repr(v.real), repr(v.imag)]),
    msgpack.Timestamp: _tagging("$timestamp", lambda v: [v.seconds, v.nanoseconds]),
}


def _float(number: Any) -> float:
    """Return a float; a number beyond its range would become infinity."""
    parsed = float(number)
    if math.isinf(parsed) and "inf" not in str(number).lower():
        shown = str(number) if len(str(number)) <= _MAX_SHOWN else f"{str(number)[:_MAX_SHOWN]}..."
        raise UsageError(
            f'number {shown} is beyond the range of floats; write {{"$float": "inf"}}, or '
            'a {"$decimal": "..."}'
        )
    return parsed


def _debase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$bytes": _debase64,
    "$bytearray": lambda text: bytearray(_debase64(text)),
    "$datetime": dt.datetime.fromisoformat,
    "$date": dt.date.fromisoformat,
    "$time": dt.time.fromisoformat,
    "$timedelta": lambda parts: dt.timedelta(*parts),
    "$decimal": Decimal,
    "$uuid": uuid.UUID,
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$complex": lambda parts: complex(*map(_float, parts)),
    "$float": lambda number: _float(number),
    "$int": lambda text: int(text, 16),
    "$timestamp": lambda parts: msgpack.Timestamp(*parts),
    "$map": dict,
}


def _from_pairs(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) != 1 or pairs[0][0] not in _READERS:
        return dict(pairs)
    tag, content = pairs[0]
    try:
        return _READERS[tag](content)
    except InvalidOperation:
        raise UsageError(f"bad {tag}: {content!r} is not a decimal number") from None
    except UsageError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"bad {tag}: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise UsageError(f'not JSON: {name}; write {{"$float": "{name.lower()}"}}')


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_from_pairs, parse_float=_float, parse_constant=_refuse_constant
)
