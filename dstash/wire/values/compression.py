"""Compressed values: a msgpack extension that contains a zstd frame of the payload.

Every client reads them. A client writes them if its setting ``compression`` says so, and only where
that makes a value smaller. Numbers are never compressed, because peers compute with them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, Final

from dstash.errors import CorruptRecord
from dstash.limits import MAX_VALUE_BYTES

#: The extension of a compressed value. It is on disk, so it never changes.
COMPRESSED_CODE: Final = 113
#: Shorter payloads are not compressed: zstd hardly makes them smaller.
LEAST_BYTES: Final = 128

#: Higher levels take longer, and make values of a few kilobytes hardly smaller.
_LEVEL: Final = 3


class Compressed:
    """The content of a compressed value that is not decompressed yet."""

    __slots__ = ("frame",)

    def __init__(self, frame: bytes) -> None:
        self.frame = frame


class Zstandard:
    """Compresses and decompresses payloads. Thread-safe; the library is loaded at first use."""

    def __init__(self) -> None:
        self._local = _Contexts()

    def compress(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Return the payloads, compressed where that makes them smaller."""
        return [
            payload if len(payload) < LEAST_BYTES else self._smaller(payload)
            for payload in payloads
        ]

    def decompress(self, frame: bytes) -> bytes:
        """Return the payload in a frame.

        Raises:
            CorruptRecord: the frame is corrupt, does not state the size of its content, or states
                more than a value may have.
        """
        contexts = self._local
        try:
            size: int = contexts.library.frame_content_size(frame)
            if size < 0:
                raise CorruptRecord("compressed value does not state its size")
            if size > MAX_VALUE_BYTES:  # checked first, because so much memory is allocated
                raise CorruptRecord(
                    f"compressed value has {size} bytes; allowed are {MAX_VALUE_BYTES}"
                )
            payload: bytes = contexts.decompressor.decompress(frame, allow_extra_data=False)
        except contexts.library.ZstdError as error:
            raise CorruptRecord(f"compressed value is corrupt: {error}") from None
        return payload

    def _smaller(self, payload: bytes) -> bytes:
        frame: bytes = self._local.compressor.compress(payload)
        packed = _extension(frame)
        return packed if len(packed) < len(payload) else payload


class _Contexts(threading.local):
    """The contexts of a thread: two threads must not use one context at the same time."""

    @cached_property
    def library(self) -> Any:
        """The library, which most programs never need."""
        return import_module("zstandard")

    @cached_property
    def compressor(self) -> Any:
        """A compressor that writes the size of the content into each frame."""
        return self.library.ZstdCompressor(level=_LEVEL, write_content_size=True)

    @cached_property
    def decompressor(self) -> Any:
        """A decompressor."""
        return self.library.ZstdDecompressor(max_window_size=MAX_VALUE_BYTES)


def _extension(frame: bytes) -> bytes:
    """Return the msgpack extension with a frame (msgpack specification: ext 8, 16 and 32)."""
    length = len(frame)
    if length < 1 << 8:
        return bytes((0xC7, length, COMPRESSED_CODE)) + frame
    if length < 1 << 16:
        return b"\xc8" + length.to_bytes(2, "big") + bytes((COMPRESSED_CODE,)) + frame
    return b"\xc9" + length.to_bytes(4, "big") + bytes((COMPRESSED_CODE,)) + frame
