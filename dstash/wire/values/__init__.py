"""The encoding of values: msgpack, common Python types, and registered types.

Types that msgpack lacks are encoded as msgpack extensions. Codes 0 to 99 are for registered types,
100 to 127 for built-in ones (``kinds.py``) and for compressed values (``compression.py``). Pickle
is not used: decoding runs only the decoder that is registered for a code. A type is stored exactly
or refused: an instance of a subclass would come back as an instance of its base class.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import msgpack

from dstash.errors import (
    CorruptRecord,
    DStashError,
    LimitError,
    ProtocolError,
    UnsupportedType,
    UsageError,
)
from dstash.limits import MAX_VALUE_BYTES
from dstash.types import Compression
from dstash.wire import codec
from dstash.wire.keys import show_key
from dstash.wire.values.compression import COMPRESSED_CODE, Compressed, Zstandard
from dstash.wire.values.kinds import Extension, builtin_types, check_extensions, refusal_of

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
_PART: Final = "stored value contains a compressed part; only a whole value may be compressed"

#: Types whose values contain no other values.
_LEAVES: Final = frozenset({str, bytes, int, float, bool, type(None), bytearray, memoryview})


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A stored value that this client cannot decode.

    Attributes:
        key: of the value.
        payload: the stored msgpack object.
        reason: why it cannot be decoded.
    """

    key: Any
    payload: bytes
    reason: str


class TypeRegistry:
    """The types that a client can store in addition to those of msgpack.

    Thread-safe. Registering the same type under the same code again replaces its functions.

    Args:
        compression: of the values that ``encode_entries`` encodes; all that are compressed can be
            decoded.
    """

    def __init__(self, compression: Compression = "none") -> None:
        self._compresses = compression == "zstd"
        self._zstandard = Zstandard()
        self._by_type: dict[type, Extension] = {}
        self._by_code: dict[int, Extension] = {}
        self._local = threading.local()
        self._hook = partial(self._from_extension, None)
        for extension in builtin_types(self._pack_items, self._unpack):
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
            UsageError: ``kind`` is no class, the code or the type is registered already, or the
                code is out of range.
        """
        if not isinstance(kind, type):
            raise UsageError(
                f"an instance of {type(kind).__name__} cannot be registered; allowed is a class"
            )
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
        self._add(Extension(kind, code, encode, decode))

    def encode(self, value: Any) -> bytes:
        """Return the payload of one value.

        Raises:
            UnsupportedType: the type is unknown to msgpack, not built in and not registered.
            LimitError: larger than 8 MiB, or nested too deeply.
        """
        return self.encode_many([value])[0]

    def encode_entries(self, keys: Sequence[object], values: Sequence[Any]) -> list[bytes]:
        """Return the payloads to store for many values, compressed if that is set.

        An error names the key of the first value that cannot be stored.
        """
        try:
            payloads = self.encode_many(values)
        except UsageError:
            for key, value in zip(keys, values, strict=True):
                self._encode_named(key, value)
            raise
        return self._zstandard.compress(payloads) if self._compresses else payloads

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Return the payloads of many values, none of them compressed."""
        packer = self._take_packer()
        try:
            payloads = list(map(packer.pack, values))
        except UsageError:
            raise  # with the cause that an encoder gave it
        except ValueError as error:
            raise self._explained(error) from None
        except BufferError:
            raise UnsupportedType(
                "a memoryview that is not contiguous cannot be stored; store bytes(view)"
            ) from None
        except (TypeError, OverflowError) as error:
            raise UnsupportedType(f"value cannot be stored: {error}") from None
        else:
            self._local.packer = packer  # an interrupted packer is not reused
        largest = max(map(len, payloads), default=0)
        if largest > MAX_VALUE_BYTES:
            raise LimitError(f"value has {largest} bytes encoded; allowed are {MAX_VALUE_BYTES}")
        if largest >= MAX_NESTING:
            _check_nesting(payloads)
        if not _LEAVES.issuperset(map(type, values)):
            check_extensions(values, payloads, largest)
        return payloads

    def decode(self, payload: bytes) -> Any:
        """Return the value of a payload; ``CorruptRecord`` if it cannot be decoded."""
        return self._decode(payload, self._unpack_compressed_value)

    def decode_array(self, frame: bytes) -> list[Any]:
        """Return the values of a frame that a peer has joined from payloads."""
        values = self._decode(frame, self._unpack_compressed_values)
        if not isinstance(values, list):
            raise ProtocolError(f"values are a msgpack {type(values).__name__}, not an array")
        return values

    def decode_values(
        self, frame: bytes, keys: Sequence[Any], undecodable: MutableMapping[Any, Undecodable]
    ) -> list[Any]:
        """Return the values of a frame, with an ``Undecodable`` for each that cannot be decoded.

        Args:
            frame: payloads, joined by a peer.
            keys: of the values.
            undecodable: gets the values that cannot be decoded, by key.

        Raises:
            CorruptRecord: the frame is not an array of payloads.
        """
        try:
            return self.decode_array(frame)
        except DStashError:
            payloads = codec.split_payloads(frame)
            if len(payloads) != len(keys):
                raise
        values = [self._decode_named(*pair) for pair in zip(keys, payloads, strict=True)]
        undecodable.update((value.key, value) for value in values if isinstance(value, Undecodable))
        return values

    def _add(self, extension: Extension) -> None:
        self._by_type[extension.kind] = extension
        self._by_code[extension.code] = extension

    def _take_packer(self) -> Any:
        """Return an unused packer: a signal handler may encode values meanwhile."""
        packer = self._local.__dict__.pop("packer", None)
        if packer is None:
            packer = msgpack.Packer(default=self._to_extension, strict_types=True, autoreset=True)
        return packer

    def _encode_named(self, key: object, value: Any) -> None:
        """Encode a value; an error names its key."""
        try:
            self.encode(value)
        except UsageError as error:
            raise type(error)(f"key {show_key(key)}: {error}") from error.__cause__

    def _decode_named(self, key: Any, payload: bytes) -> Any:
        try:
            return self.decode(payload)
        except DStashError as error:
            return Undecodable(key, payload, str(error))

    def _pack_items(self, items: Any) -> bytes:
        packed: bytes = msgpack.packb(list(items), default=self._to_extension, strict_types=True)
        _check_nesting([packed])
        return packed

    def _decode(self, payload: bytes, unpack_compressed: Callable[[bytes], Any]) -> Any:
        """Return what a payload contains.

        Args:
            payload: a msgpack object.
            unpack_compressed: returns what a payload contains that has something compressed.
        """
        try:
            try:
                return self._unpack(payload)
            except _CompressedPart:  # no error, if it is a whole value
                return unpack_compressed(payload)
        except DStashError:
            raise
        except Exception as error:  # registered decoders may raise anything
            raise CorruptRecord(f"stored value cannot be decoded: {error}") from error

    def _unpack_compressed_value(self, payload: bytes) -> Any:
        value, count = self._unpack_outer(payload)
        return self._decompressed([value], count)[0]

    def _unpack_compressed_values(self, frame: bytes) -> Any:
        values, count = self._unpack_outer(frame)
        return self._decompressed(values, count) if type(values) is list else values

    def _unpack_outer(self, payload: bytes) -> tuple[Any, int]:
        """Return what a payload contains, with ``Compressed`` objects, and how many these are."""
        compressed: list[Compressed] = []
        hook = partial(self._from_extension, compressed)
        return msgpack.unpackb(payload, ext_hook=hook, strict_map_key=False), len(compressed)

    def _decompressed(self, values: list[Any], count: int) -> list[Any]:
        """Return values with those decompressed that are ``Compressed``.

        Raises:
            CorruptRecord: there are not as many as ``count``. The others are inside of values, and
                could make a value of any size.
        """
        found = [type(value) is Compressed for value in values]
        if sum(found) != count:
            raise CorruptRecord(_PART) from None
        return [
            self._unpack(self._zstandard.decompress(value.frame)) if is_compressed else value
            for value, is_compressed in zip(values, found, strict=True)
        ]

    def _unpack(self, payload: bytes) -> Any:
        return msgpack.unpackb(payload, ext_hook=self._hook, strict_map_key=False)

    def _to_extension(self, value: Any) -> msgpack.ExtType:
        extension = self._by_type.get(type(value))
        if extension is None:
            raise UnsupportedType(refusal_of(value))
        if extension.variant is not None:
            extension = extension.variant(value) or extension
        depth = self._deepen(LimitError)
        try:
            encoded = extension.encode(value)
        except DStashError:
            raise
        except Exception as error:
            if extension.code > HIGHEST_USER_CODE:
                raise
            name, kind = type(value).__name__, type(error).__name__
            raise UnsupportedType(f"the encoder of {name} failed: {kind}: {error}") from error
        finally:
            self._local.depth = depth
        if not isinstance(encoded, bytes):
            raise UnsupportedType(
                f"the encoder of {type(value).__name__} returned "
                f"{type(encoded).__name__}, not bytes"
            )
        return msgpack.ExtType(extension.code, encoded)

    def _from_extension(self, compressed: list[Compressed] | None, code: int, data: bytes) -> Any:
        """Return what an extension contains.

        Args:
            compressed: gets what is compressed; None to raise ``_CompressedPart`` instead.
            code: of the extension.
            data: its content.
        """
        extension = self._by_code.get(code)
        if extension is None:
            if code == COMPRESSED_CODE:
                if compressed is None:
                    raise _CompressedPart(_PART)
                compressed.append(Compressed(data))
                return compressed[-1]
            raise UnsupportedType(
                f"stored value has type code {code}, which is not registered on this client"
            )
        depth = self._deepen(CorruptRecord)
        try:
            return extension.decode(data)
        finally:
            self._local.depth = depth

    def _deepen(self, refusal: type[DStashError]) -> int:
        """Enter an extension; return the depth to restore, or raise if it is too deep."""
        depth: int = getattr(self._local, "depth", 0)
        if depth >= MAX_EXTENSION_NESTING:
            raise refusal(_TOO_DEEP)
        self._local.depth = depth + 1
        return depth

    def _explained(self, error: ValueError) -> Exception:
        if "recursion" in str(error):
            return LimitError(_TOO_DEEP)
        return LimitError(f"value cannot be stored: {error}")


class _CompressedPart(CorruptRecord):
    """A payload contains something that is compressed."""


def _check_nesting(payloads: Sequence[bytes]) -> None:
    """Raise ``LimitError`` for values that msgpack can pack but not unpack."""
    long = [payload for payload in payloads if len(payload) >= MAX_NESTING]
    if long and codec.malformed_payloads(long):
        raise LimitError(_TOO_DEEP)
