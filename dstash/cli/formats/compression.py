"""Compression of files by their names: ``.gz``, and ``.zst`` where a library for it is there."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final

from dstash.errors import UsageError

GZIP: Final = ".gz"
ZSTANDARD: Final = ".zst"
SUFFIXES: Final = (GZIP, ZSTANDARD)

_GZIP_LEVEL: Final = 6


def suffix_of(file: str) -> str:
    """Return the suffix that names the compression of a file; empty if it has none."""
    suffix = Path(file).suffix.lower()
    return suffix if suffix in SUFFIXES else ""


@contextmanager
def decompressed(file: str, raw: BinaryIO) -> Iterator[BinaryIO]:
    """Return the content of a file as a stream that can be read in order.

    Raises:
        UsageError: no library for it is installed. From the stream: the data is not compressed as
            the name says, or ends early.
    """
    suffix = suffix_of(file)
    if not suffix:
        yield raw
        return
    opened = gzip.GzipFile(fileobj=raw, mode="rb") if suffix == GZIP else _zstandard_reader(raw)
    with opened as stream:
        yield _Decompressed(stream, suffix)  # type: ignore[misc]  # has all methods that are used


class _Decompressed:
    """A stream of decompressed data whose errors are ``UsageError``."""

    def __init__(self, stream: Any, suffix: str) -> None:
        self._stream = stream
        self._name = suffix.removeprefix(".")

    def read(self, size: int) -> bytes:
        return self._checked(self._stream.read, size)

    def readline(self, size: int) -> bytes:
        return self._checked(self._stream.readline, size)

    def seekable(self) -> bool:
        return False

    def _checked(self, read: Any, size: int) -> bytes:
        try:
            data: bytes = read(size)
        except EOFError:
            raise UsageError(f"the {self._name} data ends early") from None
        except (OSError, ValueError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the data
            raise UsageError(f"not {self._name} data: {_first_line(error)}") from None
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            raise UsageError(f"not {self._name} data: {_first_line(error)}") from None
        return data


@contextmanager
def compressed(file: str, raw: BinaryIO) -> Iterator[BinaryIO]:
    """Return a stream that writes compressed data, as the name of the file says.

    Raises:
        UsageError: no library for it is installed.
    """
    suffix = suffix_of(file)
    if not suffix:
        yield raw
        return
    below = _KeptOpen(raw)
    if suffix == GZIP:
        out: Any = gzip.GzipFile("", "wb", _GZIP_LEVEL, below, mtime=0)
    else:
        out = _zstandard_writer(below)
    try:
        yield out
    except BaseException:
        below.abandon()
        raise
    out.close()


def _zstandard_reader(raw: BinaryIO) -> Any:
    if (standard := _standard()) is not None:
        return standard.ZstdFile(raw)
    pa = _arrow()
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))


def _zstandard_writer(raw: _KeptOpen) -> Any:
    if (standard := _standard()) is not None:
        return standard.ZstdFile(raw, "w")
    pa = _arrow()
    return pa.CompressedOutputStream(pa.PythonFile(raw, "w"), "zstd")


class _KeptOpen:
    """A file that a compressor writes to and does not close."""

    closed = False

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._is_abandoned = False

    def write(self, data: Any) -> int:
        return len(data) if self._is_abandoned else self._raw.write(data)

    def flush(self) -> None:
        if not self._is_abandoned:
            self._raw.flush()

    def close(self) -> None:
        self.flush()

    def abandon(self) -> None:
        """Drop all that is written from now on.

        A compressor that is not closed writes the end of the data when it is deleted, and a reader
        must not take the data for complete.
        """
        self._is_abandoned = True


def _standard() -> Any:
    """Return the module of the standard library, which Python has since 3.14."""
    try:
        return import_module("compression.zstd")
    except ImportError:
        return None


def _arrow() -> Any:
    try:
        return import_module("pyarrow")
    except ImportError:
        raise UsageError(
            ".zst needs Python 3.14, or the package pyarrow: pip install 'dstash[parquet]'"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
