"""The topology of a local cluster: one value in a small file, changed by compare-and-set.

A write creates a new file, syncs it, and renames it over the old file, so that a reader sees either
of them completely. The first line has a checksum of the rest, which is the topology as JSON. The
file is never mapped, so that reading a truncated file gives an error, not SIGBUS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from xxhash import xxh3_64_intdigest

from dstash.cluster.membership.interface import NOTHING, StoredTopology, Token
from dstash.cluster.membership.local.lock import LockFile
from dstash.cluster.topology.topology import Topology
from dstash.errors import MembershipError, MembershipUnreachable, ProtocolError

NAME: Final = "topology.json"
_NEW: Final = "topology.new"
_LOCK: Final = "topology.writing"
_MARK: Final = b"dstash-topology 1 "
#: The maximum size of the file; a topology takes some hundred bytes a member.
_MAX_FILE_BYTES: Final = 64 * 1024 * 1024
#: How long a write waits for another writer, which may be stopped.
_WRITE_LOCK_TIMEOUT_S: Final = 5.0

#: Identifies a state of the file without reading it.
_FileState = tuple[int, int, int, int]


class TopologyFile:
    """The file in one directory. Thread-safe; several processes may use it at once.

    Methods may raise ``OSError`` when the directory cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._directory = directory
        self._seen: tuple[_FileState, Token] | None = None

    def read(self) -> StoredTopology:
        """Return the stored topology; ``corruption`` is set if its checksum does not match.

        Raises:
            MembershipError: the content is not a topology that this version supports.
        """
        content = self._content(self.path)
        if content is None:
            return StoredTopology(None, NOTHING)
        token = _token(content)
        body = _body(content)
        if body is None:
            return StoredTopology(None, token, f"{self.path} is corrupt")
        try:
            return StoredTopology(Topology.decode(body), token)
        except ProtocolError as error:
            raise MembershipError(f"{self.path}: {error}") from None

    def token(self) -> Token:
        """Return the token of the stored topology."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return NOTHING
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        seen = self._seen
        if seen is None or seen[0] != state:
            content = self._content(self.path)
            seen = (state, NOTHING if content is None else _token(content))
            self._seen = seen
        return seen[1]

    def compare_and_set(self, topology: Topology, token: Token) -> bool:
        """Store ``topology`` if the stored topology has ``token``; return whether it was stored.

        Raises:
            MembershipUnreachable: another process holds the write lock for too long.
        """
        with self._opened() as directory, self._write_lock(directory):
            content = self._content(NAME, directory)
            if (NOTHING if content is None else _token(content)) != token:
                return False
            _replace(directory, _framed(topology.encode()))
            return True

    def create(self, encoded: bytes) -> None:
        """Store an encoded topology if there is none."""
        with self._opened() as directory, self._write_lock(directory):
            if self._content(NAME, directory) is None:
                _replace(directory, _framed(encoded))

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the directory, so that a write stays in it even if it is moved."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield directory
        finally:
            os.close(directory)

    @contextmanager
    def _write_lock(self, directory: int) -> Iterator[None]:
        lock = LockFile.take(_LOCK, _WRITE_LOCK_TIMEOUT_S, directory)
        if lock is None:
            path = self._directory / _LOCK
            raise MembershipUnreachable(f"{path} is held for more than {_WRITE_LOCK_TIMEOUT_S:g} s")
        try:
            yield
        finally:
            lock.release()

    def _content(self, path: Path | str, directory: int | None = None) -> bytes | None:
        def opened(name: str, flags: int) -> int:
            return os.open(name, flags, dir_fd=directory)

        try:
            with open(path, "rb", opener=opened) as file:
                return file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            self._check_directory()
            return None

    def _check_directory(self) -> None:
        # A missing directory, such as an unmounted disk, does not mean that there is no topology.
        os.stat(self._directory)


def _framed(encoded: bytes) -> bytes:
    return b"%s%016x\n%s" % (_MARK, xxh3_64_intdigest(encoded), encoded)


def _body(content: bytes) -> bytes | None:
    """Return the topology in a file's content; None if the content is corrupt."""
    line, _, body = content.partition(b"\n")
    return body if line + b"\n" + body == _framed(body) else None


def _token(content: bytes) -> Token:
    """Return a hash of the content that is never ``NOTHING``."""
    return xxh3_64_intdigest(content) >> 1 | 1 << 62


def _replace(directory: int, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC

    def opened(name: str, _: int) -> int:
        return os.open(name, flags, 0o600, dir_fd=directory)

    with open(_NEW, "wb", opener=opened) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(_NEW, NAME, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)
