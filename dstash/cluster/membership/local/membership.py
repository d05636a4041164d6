"""Membership in a directory, for peers of one machine; no server is needed.

In ``<directory>/<cluster>/`` lie ``topology.json``, one lock file a peer under ``peers``, its
content the announcement, and the named locks under ``locks``. The kernel frees the locks of a
process that dies, so a peer's death is seen at the next look.

The directory may be deleted, moved away or replaced while peers run. An announced peer compares its
lock file with the one at the path at each look; when they differ, it makes the directory again and
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
from dstash.cluster.membership.local.lock import PATIENCE, LockFile, read_if_held
from dstash.cluster.membership.local.topology_file import TopologyFile
from dstash.cluster.topology.announcement import Announcement, decode, encode
from dstash.cluster.topology.names import safe_name
from dstash.cluster.topology.topology import Topology
from dstash.errors import MembershipError, MembershipUnreachable, PeerIdInUse
from dstash.logger import Logger
from dstash.store.directory import network_kind
from dstash.store.legacy_topology import read_legacy_topology

_POLL: Final = 0.1
#: Where earlier versions kept the topology.
_LEGACY: Final = "topology.lmdb"
_HALF_WRITTEN_TRIES: Final = 5
_HALF_WRITTEN_PAUSE: Final = 0.002

_log = Logger("dstash.membership")

_Look = tuple[Token, dict[str, Announcement]]


class LocalMembership:
    """A ``Membership`` kept in a directory of this machine (not on a network file system).

    Any number of them may be open in one process, but none is of use after a fork.

    Args:
        directory: made when missing, shared by all peers of the cluster.
        cluster: name of the cluster.
        patient: open it although the directory cannot be used now; it may be usable later.

    Raises:
        MembershipError: the directory cannot be used.
    """

    def __init__(self, directory: Path, cluster: str, *, patient: bool = False) -> None:
        self.cluster = cluster
        self._home = directory / safe_name(cluster)
        self._peers, self._locks = self._home / "peers", self._home / "locks"
        self._topology = TopologyFile(self._home)
        try:
            self._make_directory()
        except OSError as error:
            if not patient:
                raise MembershipError(f"cannot use {directory}: {error.strerror}") from None
        if kind := network_kind(directory):
            raise MembershipError(
                f"{directory} is on a network file system ({kind}); "
                "the local membership is for one machine, use Consul for several"
            )
        self._mutex = threading.Lock()  # guards the four that follow
        self._peer: str | None = None
        self._announcement: Announcement | None = None
        self._held: LockFile | None = None
        self._named: dict[str, LockFile] = {}
        self._seen: _Look | None = None
        self._woken = threading.Event()
        self._is_closed = False

    def read(self) -> StoredTopology:
        """See ``Membership.read``. ``MembershipError`` when what is stored is no topology."""
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
                raise MembershipError(f"announced as {self._peer!r} already: resign first")
            if self._held is None:
                self._make_directory()
                self._held, self._peer = _take(path, announcement.peer), announcement.peer
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
        """See ``Membership.watch``. The first one returns True at once."""
        try:
            return self._wait_for_change(time.monotonic() + timeout)
        except MembershipError:
            if self._is_closed:  # by another thread, while this one looked
                return False
            raise

    def wake(self) -> None:
        """See ``Membership.wake``."""
        self._woken.set()

    def acquire(self, name: str) -> bool:
        """See ``Membership.acquire``. False too while this peer is not announced."""
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
            if self._woken.wait(min(_POLL, remaining)):
                self._woken.clear()
                return self._has_changed()
        return True

    def _has_changed(self) -> bool:
        with self._usable():
            self._keep_lock()
            seen = self._topology.token(), self._alive()
        is_changed = seen != self._seen
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
        """Store the topology that an earlier version has left, and set its file aside."""
        encoded = read_legacy_topology(legacy)
        if encoded is not None:
            self._topology.create(encoded)
        aside = legacy.with_name(f"{_LEGACY}.{'unreadable' if encoded is None else 'taken-over'}")
        with suppress(FileNotFoundError):  # another process was faster
            legacy.rename(aside)
        _log.info("topology of an earlier version", file=str(aside), found=encoded is not None)

    def _keep_lock(self) -> None:
        """Take the lock again where the path leads now, when that is not where it was taken.

        Raises:
            PeerIdInUse: another process has it there.
        """
        with self._mutex:
            held, announcement = self._held, self._announcement
            if held is None or announcement is None:
                return
            path = self._peers / safe_name(announcement.peer)
            if held.is_at(path):
                return
            self._make_directory()
            taken = _take(path, announcement.peer)
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
        found = (_read(entry.path) for entry in os.scandir(self._peers))
        return {one.peer: one for one in found if one is not None}

    @contextmanager
    def _usable(self) -> Iterator[None]:
        if self._is_closed:
            raise MembershipError("the membership is closed")
        try:
            yield
        except OSError as error:
            where = error.filename or self._peers.parent
            raise MembershipUnreachable(f"{where}: {error.strerror}") from None


def _take(path: Path, peer: str) -> LockFile:
    lock = LockFile.take(path, PATIENCE)
    if lock is not None:
        return lock
    holder = _read(path)
    where = f" at {holder.address}" if holder is not None else ""
    raise PeerIdInUse(f"peer id {peer!r} is in use by a live process{where}")


def _read(path: Path | str) -> Announcement | None:
    """Return what a live peer says of itself, giving it time to finish writing it."""
    for _ in range(_HALF_WRITTEN_TRIES):
        content = read_if_held(path)
        if content is None:
            return None
        if (announcement := decode(content)) is not None:
            return announcement
        time.sleep(_HALF_WRITTEN_PAUSE)
    return None
