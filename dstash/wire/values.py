"""The encoding of values: msgpack, common Python types, and registered types.

Types that msgpack lacks are encoded as msgpack extensions. Codes 0 to 99 are for registered types,
100 to 127 for built-in ones; both are append-only, because they are on disk. Pickle is not used:
decoding runs only the decoder that is registered for a code.
"""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeVar

import msgpack

from dstash.errors import CorruptRecord, DStashError, LimitError, UnsupportedType, UsageError
from dstash.limits import MAX_VALUE_BYTES
from dstash.wire import codec

T = TypeVar("T")

HIGHEST_USER_CODE: Final = 99
#: Deepest nesting that msgpack decodes; a value is one level deep in a reply. A value with fewer
#: bytes than this cannot be nested deeper.
MAX_NESTING: Final = 1000
#: Deepest nesting of sets and tuples, also with lists between them. For msgpack each is a separate
#: message, which needs 40 kB of stack and a copy of its content.
MAX_EXTENSION_NESTING: Final = 32
_TOO_DEEP: Final = (
    f"value is nested too deeply; up to {MAX_NESTING} levels of lists and maps are allowed, "
    f"and up to {MAX_EXTENSION_NESTING} of tuples and sets"
)


class _Extension(NamedTuple):
    kind: type
    code: int
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class TypeRegistry:
    """The types that a client can store in addition to those of msgpack.

    Thread-safe. Registering the same type under the same code again replaces its functions.
    """

    def __init__(self) -> None:
        self._by_type: dict[type, _Extension] = {}
        self._by_code: dict[int, _Extension] = {}
        self._local = threading.local()
        for extension in _builtin_extensions(self):
            self._add(extension)

    def register(
        self,
        kind: type[T],
        *,
        code: int,
        encode: Callable[[T], bytes],
        decode: Callable[[bytes], T],
    ) -> None:
        """Store values of type ``kind`` (exactly, not its subclasses).

        Args:
            kind: the class.
            code: 0 to 99. It is stored with each value, so it must never change on any client.
            encode: returns the bytes of an instance.
            decode: returns an equal instance from those bytes.

        Raises:
            UsageError: the code or the type is registered already, or the code is out of range.
        """
        if type(code) is not int or not 0 <= code <= HIGHEST_USER_CODE:
            raise UsageError(
                f"code {code!r} for {kind.__name__} is not allowed; allowed are 0 to 99"
            )
        taken = self._by_code.get(code)
        if taken is not None and taken.kind is not kind:
            raise UsageError(f"code {code} for {kind.__name__} is taken by {taken.kind.__name__}")
        known = self._by_type.get(kind)
        if known is not None and known.code != code:
            raise UsageError(f"{kind.__name__} is registered already, with code {known.code}")
        self._add(_Extension(kind, code, encode, decode))

    def encode(self, value: Any) -> bytes:
        """Return the payload of one value.

        Raises:
            UnsupportedType: the type is unknown to msgpack, not built in and not registered.
            LimitError: larger than 8 MiB, or nested too deeply.
        """
        return self.encode_many([value])[0]

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Return the payloads of many values."""
        packer = self._take_packer()
        try:
            payloads = list(map(packer.pack, values))
        except ValueError as error:
            raise self._explained(error) from None
        except (TypeError, OverflowError) as error:
            raise UnsupportedType(f"value cannot be stored: {error}") from None
        else:
            self._local.packer = packer  # an interrupted packer is not reused
        largest = max(map(len, payloads), default=0)
        if largest > MAX_VALUE_BYTES:
            raise LimitError(f"value has {largest} bytes encoded; allowed are {MAX_VALUE_BYTES}")
        if largest >= MAX_NESTING:
            _check_nesting(payloads)
        return payloads

    def decode(self, payload: bytes) -> Any:
        """Return the value of a payload; ``CorruptRecord`` if it cannot be decoded."""
        try:
            return self._unpack(payload)
        except DStashError:
            raise
        except Exception as error:  # registered decoders may raise anything
            raise CorruptRecord(f"stored value cannot be decoded: {error}") from error

    def decode_array(self, frame: bytes) -> list[Any]:
        """Return the values of a frame that a peer has joined from payloads."""
        values: list[Any] = self.decode(frame)
        return values

    def _add(self, extension: _Extension) -> None:
        self._by_type[extension.kind] = extension
        self._by_code[extension.code] = extension

    def _take_packer(self) -> Any:
        """Return an unused packer: a signal handler may encode values meanwhile."""
        packer = self._local.__dict__.pop("packer", None)
        if packer is None:
            packer = msgpack.Packer(default=self._to_extension, strict_types=True, autoreset=True)
        return packer

    def _unpack(self, payload: bytes) -> Any:
        return msgpack.unpackb(payload, ext_hook=self._from_extension, strict_map_key=False)

    def _to_extension(self, value: Any) -> msgpack.ExtType:
        extension = self._by_type.get(type(value))
        if extension is None:
            raise UnsupportedType(
                f"values of type {type(value).__name__} cannot be stored; "
                "register it with client.types.register(...)"
            )
        with self._one_level_deeper(LimitError):
            encoded = extension.encode(value)
        if not isinstance(encoded, bytes):
            raise UnsupportedType(
                f"the encoder of {type(value).__name__} returned "
                f"{type(encoded).__name__}, not bytes"
            )
        return msgpack.ExtType(extension.code, encoded)

    def _from_extension(self, code: int, data: bytes) -> Any:
        extension = self._by_code.get(code)
        if extension is None:
            raise UnsupportedType(
                f"stored value has type code {code}, which is not registered on this client"
            )
        with self._one_level_deeper(CorruptRecord):
            return extension.decode(data)

    @contextmanager
    def _one_level_deeper(self, refusal: type[DStashError]) -> Iterator[None]:
        depth = getattr(self._local, "depth", 0)
        if depth >= MAX_EXTENSION_NESTING:
            raise refusal(_TOO_DEEP)
        self._local.depth = depth + 1
        try:
            yield
        finally:
            self._local.depth = depth

    def _explained(self, error: ValueError) -> Exception:
        if isinstance(error, UsageError):
            return error
        if "recursion" in str(error):
            return LimitError(_TOO_DEEP)
        return LimitError(f"value cannot be stored: {error}")


def _check_nesting(payloads: Sequence[bytes]) -> None:
    """Raise ``LimitError`` for values that msgpack can pack but not unpack."""
    long = [payload for payload in payloads if len(payload) >= MAX_NESTING]
    if long and codec.malformed_payloads(long):
        raise LimitError(_TOO_DEEP)


def _builtin_extensions(types: TypeRegistry) -> list[_Extension]:
    def pack_items(items: Any) -> bytes:
        packed: bytes = msgpack.packb(list(items), default=types._to_extension, strict_types=True)
        _check_nesting([packed])
        return packed

    def text(
        kind: type, code: int, write: Callable[[Any], str], read: Callable[[str], Any]
    ) -> _Extension:
        return _Extension(
            kind, code, lambda value: write(value).encode(), lambda data: read(data.decode())
        )

    return [
        text(dt.datetime, 100, dt.datetime.isoformat, dt.datetime.fromisoformat),
        text(dt.date, 101, dt.date.isoformat, dt.date.fromisoformat),
        text(dt.time, 102, dt.time.isoformat, dt.time.fromisoformat),
        _Extension(dt.timedelta, 103, _pack_timedelta, _unpack_timedelta),
        text(Decimal, 104, str, Decimal),
        _Extension(uuid.UUID, 105, lambda value: value.bytes, lambda data: uuid.UUID(bytes=data)),
        _Extension(set, 106, pack_items, lambda data: set(types._unpack(data))),
        _Extension(frozenset, 107, pack_items, lambda data: frozenset(types._unpack(data))),
        _Extension(tuple, 108, pack_items, lambda data: tuple(types._unpack(data))),
        text(int, 109, str, int),  # only for integers beyond 64 bits
        _Extension(complex, 110, _pack_complex, _unpack_complex),
    ]


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
