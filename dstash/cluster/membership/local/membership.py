"""Membership in a directory, for peers on one machine, without a server.

``<directory>/<cluster>/`` contains ``topology.json``, one lock file per peer in ``peers`` with the
announcement as content, and the named locks in ``locks``. The kernel releases the locks of a
process that ends, so the next poll detects it.

The directory may be deleted, moved or replaced while peers run. At each poll an announced peer
compares its lock file with the file at the path; if they differ, it creates the directory again and
takes its lock there.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dstash.cluster.membership.interface import StoredTopology, Token
from dstash.cluster.membership.local.announcements import announcements_in, read_announcement
from dstash.cluster.membership.local.lock import LOCK_TIMEOUT_S, LockFile
from dstash.cluster.membership.local.topology_file import TopologyFile
from dstash.cluster.topology.announcement import Announcement, encode
from dstash.cluster.topology.names import safe_name
from dstash.cluster.topology.topology import Topology
from dstash.errors import MembershipError, MembershipUnreachable, PeerIdInUse
from dstash.logger import Logger
from dstash.store.directory import network_kind
from dstash.store.legacy_topology import read_legacy_topology

#: Seconds between two polls, and once nothing has changed for some time.
_POLL_INTERVAL_S: Final = 0.1
_CALM_INTERVAL_S: Final = 1.0
_CALM_AFTER_S: Final = 10.0
#: Where earlier versions kept the topology.
_LEGACY: Final = "topology.lmdb"

_log = Logger("dstash.membership")

_Observation = tuple[Token, dict[str, Announcement]]


class LocalMembership:
    """A ``Membership`` in a directory of this machine (not on a network file system).

    A process may open any number of them, but must not use them after a fork.

    Args:
        directory: shared by all peers of the cluster; created if missing.
        cluster: the name of the cluster.
        patient: whether to ignore that the directory cannot be used now.

    Raises:
        MembershipError: the directory cannot be used.
    """

    def __init__(self, directory: Path, cluster: str, *, patient: bool = False) -> None:
        self.cluster = cluster
        self._home = directory / safe_name(cluster)
        self._peers, self._locks = self._home / "peers", self._home / "locks"
        self._peers_path = os.fspath(self._peers)  # a path is read ten times a second
        self._topology = TopologyFile(self._home)
        try:
            self._make_directory()
        except OSError as error:
            if not patient:
                raise MembershipError(
                    f"cannot use {directory}: {error.strerror}; set local_dir to a directory that "
                    "this user can write"
                ) from None
        if kind := network_kind(directory):
            raise MembershipError(
                f"{directory} is on a network file system ({kind}); "
                "the local membership is for one machine, use Consul for several"
            )
        self._mutex = threading.Lock()  # guards the next five attributes
        self._peer: str | None = None
        self._peer_path = ""
        self._announcement: Announcement | None = None
        self._held: LockFile | None = None
        self._named: dict[str, LockFile] = {}
        self._seen: _Observation | None = None
        self._changed_at = time.monotonic()
        self._woken = threading.Event()
        self._is_closed = False

    def read(self) -> StoredTopology:
        """See ``Membership.read``. ``MembershipError`` if the stored value is not a topology."""
        with self._usable():
            return self._topology.read()

    def compare_and_set(self, topology: Topology, token: Token) -> bool:
        """See ``Membership.compare_and_set``."""
        with self._usable():
            return self._topology.compare_and_set(topology, token)

    def announce(self, announcement: Announcement) -> None:
        """See ``Membership.announce``."""
        path = self._peers / safe_name(announcement.peer)
        with self._usable(), self._mutex:
            if self._peer not in (None, announcement.peer):
                raise MembershipError(f"already announced as {self._peer!r}; resign first")
            if self._held is None:
                self._make_directory()
                self._held, self._peer = _take(path, announcement.peer), announcement.peer
                self._peer_path = os.fspath(path)
                _log.info("announced", peer=announcement.peer)
            self._held.write(encode(announcement))
            self._announcement = announcement

    def is_announced(self) -> bool:
        """See ``Membership.is_announced``."""
        return self._held is not None

    def alive(self) -> Mapping[str, Announcement]:
        """See ``Membership.alive``."""
        with self._usable():
            return self._alive()

    def watch(self, timeout: float) -> bool:
        """See ``Membership.watch``. The first call returns True at once."""
        try:
            return self._wait_for_change(time.monotonic() + timeout)
        except MembershipError:
            if self._is_closed:  # by another thread, during the poll
                return False
            raise

    def wake(self) -> None:
        """See ``Membership.wake``."""
        # What this call is for may show a moment later: the kernel releases the lock of a process
        # that ends after its connections.
        self._changed_at = time.monotonic()
        self._woken.set()

    def acquire(self, name: str) -> bool:
        """See ``Membership.acquire``. Also False while this peer is not announced."""
        path = self._locks / safe_name(name)
        with self._usable(), self._mutex:
            if self._held is None:
                return False
            if name not in self._named and (lock := LockFile.take(path)) is not None:
                self._named[name] = lock
            return name in self._named

    def release(self, name: str) -> None:
        """See ``Membership.release``."""
        with self._mutex:
            if (lock := self._named.pop(name, None)) is not None:
                lock.release()

    def resign(self) -> None:
        """See ``Membership.resign``."""
        with self._mutex:
            self._release_named()
            if self._held is not None:
                self._held.release()
                _log.info("resigned", peer=self._peer)
            self._held = self._peer = self._announcement = None

    def close(self) -> None:
        """See ``Membership.close``."""
        self.resign()
        with self._mutex:
            self._is_closed = True
        self._woken.set()

    def _wait_for_change(self, deadline: float) -> bool:
        while not self._has_changed():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            interval = poll_interval(time.monotonic() - self._changed_at)
            if self._woken.wait(min(interval, remaining)):
                self._woken.clear()
                return self._has_changed()
        return True

    def _has_changed(self) -> bool:
        with self._usable():
            self._keep_lock()
            seen = self._topology.token(), self._alive()
        is_changed = seen != self._seen
        if is_changed:
            self._changed_at = time.monotonic()
        self._seen = seen
        return is_changed

    def _make_directory(self) -> None:
        for folder in (self._peers, self._locks):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._home, self._peers, self._locks):
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        legacy = self._home / _LEGACY
        if not self._topology.path.exists() and legacy.exists():
            self._take_over(legacy)

    def _take_over(self, legacy: Path) -> None:
        """Store the topology of an earlier version, and rename its file."""
        encoded = read_legacy_topology(legacy)
        if encoded is not None:
            self._topology.create(encoded)
        aside = legacy.with_name(f"{_LEGACY}.{'unreadable' if encoded is None else 'taken-over'}")
        with suppress(FileNotFoundError):  # another process was faster
            legacy.rename(aside)
        _log.info("topology of an earlier version", file=str(aside), found=encoded is not None)

    def _keep_lock(self) -> None:
        """Take the lock again if the path leads to another file than the locked file.

        Raises:
            PeerIdInUse: another process holds the lock there.
        """
        with self._mutex:
            held, announcement = self._held, self._announcement
            if held is None or announcement is None:
                return
            if held.is_at(self._peer_path):
                return
            self._make_directory()
            taken = _take(Path(self._peer_path), announcement.peer)
            taken.write(encode(announcement))
            self._held = taken
            held.release()
            self._release_named()
            _log.warning(
                "the directory of the membership was deleted, moved or replaced; announced again",
                directory=str(self._home),
            )

    def _release_named(self) -> None:
        for lock in self._named.values():
            lock.release()
        self._named.clear()

    def _alive(self) -> dict[str, Announcement]:
        return announcements_in(self._peers_path)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        if self._is_closed:
            raise MembershipError("the membership is closed")
        try:
            yield
        except OSError as error:
            where = error.filename or self._peers.parent
            raise MembershipUnreachable(f"{where}: {error.strerror}") from None


def poll_interval(unchanged: float) -> float:
    """Return the seconds until the next poll, if nothing has changed for ``unchanged`` seconds.

    A change seldom comes alone, and each of its steps waits for the polls of all members.
    """
    return _POLL_INTERVAL_S if unchanged < _CALM_AFTER_S else _CALM_INTERVAL_S


def _take(path: Path, peer: str) -> LockFile:
    lock = LockFile.take(path, LOCK_TIMEOUT_S)
    if lock is not None:
        return lock
    holder = read_announcement(path)
    where = f" at {holder.address}" if holder is not None else ""
    raise PeerIdInUse(f"peer id {peer!r} is in use by a live process{where}")
