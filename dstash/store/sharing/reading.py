"""Reads from the store of a peer of this machine, next to the peer: LMDB, and the heartbeat.

LMDB must not be opened twice in one process, so all clients of a process share one object for each
store. A forked child must not use the environment of its parent, nor close it: it drops it, and
opens the store again.
"""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import lmdb

from dstash.errors import CorruptStore, StoreError
from dstash.store.directory import DATA_FILE, LOCK_FILE
from dstash.store.sharing.heartbeat import (
    BEATEN_AT,
    MAX_AGE_NS,
    TICKET,
    SeenHeartbeat,
    boot_time_ns,
)
from dstash.store.sharing.mark import SERVING_MARK, Generation, ServingMark
from dstash.store.sharing.places import StorePlace

#: The formats of a store that this version reads.
_FORMATS: Final = frozenset({b"1", b"2"})
_MARK_KEY: Final = b"mark:" + SERVING_MARK
_MAX_DATABASES: Final = 8
#: The least address space for the data file, which grows; it costs no memory.
_LEAST_MAP_BYTES: Final = 1 << 36
_GROWTH: Final = 4
#: How long (seconds) to wait until no thread reads, before an environment is closed.
_CLOSE_TIMEOUT_S: Final = 1.0
_CLOSE_PAUSE_S: Final = 0.001


#: A heartbeat that was never written.
_SILENCE: Final = memoryview(bytes(64)).cast("Q")


class NotServed(Exception):  # no error: the peer has to be asked
    """The store cannot be read now: its peer has to be asked. The text is empty if all is well."""


class SharedStore:
    """The store of a peer, open for reading next to the peer. Safe for any number of threads.

    It is opened by ``renew``, as soon as its peer lets others read.

    Args:
        place: where it is.
    """

    def __init__(self, place: StorePlace) -> None:
        self.place = place
        self.mark = ServingMark(0)
        #: The cluster and the peer that own the store.
        self.owner = "", ""
        #: How many clients use it.
        self.users = 0
        self._directory = Path(place.directory)
        self._lock = threading.Lock()
        #: Has an entry for each read that is not finished.
        self._busy: list[None] = []
        self._heartbeat: SeenHeartbeat | None = None
        self._environment: Any = None
        #: The data file and the lock file that are open. A peer that starts may replace the lock
        #: file alone: LMDB would then show old snapshots of the data file.
        self._files = Generation(0, 0), Generation(0, 0)
        self._words = _SILENCE
        self._begin: Any = None
        self._meta: Any = None
        self._content = b""
        #: The last snapshot that was found to have the mark.
        self._verified = -1

    def read(self, ticket: int, storage_key: bytes) -> bytes | None:
        """Return the record of a key; None if there is none.

        Args:
            ticket: of the mark by which the key was routed.
            storage_key: of a partition in that mark.

        Raises:
            NotServed: the peer has to be asked.
        """
        words = self._words
        if words[TICKET] != ticket or boot_time_ns() - words[BEATEN_AT] > MAX_AGE_NS:
            raise NotServed
        busy = self._busy
        busy.append(None)
        try:
            transaction = self._begin()
            try:
                if transaction.id() != self._verified or ticket != self.mark.ticket:
                    self._verify(transaction, ticket)
                record: bytes | None = transaction.get(storage_key)
            finally:
                transaction.abort()
        except (lmdb.Error, TypeError) as error:
            raise NotServed(_why(error)) from None
        finally:
            busy.pop()
        if words[TICKET] != ticket:  # the peer took it back, and may have reused what was read
            raise NotServed
        return record

    def read_all(self, ticket: int, storage_keys: list[bytes]) -> list[bytes | None]:
        """Return the records of keys in one snapshot, None for a missing one; see ``read``."""
        words = self._words
        if words[TICKET] != ticket or boot_time_ns() - words[BEATEN_AT] > MAX_AGE_NS:
            raise NotServed
        busy = self._busy
        busy.append(None)
        try:
            transaction = self._begin()
            try:
                self._verify(transaction, ticket)
                records: list[bytes | None] = list(map(transaction.get, storage_keys))
            finally:
                transaction.abort()
        except (lmdb.Error, TypeError) as error:
            raise NotServed(_why(error)) from None
        finally:
            busy.pop()
        if words[TICKET] != ticket:
            raise NotServed
        return records

    def renew(self) -> None:
        """Take the mark that holds now; open the store, or its new data file, if needed.

        Raises:
            NotServed: the peer does not let others read now.
            OSError: this process may not read the files.
            StoreError: the store cannot be read; the text says why.
        """
        with self._lock:
            heartbeat = self._heartbeat
            if heartbeat is None or not self._is_fresh():
                heartbeat = self._find_heartbeat()  # another process may have made a new file
            ticket = self._words[TICKET]
            if not ticket or not self._is_fresh():
                raise NotServed
            if heartbeat.process == os.getpid():
                raise StoreError("the peer runs in this process")
            files = heartbeat.generation, self._lock_file()
            if self._environment is None or self._files != files:
                self._open(*files)
            try:
                self._take_mark(ticket)
            except lmdb.MapResizedError:  # the data file has outgrown the map
                self._open(*files)
                self._take_mark(ticket)
            if self._words[TICKET] != ticket or self._lock_file() != files[1]:
                raise NotServed  # the files were replaced meanwhile

    def close(self) -> None:
        """Close the files, as soon as no thread reads.

        Raises:
            StoreError: a thread reads for too long.
        """
        with self._lock:
            self._close_environment()
            self._heartbeat, self._words = None, _SILENCE

    def forget(self) -> None:
        """Drop the files of the parent of this process, without closing them.

        To close them would free the snapshots of the parent.
        """
        self._begin = self._meta = self._environment = None
        self._heartbeat, self._words = None, _SILENCE

    # -- inside

    def _is_fresh(self) -> bool:
        return boot_time_ns() - self._words[BEATEN_AT] <= MAX_AGE_NS

    def _find_heartbeat(self) -> SeenHeartbeat:
        heartbeat = self._heartbeat = SeenHeartbeat(self._directory)
        self._words = heartbeat.words
        return heartbeat

    def _lock_file(self) -> Generation:
        found = (self._directory / LOCK_FILE).stat()
        return Generation(found.st_dev, found.st_ino)

    def _open(self, generation: Generation, lock_file: Generation) -> None:
        self._close_environment()
        file = self._directory / DATA_FILE
        found = file.stat()
        if (found.st_dev, found.st_ino) != generation:
            raise StoreError(f"{file} is not the data file that the peer uses")
        try:
            environment = lmdb.open(
                os.fspath(self._directory),
                map_size=max(_LEAST_MAP_BYTES, _GROWTH * found.st_size),
                readonly=True,
                create=False,
                max_dbs=_MAX_DATABASES,
                readahead=False,
                lock=True,
            )
        except lmdb.Error as error:
            raise StoreError(f"cannot open {file}: {error}") from None
        try:
            self._meta = environment.open_db(b"meta", create=False)
            records = environment.open_db(b"records", create=False)
            self._check(environment)
        except lmdb.Error as error:
            environment.close()
            raise StoreError(f"cannot read {file}: {error}") from None
        except StoreError:
            environment.close()
            raise
        self._environment, self._files = environment, (generation, lock_file)
        self._begin = partial(environment.begin, records)

    def _check(self, environment: Any) -> None:
        with environment.begin(self._meta) as transaction:
            names = (b"format", b"store_id", b"cluster", b"peer")
            values = [bytes(transaction.get(name) or b"") for name in names]
        if values[0] not in _FORMATS:
            known = ", ".join(sorted(map(bytes.decode, _FORMATS)))
            raise StoreError(
                f"{self._directory} has store format {values[0].decode(errors='replace')!r}; "
                f"this version reads {known}"
            )
        store_id, cluster, peer = (value.decode(errors="replace") for value in values[1:])
        if store_id != self.place.store_id:
            raise StoreError(f"{self._directory} has another store than that of the peer")
        self.owner = cluster, peer

    def _take_mark(self, ticket: int) -> None:
        with self._begin() as transaction:
            content = bytes(transaction.get(_MARK_KEY, None, self._meta) or b"")
            number = transaction.id()
        try:
            mark = ServingMark.decode(content)
        except CorruptStore as error:
            raise StoreError(str(error)) from None
        if mark.ticket != ticket:
            raise NotServed
        self.mark, self._content, self._verified = mark, content, number

    def _verify(self, transaction: Any, ticket: int) -> None:
        """Check that a snapshot has the mark.

        Raises:
            NotServed: it has another one.
        """
        content = transaction.get(_MARK_KEY, None, self._meta)
        if content != self._content or ticket != self.mark.ticket:
            raise NotServed
        self._verified = transaction.id()

    def _close_environment(self) -> None:
        """Close the environment once no thread reads.

        Raises:
            StoreError: a thread reads for too long. A signal handler may have interrupted it.
        """
        begin, self._begin = self._begin, None  # lets no further read begin
        until = time.monotonic() + _CLOSE_TIMEOUT_S
        while self._busy and time.monotonic() < until:
            time.sleep(_CLOSE_PAUSE_S)
        if self._busy:
            self._begin = begin
            raise StoreError("a thread of this process reads from the store for too long")
        environment, self._environment = self._environment, None
        self._content, self.mark = b"", ServingMark(0)
        if environment is not None:
            environment.close()


def _why(error: Exception) -> str:
    """Return what a failed read tells users; empty if the store was closed, or is opened again."""
    return "" if isinstance(error, TypeError | lmdb.MapResizedError) else str(error)


#: The stores that clients of this process use, by device and inode of their directories.
_stores: dict[tuple[int, int], SharedStore] = {}
_stores_lock = threading.Lock()


def use(place: StorePlace) -> SharedStore:
    """Return the object for a store, which all clients of the process share; see ``leave``.

    Raises:
        OSError: the directory cannot be found.
        StoreError: another store is there.
    """
    found = os.stat(place.directory)
    key = found.st_dev, found.st_ino
    with _stores_lock:
        store = _stores.get(key)
        if store is None:
            store = _stores[key] = SharedStore(place)
        elif store.place.store_id != place.store_id:
            raise StoreError(f"{place.directory} has another store than that of the peer")
        store.users += 1
        return store


def leave(store: SharedStore) -> None:
    """End the use of a store; the last client closes it."""
    with _stores_lock:
        store.users -= 1
        if store.users > 0:
            return
        try:
            store.close()
        except StoreError:  # the next client uses what is still open
            return
        for key in [key for key, known in _stores.items() if known is store]:
            del _stores[key]


def _forget_parent() -> None:
    """Let a forked child open stores itself."""
    global _stores, _stores_lock
    parents, _stores, _stores_lock = _stores, {}, threading.Lock()
    for store in parents.values():
        store.forget()


os.register_at_fork(after_in_child=_forget_parent)
