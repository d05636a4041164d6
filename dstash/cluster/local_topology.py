"""The topology of a local cluster: one value in an LMDB file, changed by compare-and-set."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb

from dstash.cluster.local_lock import LockFile
from dstash.cluster.membership import NOTHING, Stored, Token
from dstash.cluster.topology import Topology
from dstash.errors import MembershipError, MembershipUnreachable, ProtocolError
from dstash.limits import MIB

_KEY: Final = b"topology"
_TOKEN_BYTES: Final = 8
#: A topology takes some hundred bytes a member.
_MAP_SIZE: Final = 64 * MIB
_MAX_READERS: Final = 1024
#: A writer that is stopped in the middle holds up the others for this long at most, in seconds.
_WRITE_PATIENCE: Final = 5.0


class TopologyFile:
    """One file, open once in this process however many use it. Thread-safe.

    LMDB locks a file for the whole process, and loses the locks when a second handle is closed;
    so ``open`` hands out one object for each file, and ``close`` counts. In the child of a fork
    the file cannot be used, nor opened again.
    """

    _opened: dict[str, TopologyFile] = {}  # noqa: RUF012 - shared on purpose
    _opening = threading.Lock()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key = os.path.realpath(path)
        self._process = os.getpid()
        self._users = 0
        self._mutex = threading.Lock()  # nobody may be inside while the environment closes
        self._environment = lmdb.open(
            os.fspath(path),
            subdir=False,
            map_size=_MAP_SIZE,
            max_readers=_MAX_READERS,
            mode=0o600,
        )
        self._environment.reader_check()

    @classmethod
    def open(cls, path: Path) -> TopologyFile:
        """Open a file, made when missing. Each ``open`` is followed by one ``close``.

        Raises:
            MembershipError: it cannot be opened.
        """
        key = os.path.realpath(path)
        with cls._opening:
            try:
                found = cls._opened.get(key) or cls._opened.setdefault(key, cls(path))
            except lmdb.Error as error:
                raise MembershipError(f"cannot open the topology: {error}") from None
            found._check_process()
            found._users += 1
            return found

    def close(self) -> None:
        """Close the file, if this was the last user."""
        with self._opening:
            self._users -= 1
            if self._users == 0 and self._process == os.getpid():
                with self._mutex:
                    del self._opened[self._key]
                    self._environment.close()

    def read(self) -> Stored:
        """Return what is stored. ``MembershipError`` when it is no topology."""
        with self._transaction(write=False) as transaction:
            token, encoded = _parse(transaction.get(_KEY))
        if token == NOTHING:
            return Stored(None, NOTHING)
        try:
            return Stored(Topology.decode(encoded), token)
        except ProtocolError as error:
            raise MembershipError(f"{self._path}: {error}") from None

    def token(self) -> Token:
        """Return the token of what is stored."""
        with self._transaction(write=False) as transaction:
            return _parse(transaction.get(_KEY))[0]

    def compare_and_set(self, topology: Topology, token: Token) -> bool:
        """Store ``topology`` if what is stored has ``token``; whether it was stored."""
        encoded = topology.encode()
        with self._write_lock(), self._transaction(write=True) as transaction:
            if _parse(transaction.get(_KEY))[0] != token:
                return False
            following = (token + 1).to_bytes(_TOKEN_BYTES, "big")
            return bool(transaction.put(_KEY, following + encoded))

    @contextmanager
    def _transaction(self, write: bool) -> Iterator[Any]:
        self._check_process()
        try:
            with self._mutex, self._environment.begin(write=write) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise MembershipUnreachable(f"{self._path}: {error}") from None

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise MembershipError(
                f"{self._path} was opened before a fork, and is of no use after it: "
                "start another program instead"
            )

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        """Wait for other writers here, where waiting can end; in LMDB it cannot."""
        path = self._path.with_suffix(".writing")
        lock = LockFile.take(path, _WRITE_PATIENCE)
        if lock is None:
            raise MembershipUnreachable(f"{path} is held for more than {_WRITE_PATIENCE:g} s")
        try:
            yield
        finally:
            lock.release()


def _parse(value: bytes | None) -> tuple[Token, bytes]:
    if value is None:
        return NOTHING, b""
    return int.from_bytes(value[:_TOKEN_BYTES], "big"), value[_TOKEN_BYTES:]
