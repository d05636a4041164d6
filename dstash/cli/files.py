"""The files of import and export: names, and how a file is read or replaced."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from dstash.cli.arguments import STDIN
from dstash.cli.failures import naming
from dstash.cli.formats.compression import compressed, decompressed
from dstash.errors import UsageError

#: What these names mean where they are not links to descriptors, as in a container without them.
_STANDARD: Final = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}

#: As many as Linux follows in a path.
_MAX_LINKS: Final = 40


class Source(NamedTuple):
    """A file that is read in order.

    Attributes:
        stream: its content, decompressed.
        position: returns how many bytes of the file were read.
        size: bytes of the file; None if unknown.
    """

    stream: BinaryIO
    position: Callable[[], int]
    size: int | None


def expect_file(file: str) -> None:
    """Raise ``UsageError`` if a file cannot be read because there is none, or it is a directory."""
    if file == STDIN:
        return
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise UsageError(f"{file}: {os.strerror(errno.EISDIR)}")


@contextmanager
def source(file: str) -> Iterator[Source]:
    """Open a file, or stdin for ``-``; a name that ends in ``.gz`` or ``.zst`` is decompressed.

    Raises:
        UsageError: the file cannot be opened.
        OSError: reading failed; the error names the file.
    """
    if file == STDIN:
        counted = _Counted(sys.stdin.buffer)
        yield Source(counted, counted.tell, None)  # type: ignore[arg-type]  # has all that is used
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115  # closed below
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    with opened, naming(file):
        raw = opened if opened.seekable() else _Counted(opened)
        size = os.fstat(opened.fileno()).st_size
        with decompressed(file, raw) as stream:  # type: ignore[arg-type]  # has all that is used
            yield Source(stream, raw.tell, size or None)


class _Counted:
    """A stream with a position, which a pipe does not have."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._position += len(data)
        return data

    def readline(self, size: int = -1) -> bytes:
        data = self._stream.readline(size)
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return False


@contextmanager
def target(file: str) -> Iterator[BinaryIO]:
    """Open a file to write to, or stdout for ``-``.

    A regular file, or the file that a symbolic link leads to, is replaced when the block ends
    without an exception: atomically, and it keeps its mode. Anything else, such as a device, a FIFO
    or ``/dev/fd/63``, is written to. A name that ends in ``.gz`` or ``.zst`` is compressed.

    Raises:
        UsageError: the file cannot be opened.
        OSError: writing failed; the error names the file.
    """
    if file == STDIN:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with (
        naming(file),
        _in_place(file) or _replaced(file) as opened,
        compressed(file, opened) as out,
    ):
        yield out


def _in_place(file: str) -> BinaryIO | None:
    """Open a file that is not to be replaced; None for a regular file and for a new name."""
    try:
        descriptor = _descriptor(file)
        if descriptor is not None:
            # A second open of a regular file would truncate it, and ignore that it is appended to.
            return os.fdopen(os.dup(descriptor), "wb")
        if stat.S_ISREG(os.stat(file).st_mode):
            return None
        return open(os.open(file, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC), "wb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def _descriptor(file: str) -> int | None:
    """Return the descriptor of this process for a name such as ``/dev/stdout``."""
    path = os.path.abspath(file)
    for _ in range(_MAX_LINKS):
        folder, name = os.path.split(path)
        if name.isdigit() and os.path.realpath(folder) in ("/dev/fd", f"/proc/{os.getpid()}/fd"):
            return int(name)
        if not os.path.islink(path):
            return _STANDARD.get(path)
        path = os.path.join(folder, os.readlink(path))
    return None


@contextmanager
def _replaced(file: str) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``file``, and is removed after an exception."""
    path = Path(os.path.realpath(file))
    partial = path.with_name(f".dstash-{secrets.token_hex(8)}.partial")
    try:
        with _created(partial, file) as opened:
            yield opened
            opened.flush()
            _take_mode(opened.fileno(), path)
            os.fsync(opened.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _created(partial: Path, file: str) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return open(os.open(partial, flags, 0o600), "w+b")
    except PermissionError as error:
        text = f"{file}: no temporary file can be created in {partial.parent}: {error.strerror}"
        raise UsageError(text) from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def _take_mode(handle: int, path: Path) -> None:
    """Give a file the mode of the file that it replaces, or that of a new file."""
    try:
        earlier = path.stat()
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)
        return
    if os.geteuid() == 0:  # only root may give a file away
        os.fchown(handle, earlier.st_uid, earlier.st_gid)
    os.fchmod(handle, stat.S_IMODE(earlier.st_mode))
