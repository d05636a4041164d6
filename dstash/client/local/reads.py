"""Look-ups at level ``one`` in the stores of peers of this machine, without a request.

``lookup`` answers only where it is sure of the answer. In all other cases it returns ``ASK``, and a
peer is asked as if nothing had happened: it has the better error, repairs what is corrupt, and
tells the client a newer topology.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from dstash import loops
from dstash.client.local.batches import ABSENT, ASK, MOST_KEYS
from dstash.client.local.rules import is_listed, routes, why_foreign
from dstash.client.routing import Table, sort_places
from dstash.client.session import Session
from dstash.cluster.topology.view import View
from dstash.config.client import ClientSettings
from dstash.errors import DStashError, ProtocolError, StoreError
from dstash.limits import MAX_KEY_BYTES, MAX_TTL_SECONDS, PARTITIONS, check_index
from dstash.logger import Logger
from dstash.store.record import (
    CHECKSUM_END,
    HEAD_BYTES,
    MASK,
    PLAIN,
    VERSION_END,
    is_live_head,
)
from dstash.store.register.ballot import SIGN
from dstash.store.sharing.places import StorePlace, this_machine
from dstash.types import Level, RecordFlag
from dstash.wire.keys import Key, encode_key, encode_keys
from dstash.wire.values import TypeRegistry

if TYPE_CHECKING:
    from dstash.store.sharing.reading import SharedStore

_log = Logger("dstash.client")

#: How often (seconds) stores are looked at that cannot be read now.
_LOOK_INTERVAL_S: Final = 0.25
_NEVER: Final = float("inf")
_NUMBERS: Final = (float, int)
_MAX_INDEXES: Final = 32
#: Reasons that are logged, at most.
_MAX_WARNINGS: Final = 32
_REGISTER: Final = RecordFlag.REGISTER.value
#: How many records of a batch are read in one snapshot, and about how many bytes.
_SNAPSHOT_KEYS: Final = 500
_SNAPSHOT_BYTES: Final = 4 * 1024 * 1024
#: Neighbouring partitions whose keys are not sorted further.
_BAND: Final = 16
_PREFIXES: Final = [partition.to_bytes(2, "big") for partition in range(PARTITIONS)]
_ONE: Final = Level.ONE.value

#: Reads a record, given its storage key; or many.
Read = Callable[[bytes], bytes | None]
ReadAll = Callable[[list[bytes]], list[bytes | None]]

_NOWHERE: Final[Table[Read | None]] = Table([None] * PARTITIONS)


def _no_register(payload: bytes) -> bytes:
    raise ProtocolError("a register is in an index without registers")


class LocalLookup(Protocol):
    """Look-ups without a request."""

    def lookup(
        self, index: str, key: Key, default: Any, timeout: float | None, read: str | Level | None
    ) -> Any:
        """Return the value of a key, ``default`` if there is none, or ``ASK``."""

    def lookup_all(
        self, index: str, keys: Sequence[Key], timeout: float | None, read: str | Level | None
    ) -> list[Any] | None:
        """Return the value of each key, ``ABSENT`` or ``ASK``; None is ``ASK`` for all of them."""

    def close(self) -> None:
        """Close all stores."""


class NoLocalReads:
    """Local reads that are turned off."""

    def lookup(
        self, index: str, key: Key, default: Any, timeout: float | None, read: str | Level | None
    ) -> Any:
        """Return ``ASK``."""
        return ASK

    def lookup_all(
        self, index: str, keys: Sequence[Key], timeout: float | None, read: str | Level | None
    ) -> list[Any] | None:
        """Return None."""
        return None

    def close(self) -> None:
        """Do nothing."""


class _Name(NamedTuple):
    """An index: the part of storage keys that names it, and the salt of its checksums."""

    infix: bytes
    salt: int


class LocalReads:
    """The local reads of one client in one process. Safe for any number of threads.

    Args:
        session: the state that the calls of the client share.
        types: decodes values.
        level: of look-ups that name none.
    """

    def __init__(self, session: Session, types: TypeRegistry, level: Level) -> None:
        self._session = session
        self._types = types
        self._reads_one = level is Level.ONE
        self._routes = _NOWHERE
        #: Reads many records of the same store as a function in ``_routes``.
        self._reads_all: dict[Read | None, ReadAll] = {}
        self._names: dict[str, _Name] = {}
        #: The view and the places by which ``_routes`` was computed.
        self._view: object = None
        self._places: object = None
        #: When the stores are looked at again that cannot be read now.
        self._next_look = _NEVER
        self._refreshing = threading.Lock()
        self._stores: dict[str, SharedStore] = {}
        self._is_closed = False
        self._warned: set[str] = set()
        _open.add(self)

    def lookup(
        self, index: str, key: Key, default: Any, timeout: float | None, read: str | Level | None
    ) -> Any:
        """Return the value of a key, ``default`` if there is none, or ``ASK``.

        Arguments that are not allowed lead to ``ASK``, too: the request refuses them.
        """
        if (read != _ONE) if read is not None else not self._reads_one:
            return ASK
        name = self._begin(index, timeout)
        if name is None:
            return ASK
        if type(key) is str and key.isascii() and 0 < len(key) <= MAX_KEY_BYTES:
            encoded = key.encode()
        else:
            try:
                encoded = encode_key(key)
            except DStashError:
                return ASK
        number = xxh3_64_intdigest(encoded)
        partition = number & MASK
        read_record = self._routes[partition]
        if read_record is None:
            return self._look_again()
        try:
            record = read_record(_PREFIXES[partition] + name.infix + encoded)
        except Exception as error:  # NotServed, whose module needs LMDB
            return self._lapsed(error)
        if record is None:
            return default
        if xxh3_64_digest(record[CHECKSUM_END:], number ^ name.salt) != record[:CHECKSUM_END]:
            return ASK
        tail = record[VERSION_END:HEAD_BYTES]
        if tail != PLAIN:
            if len(record) < HEAD_BYTES or tail[0] & _REGISTER:
                return ASK
            # By the clock of this machine, as the peer would.
            if not is_live_head(tail, time.time_ns() // 1_000_000):
                return default
        try:
            return self._types.decode(record[HEAD_BYTES:])
        except DStashError:
            return ASK

    def lookup_all(
        self, index: str, keys: Sequence[Key], timeout: float | None, read: str | Level | None
    ) -> list[Any] | None:
        """Return the value of each key, ``ABSENT`` or ``ASK``; None is ``ASK`` for all of them."""
        if len(keys) > MOST_KEYS or ((read != _ONE) if read is not None else not self._reads_one):
            return None
        name = self._begin(index, timeout)
        if name is None:
            return None
        try:
            encoded = encode_keys(keys)
        except DStashError:
            return None
        values: list[Any] = [ASK] * len(keys)
        reads_all, routed = self._reads_all, self._routes
        size = max(1, min(_SNAPSHOT_KEYS, int(_SNAPSHOT_BYTES / self._session.value_bytes)))
        for read_record, places in sort_places(encoded, routed, _BAND).items():
            read_all = reads_all.get(read_record)
            for begin in range(0, len(places) if read_all is not None else 0, size):
                try:
                    self._read_some(read_all, name, encoded, places[begin : begin + size], values)
                except Exception as error:  # NotServed, whose module needs LMDB
                    self._lapsed(error)
                    break
        return values

    def close(self) -> None:
        """Close all stores, unless other clients of this process use them."""
        self._is_closed = True
        self._routes = _NOWHERE
        _open.discard(self)
        while self._stores:
            self._leave(next(iter(self._stores)))

    def forget(self) -> None:
        """Use no store any more, because they belong to the parent of this process."""
        self._is_closed = True
        self._routes, self._stores = _NOWHERE, {}

    # -- inside

    def _begin(self, index: str, timeout: float | None) -> _Name | None:
        """Take the newest view; return the index. None: a peer has to be asked."""
        session = self._session
        if session.view is not self._view or session.places is not self._places:
            self._refresh()
        if self._routes is _NOWHERE:
            self._look_again()
            return None
        if timeout is not None and (
            type(timeout) not in _NUMBERS or not 0 < timeout <= MAX_TTL_SECONDS
        ):
            return None
        if type(index) is not str or session.lagging:
            return None
        return self._names.get(index) or self._learn(index)

    def _read_some(
        self,
        read_all: Any,
        name: _Name,
        encoded: Sequence[bytes],
        places: memoryview,
        values: list[Any],
    ) -> None:
        """Set the values of some keys, by their places, if they are in one store."""
        picked = loops.pick(encoded, places)
        infix, salt = name
        numbers = map(xxh3_64_intdigest, picked)
        located = [
            _PREFIXES[number & MASK] + infix + key
            for number, key in zip(numbers, picked, strict=True)
        ]
        records = read_all(located)
        now = time.time_ns() // 1_000_000
        try:
            frame, missing, corrupt = loops.join_live(salt, picked, records, now, _no_register)
            for place in missing:
                values[places[place]] = ABSENT
            decoded = self._types.decode_array(frame)
        except DStashError:
            return
        if len(decoded) != len(picked):
            return
        for place in missing:
            decoded[place] = ABSENT
        for place in corrupt:
            decoded[place] = ASK
        loops.put_at(values, places, decoded)
        self._session.learn_size(len(frame) / max(1, len(picked) - len(missing)))

    def _learn(self, index: str) -> _Name | None:
        """Return an index that was not used before; None: its look-ups need a request."""
        try:
            encoded = check_index(index)
        except DStashError:
            return None
        if index.startswith(SIGN):
            return None
        if len(self._names) >= _MAX_INDEXES:
            self._names = {}
        name = _Name(bytes((len(encoded),)) + encoded, xxh3_64_intdigest(encoded))
        self._names[index] = name
        return name

    def _look_again(self) -> Any:
        """Look from time to time whether more can be read; returns ``ASK``."""
        if time.monotonic() >= self._next_look:
            self._refresh()
        return ASK

    def _lapsed(self, error: Exception) -> Any:
        """Take note that a store could not be read; returns ``ASK``."""
        if not isinstance(error, _not_served()):
            raise error
        if str(error):
            self._warn("", str(error))
        if self._next_look == _NEVER:
            self._next_look = 0.0  # its peer may have stored another mark
        return self._look_again()

    def _refresh(self) -> None:
        """Compute what can be read where, by the current view and marks."""
        if self._is_closed or not self._refreshing.acquire(blocking=False):
            return
        try:
            self._route()
        finally:
            self._refreshing.release()
        self._close_if_closed()  # meanwhile, by another thread

    def _close_if_closed(self) -> None:
        if self._is_closed:
            self.close()

    def _route(self) -> None:
        session = self._session
        view, places = session.view, session.places
        for peer in [peer for peer in self._stores if peer not in places]:
            self._leave(peer)
        self._next_look = _NEVER
        if view is not None:
            here = this_machine()
            usable = {
                peer: place
                for peer, place in places.items()
                if is_listed(view, peer, place) and here.is_same(place.machine)
            }
            found = {peer: self._renewed(view, peer, place) for peer, place in usable.items()}
            stores = {peer: store for peer, store in found.items() if store is not None}
            marks = {peer: store.mark for peer, store in stores.items()}
            reads = {peer: partial(stores[peer].read, mark.ticket) for peer, mark in marks.items()}
            self._reads_all = {
                reads[peer]: partial(stores[peer].read_all, mark.ticket)
                for peer, mark in marks.items()
            }
            table = routes(view, marks)
            has_any = any(peer is not None for peer in table)
            self._routes = (
                Table(None if peer is None else reads[peer] for peer in table)
                if has_any
                else _NOWHERE
            )
            if any(mark.epoch != view.epoch for mark in marks.values()) or usable.keys() - marks:
                self._next_look = time.monotonic() + _LOOK_INTERVAL_S
        self._view, self._places = view, places

    def _renewed(self, view: View, peer: str, place: StorePlace) -> SharedStore | None:
        """Return the store of a peer with its present mark; None if it cannot be read now."""
        try:
            not_served = _not_served()
        except ImportError:  # LMDB is an optional dependency
            self._is_closed = True
            return None
        try:
            store = self._store(peer, place)
            store.renew()
        except not_served:
            return None
        except (OSError, StoreError) as error:
            self._warn(peer, str(error))
            return None
        if why := why_foreign(view, peer, place, store.owner):
            self._warn(peer, why)
            return None
        return store

    def _store(self, peer: str, place: StorePlace) -> SharedStore:
        from dstash.store.sharing import reading  # LMDB is optional

        known = self._stores.get(peer)
        if known is not None and known.place == place:
            return known
        if known is not None:
            self._leave(peer)
        store = self._stores[peer] = reading.use(place)
        return store

    def _leave(self, peer: str) -> None:
        from dstash.store.sharing import reading

        store = self._stores.pop(peer, None)
        if store is not None:
            reading.leave(store)

    def _warn(self, peer: str, why: str) -> None:
        """Say once why a store is not read."""
        if why not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(why)
            _log.warning("local reads are not used", peer=peer, why=why)


def open_local_reads(
    settings: ClientSettings, session: Session, types: TypeRegistry
) -> LocalLookup:
    """Return the local reads of a client with these settings."""
    if settings.local_reads == "off":
        return NoLocalReads()
    return LocalReads(session, types, settings.read)


@cache
def _not_served() -> type[Exception]:
    from dstash.store.sharing.reading import NotServed  # LMDB is optional

    return NotServed


#: The local reads of this process that are not closed.
_open: Final[weakref.WeakSet[LocalReads]] = weakref.WeakSet()


def _forget_parent() -> None:
    for reads in list(_open):
        reads.forget()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
