"""The types of values: what is built in, and why other types are refused.

Built-in types that msgpack lacks are extensions with codes 100 to 127. The codes are append-only,
because they are on disk.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re
import uuid
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgpack

from dstash.errors import LimitError, UnsupportedType
from dstash.limits import MIB

#: A date or time with a named zone, or with ``fold=1``; the offset in it is for other readers.
_ZONED: Final = re.compile(r"([^\[]+)(?:\[([^\]=]+)\])?(\[_fold=1\])?")

#: Types whose values may contain others, which msgpack packs itself.
_CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset})
#: First bytes of a msgpack extension.
_EXTENSION_MARKS: Final = (b"\xc7", b"\xc8", b"\xc9", b"\xd4", b"\xd5", b"\xd6", b"\xd7", b"\xd8")
#: Bytes of payloads that are searched for extensions together.
_SEARCHED_BYTES: Final = MIB

#: The most decimal digits of an integer beyond the limit of the interpreter (4300 by default), and
#: their bits. Time grows with the square of the digits: this many take a fraction of a second.
_MAX_INTEGER_DIGITS: Final = 100_000
_MAX_INTEGER_BITS: Final = 332_193
#: Digits that the interpreter converts regardless of its limit.
_ALWAYS_READ_DIGITS: Final = 640
_DIGITS: Final = re.compile(r"-?[0-9]+")

#: What to store in place of an instance of a subclass.
_PLAIN: Final = (str, bytes, int, float, dict, list, set, frozenset)


class Extension(NamedTuple):
    """A type that is stored as a msgpack extension.

    ``variant`` returns the extension that stores a value instead, or None.
    """

    kind: type
    code: int
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    variant: Callable[[Any], Extension | None] | None = None


def builtin_types(
    pack_items: Callable[[Any], bytes], unpack: Callable[[bytes], Any]
) -> list[Extension]:
    """Return the built-in types.

    Args:
        pack_items: returns the msgpack array of the items of a set or tuple.
        unpack: returns the value of a payload.
    """
    return [
        *_clock_type(dt.datetime, 100, 111),
        _text(dt.date, 101, dt.date.isoformat, dt.date.fromisoformat),
        *_clock_type(dt.time, 102, 112),
        Extension(dt.timedelta, 103, _pack_timedelta, _unpack_timedelta),
        _text(Decimal, 104, str, Decimal),
        Extension(uuid.UUID, 105, lambda value: value.bytes, lambda data: uuid.UUID(bytes=data)),
        Extension(set, 106, pack_items, lambda data: set(unpack(data))),
        Extension(frozenset, 107, pack_items, lambda data: frozenset(unpack(data))),
        Extension(tuple, 108, pack_items, lambda data: tuple(unpack(data))),
        _text(int, 109, _write_integer, _read_integer),  # only for integers beyond 64 bits
        Extension(complex, 110, _pack_complex, _unpack_complex),
    ]


def _text(
    kind: type, code: int, write: Callable[[Any], str], read: Callable[[str], Any]
) -> Extension:
    return Extension(
        kind, code, lambda value: write(value).encode(), lambda data: read(data.decode())
    )


def _write_integer(value: int) -> str:
    """Return an integer in decimal digits, also beyond the limit of the interpreter.

    Raises:
        LimitError: it has more digits than clients read in a short time.
    """
    try:
        return str(value)
    except ValueError:
        if value.bit_length() > _MAX_INTEGER_BITS:
            raise LimitError(
                f"an int has about {value.bit_length() * math.log10(2):,.0f} digits; "
                f"allowed are {_MAX_INTEGER_DIGITS:,}"
            ) from None
        return str(Decimal(value))


def _read_integer(text: str) -> int:
    """Return the integer of ``_write_integer``."""
    try:
        return int(text)
    except ValueError:
        if len(text) > _MAX_INTEGER_DIGITS + 2 or not _DIGITS.fullmatch(text):
            raise
        magnitude = _joined(text.removeprefix("-"))
        return -magnitude if text.startswith("-") else magnitude


def _joined(digits: str) -> int:
    """Return the integer of decimal digits: halves take less time than digit by digit."""
    if len(digits) <= _ALWAYS_READ_DIGITS:
        return int(digits)
    half = len(digits) // 2
    scale: int = 10**half
    return _joined(digits[:-half]) * scale + _joined(digits[-half:])


def _clock_type(kind: type[dt.datetime] | type[dt.time], code: int, zoned: int) -> list[Extension]:
    """Return a type as ISO 8601 text, and with the code ``zoned`` what that text cannot express."""

    def read(text: str) -> Any:
        match = _ZONED.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no date or time with a zone")
        value = kind.fromisoformat(match[1])
        if match[2]:
            from zoneinfo import ZoneInfo  # loaded only by programs that use named zones

            value = value.replace(tzinfo=ZoneInfo(match[2]))
        return value.replace(fold=1) if match[3] else value

    variant = _text(kind, zoned, _write_zoned, read)
    plain = _text(kind, code, kind.isoformat, kind.fromisoformat)
    # The plain one comes last, so that it is found by type.
    return [variant, plain._replace(variant=lambda value: variant if _is_zoned(value) else None)]


def _is_zoned(value: dt.datetime | dt.time) -> bool:
    """Whether a date or time has a named zone or ``fold=1``, which ISO 8601 cannot express.

    Raises:
        UnsupportedType: its time zone is of a class that cannot be restored.
    """
    zone = value.tzinfo
    return value.fold == 1 or (zone is not None and type(zone) is not dt.timezone)


def _write_zoned(value: dt.datetime | dt.time) -> str:
    """Return the text in the style of RFC 9557: ``2024-10-27T02:30:00+02:00[Europe/Berlin]``."""
    zone = value.tzinfo
    name = "" if zone is None or type(zone) is dt.timezone else f"[{_zone_name(zone)}]"
    return f"{value.isoformat()}{name}{'[_fold=1]' if value.fold else ''}"


def _zone_name(zone: dt.tzinfo) -> str:
    from zoneinfo import ZoneInfo  # loaded only by programs that use named zones

    if type(zone) is ZoneInfo and zone.key:
        return zone.key
    kind = type(zone)
    reason = (
        "has no key"
        if kind is ZoneInfo
        else f"is of type {kind.__module__}.{kind.__qualname__}, not timezone or ZoneInfo"
    )
    raise UnsupportedType(
        f"the time zone of a value {reason}, so it cannot be restored; "
        "store value.astimezone(datetime.UTC), or use ZoneInfo(name)"
    )


def _pack_timedelta(value: dt.timedelta) -> bytes:
    return b"%d %d %d" % (value.days, value.seconds, value.microseconds)


def _unpack_timedelta(data: bytes) -> dt.timedelta:
    days, seconds, microseconds = map(int, data.split())
    return dt.timedelta(days, seconds, microseconds)


def _pack_complex(value: complex) -> bytes:
    packed: bytes = msgpack.packb([value.real, value.imag])
    return packed


def _unpack_complex(data: bytes) -> complex:
    real, imaginary = msgpack.unpackb(data)
    return complex(real, imaginary)


def check_extensions(values: Sequence[Any], payloads: Sequence[bytes], largest: int) -> None:
    """Raise ``UnsupportedType`` if a value contains a ``msgpack.ExtType``.

    msgpack packs it unchanged, with any code. Only values are searched whose payload has a byte
    that could begin an extension, because a search takes longer than the encoding.
    """
    step = max(1, _SEARCHED_BYTES // largest)
    for begin in range(0, len(payloads), step):
        places = _with_marks(payloads[begin : begin + step])
        if any(_contains_extension(values[begin + place]) for place in places):
            raise UnsupportedType(
                "msgpack.ExtType cannot be stored; register a type for its code with "
                "client.types.register(...)"
            )


def _with_marks(payloads: Sequence[bytes]) -> set[int]:
    """Return the positions of payloads with a byte that could begin an extension."""
    joined = b"".join(payloads)
    found: set[int] = set()
    ends: list[int] = []
    for mark in _EXTENSION_MARKS:
        at = joined.find(mark)
        while at >= 0:
            ends = ends or list(accumulate(map(len, payloads)))
            place = bisect_right(ends, at)
            found.add(place)
            at = joined.find(mark, ends[place])
    return found


def _contains_extension(value: Any) -> bool:
    waiting = [[value]]
    while waiting:
        container: Any = waiting.pop()
        kinds = set(map(type, container))
        if type(container) is dict:
            kinds.update(map(type, container.values()))
        if msgpack.ExtType in kinds:
            return True
        if not kinds.isdisjoint(_CONTAINERS):
            waiting += [part for part in container if type(part) in _CONTAINERS]
            if type(container) is dict:
                waiting += [part for part in container.values() if type(part) in _CONTAINERS]
    return False


def refusal_of(value: Any) -> str:
    """Return why a value is refused, and what to do."""
    name = type(value).__name__
    advice = f"register it with client.types.register({name}, code=..., encode=..., decode=...)"
    plain = _plain_form(value)
    return f"values of type {name} cannot be stored; {advice}{plain and f', or store {plain}'}"


def _plain_form(value: Any) -> str:
    """Return an expression that turns a value into one that can be stored; empty for none."""
    if isinstance(value, Enum):
        return "value.value"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "dataclasses.asdict(value)"
    if isinstance(value, tuple):
        return "value._asdict()" if hasattr(value, "_asdict") else "tuple(value)"
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # scalars and arrays of numpy
        return "value.tolist()"
    if isinstance(value, Mapping):
        return "dict(value)"
    return next((f"{kind.__name__}(value)" for kind in _PLAIN if isinstance(value, kind)), "")
