"""The arguments of calls, checked and turned into operations.

Both clients use it, so that both reject the same arguments with the same errors, before any message
is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypedDict, TypeVar

from dstash.client.discovery import find_seeds
from dstash.client.entries import Round, entries_by_key
from dstash.client.operations.admin import AdminOperation
from dstash.client.operations.batch_lookup import BatchLookup
from dstash.client.operations.batching import Item
from dstash.client.operations.drafts import Query
from dstash.client.operations.indexes.requests import DropOperation, IndexSettingsOperation
from dstash.client.operations.indexes.sizes import IndexesOperation
from dstash.client.operations.reads import ExistsOperation, LookupOperation, RecordOperation
from dstash.client.operations.registers.arguments import check_fence, check_version, new_ttl
from dstash.client.operations.registers.changes import ChangeOperation
from dstash.client.operations.registers.names import check_name, check_registers, has_registers
from dstash.client.operations.registers.pacing import KEYS_PER_ROUND
from dstash.client.operations.registers.request_ids import RequestIds
from dstash.client.operations.registers.wanted import Wanted
from dstash.client.operations.scans import (
    CompactOperation,
    DiscoverOperation,
    RepairOperation,
    StatusOperation,
)
from dstash.client.operations.short.lookup import ShortLookup
from dstash.client.operations.short.write import ShortDelete, ShortPut
from dstash.client.operations.walks import Request, Walk, walk_for
from dstash.client.operations.writes import DeleteOperation, PutOperation, TouchOperation
from dstash.client.results import ChangeResult, Entry, undecodable_error
from dstash.client.session import Session
from dstash.cluster.topology.view import View
from dstash.config.client import ClientSettings
from dstash.errors import LimitError, NoPeers, UsageError
from dstash.limits import MAX_TTL_SECONDS, Ttl, check_index, check_ttl, show_number
from dstash.store.record import Record, build_record
from dstash.types import NEVER, Level, OnError
from dstash.version import with_touch, write_stamp
from dstash.wire import codec
from dstash.wire.keys import Key, as_encoded, encode_key, encode_keys, encode_prefix
from dstash.wire.messages import AdminRequest
from dstash.wire.registers import ANY, ChangeKind
from dstash.wire.values import TypeRegistry, Undecodable


def steady_wall() -> Callable[[], int]:
    """Return a clock: milliseconds since 1970 that never decrease, unlike the system clock."""
    offset = time.time() - time.monotonic()
    return lambda: int((time.monotonic() + offset) * 1000)


def _lease_clock() -> Callable[[], float]:
    """Return a clock that never goes back, and counts while the machine is suspended.

    ``CLOCK_MONOTONIC`` stops while Linux is suspended: a lease that has expired would seem to last.
    ``time.monotonic`` does so on macOS. On Windows it counts, and there are no other clocks.
    """
    if not hasattr(time, "clock_gettime"):
        return time.monotonic
    number = getattr(time, "CLOCK_BOOTTIME", None)
    return partial(time.clock_gettime, time.CLOCK_MONOTONIC if number is None else number)


#: Returns seconds of the clock of leases.
steady: Final = _lease_clock()


_Read = TypeVar("_Read", bound=LookupOperation)


class SettingsOptions(TypedDict, total=False):
    """Settings of an index, as in ``Admin.set_index``."""

    ttl: Ttl | None
    max_ttl: Ttl | None


class Calls:
    """Creates the operations of one client."""

    def __init__(self, settings: ClientSettings, session: Session, types: TypeRegistry) -> None:
        self._settings = settings
        self._session = session
        self._types = types
        self._ids = RequestIds(session)

    @property
    def session(self) -> Session:
        """The state that the calls of the client share."""
        return self._session

    @property
    def timeout(self) -> float:
        """The timeout of a call that has none of its own, in seconds."""
        return self._settings.timeout

    def keys_per_round(self, index: str, usual: int) -> int:
        """Return how many keys of a batch of writes are sent within one timeout."""
        return min(usual, KEYS_PER_ROUND) if has_registers(index) else usual

    def deadline(self, timeout: float | None) -> int:
        """Return the deadline of a call that starts now, in milliseconds of the session's clock.

        Raises:
            LimitError: ``timeout`` is not a finite number of seconds above 0.
        """
        seconds = self._settings.timeout if timeout is None else timeout
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not 0 < seconds <= MAX_TTL_SECONDS:  # false for NaN too
            raise LimitError(
                f"timeout is {show_number(seconds)}; allowed is a number of seconds above 0, up to "
                "100 years"
            )
        return self._session.wall() + max(1, round(seconds * 1000))

    def read_level(self, read: str | Level | None) -> Level:
        """Return the level of a read; None selects that of the settings."""
        return Level.parse(read if read is not None else self._settings.read)

    def write_level(self, write: str | Level | None) -> Level:
        """Return the level of a write; None selects that of the settings."""
        return Level.parse(write if write is not None else self._settings.write)

    def discovery(self, deadline: int) -> DiscoverOperation:
        """Return the operation that finds the cluster.

        Raises:
            NoPeers: the membership lists no peer, and none was known before.
        """
        view = self._session.view
        found = [self._session.endpoint(peer) for peer in view.members] if view else []
        known = [endpoint for endpoint in found if endpoint is not None]
        seeds = list(dict.fromkeys([*known, *self._seeds(deadline, known)]))
        return DiscoverOperation(self._session, deadline, seeds, self._settings.cluster)

    def _seeds(self, deadline: int, known: Sequence[str]) -> list[str]:
        """Return the peers in the membership; none if it is unavailable and some are ``known``."""
        left = max(1, deadline - self._session.wall()) / 1000
        try:
            return find_seeds(self._settings, left / 2 if known else left)
        except NoPeers:
            if not known:
                raise
            return []

    def put(
        self,
        index: str,
        pairs: Round,
        ttl: Ttl | None,
        timeout: float | None,
        write: str | Level | None,
        fence: int | None = None,
    ) -> PutOperation | ChangeOperation:
        """Return the operation that stores values; if a key occurs twice, the last value counts."""
        is_register = check_name(index)
        milliseconds = check_ttl(ttl)
        level = self.write_level(write)
        entries = entries_by_key(pairs)
        if is_register or fence is not None:
            wanted = Wanted(ChangeKind.PUT, new_ttl(ttl), check_fence(fence))
            what = "put with a fencing token"
            return self.change(what, index, list(entries.items()), wanted, timeout)
        items = self._items(list(entries), list(entries.values()))
        return PutOperation(
            self._session,
            self.deadline(timeout),
            index,
            level,
            items,
            milliseconds,
        )

    def short_put(
        self,
        index: str,
        key: Key,
        value: Any,
        ttl: Ttl | None,
        timeout: float | None,
        write: str | Level | None,
        fence: int | None = None,
    ) -> ShortPut | ChangeOperation | PutOperation:
        """Return the call that stores one value."""
        if fence is not None or check_name(index):
            return self.put(index, [(key, value)], ttl, timeout, write, fence)
        milliseconds = check_ttl(ttl)
        level = self.write_level(write)
        [item] = self._items([key], [value])
        return ShortPut(self._session, self.deadline(timeout), index, level, item, milliseconds)

    def change(
        self,
        what: str,
        index: str,
        pairs: Sequence[tuple[Key, Any]],
        wanted: Wanted,
        timeout: float | None,
    ) -> ChangeOperation:
        """Return the operation that changes registers.

        Args:
            what: the operation, as users know it.
            index: of the registers.
            pairs: distinct keys, with the values to store.
            wanted: what to do.
            timeout: seconds for the whole call.

        Raises:
            UsageError: the index has no registers.
        """
        check_registers(index, what)
        items = self._items([key for key, _ in pairs], [value for _, value in pairs])
        deadline, decode = self.deadline(timeout), self._types.decode_values
        return ChangeOperation(self._session, deadline, index, items, wanted, self._ids, decode)

    def _items(self, keys: Sequence[Key], values: Sequence[Any]) -> list[Item]:
        encoded = encode_keys(keys)
        payloads = self._types.encode_entries(keys, values)
        return list(zip(keys, encoded, payloads, strict=True))

    def delete(
        self,
        index: str,
        keys: Sequence[Key],
        timeout: float | None,
        write: str | Level | None,
        version: int | None = None,
        fence: int | None = None,
    ) -> DeleteOperation | ChangeOperation:
        """Return the operation that deletes keys."""
        is_register = check_name(index)
        level = self.write_level(write)
        if is_register or version is not None or fence is not None:
            expected = ANY if version is None else check_version(version)
            wanted = Wanted(ChangeKind.DELETE, fence=check_fence(fence), expected=expected)
            what = "delete with a version" if fence is None else "delete with a fencing token"
            return self.change(what, index, [(key, None) for key in keys], wanted, timeout)
        coded = zip(keys, encode_keys(keys), strict=True)
        items = [(key, encoded, b"") for key, encoded in coded]
        return DeleteOperation(self._session, self.deadline(timeout), index, level, items)

    def short_delete(
        self,
        index: str,
        key: Key,
        timeout: float | None,
        write: str | Level | None,
        version: int | None = None,
        fence: int | None = None,
    ) -> ShortDelete | ChangeOperation | DeleteOperation:
        """Return the call that deletes one key."""
        if version is not None or fence is not None or check_name(index):
            return self.delete(index, [key], timeout, write, version, fence)
        level = self.write_level(write)
        item = (key, encode_key(key), b"")
        return ShortDelete(self._session, self.deadline(timeout), index, level, item)

    def touch(
        self,
        index: str,
        key: Key,
        record: Record,
        ttl: Ttl | None,
        timeout: float | None,
        write: str | Level | None,
    ) -> TouchOperation:
        """Return the operation that gives ``record`` a new expiry."""
        milliseconds = check_ttl(ttl)
        expiry = NEVER if milliseconds is None else self._session.cluster_time() + milliseconds
        version = with_touch(record.version, self._session.stamp())
        encoded = encode_key(key)
        content = build_record(
            check_index(index), encoded, record._replace(version=version, expiry=expiry)
        )
        return TouchOperation(
            self._session,
            self.deadline(timeout),
            index,
            self.write_level(write),
            [(key, encoded, content)],
        )

    def lookup(
        self,
        index: str,
        keys: Sequence[Key],
        timeout: float | None,
        read: str | Level | None,
        on_error: str | OnError = OnError.RAISE,
    ) -> LookupOperation:
        """Return the operation that looks keys up."""
        mode = OnError.parse(on_error)
        return self._read(BatchLookup, index, keys, timeout, read, mode)

    def short_lookup(
        self, index: str, key: Key, timeout: float | None, read: str | Level | None
    ) -> ShortLookup | LookupOperation:
        """Return the call that looks a key up."""
        level = self.read_level(read)
        if check_name(index) and level is not Level.ONE:
            return self.lookup(index, [key], timeout, level)
        return ShortLookup(
            self._session,
            self.deadline(timeout),
            index,
            key,
            encode_key(key),
            level,
            self._types.decode_values,
        )

    def exists(
        self, index: str, keys: Sequence[Key], timeout: float | None, read: str | Level | None
    ) -> ExistsOperation:
        """Return the operation that finds out which keys exist."""
        return self._read(ExistsOperation, index, keys, timeout, read)

    def records(
        self, index: str, keys: Sequence[Key], timeout: float | None, read: str | Level | None
    ) -> RecordOperation:
        """Return the operation that fetches whole records."""
        return self._read(RecordOperation, index, keys, timeout, read)

    def entries(
        self, what: str, index: str, keys: Sequence[Key], timeout: float | None
    ) -> RecordOperation:
        """Return the operation that reads registers, linearizably, for the call ``what``."""
        check_registers(index, what)
        return self.records(index, keys, timeout, Level.QUORUM)

    def entry_of(self, key: Key, record: Record | None) -> Entry | None:
        """Return what a register holds; None if it does not exist.

        Raises:
            UndecodableValue: the value cannot be decoded.
        """
        if record is None:
            return None
        [value] = self._types.decode_values(codec.join_payloads([record.payload]), [key], {})
        return Entry(
            _decoded(key, value), write_stamp(record.version), self.seconds_left(key, record)
        )

    def value_of(self, key: Key, result: ChangeResult, default: Any) -> Any:
        """Return the value that a key had before it was changed, or ``default``.

        Raises:
            UndecodableValue: the value cannot be decoded.
        """
        return _decoded(key, result.values[key]) if key in result.values else default

    def seconds_left(self, key: Key, record: Record | None) -> float | None:
        """Return the time to live that a record has left, in seconds; None if it never expires.

        Raises:
            KeyError: there is no record.
        """
        if record is None:
            raise KeyError(key)
        if record.expiry == NEVER:
            return None
        return max(0, record.expiry - self._session.cluster_time()) / 1000

    def status(self, view: View, deadline: int) -> StatusOperation:
        """Return the operation that asks every member for its status."""
        return StatusOperation(self._session, deadline, list(view.members))

    def repair(self, view: View, deadline: int) -> RepairOperation:
        """Return the operation that starts a full repair on every member."""
        return RepairOperation(self._session, deadline, list(view.members))

    def compact(self, view: View, peer: str, deadline: int) -> CompactOperation:
        """Return the operation that starts a compaction of the store of a member.

        Raises:
            UsageError: there is no such member.
        """
        if peer not in view.members:
            known = ", ".join(sorted(view.members)) or "none"
            raise UsageError(f"{peer!r} is not a member of the cluster; members are {known}")
        return CompactOperation(self._session, deadline, peer)

    def drop(self, index: str, prefix: str | bytes, deadline: int) -> DropOperation:
        """Return the operation that drops an index, or the keys with a prefix."""
        check_index(index)
        return DropOperation(self._session, deadline, index, encode_prefix(prefix))

    def set_index(
        self, index: str, settings: Mapping[str, Any], deadline: int
    ) -> IndexSettingsOperation:
        """Return the operation that changes settings of an index; None removes a setting."""
        times = {name: check_ttl(value, name) or 0 for name, value in settings.items()}
        return IndexSettingsOperation(self._session, deadline, index, times)

    def indexes(self, deadline: int) -> IndexesOperation:
        """Return the operation that lists the indexes."""
        return IndexesOperation(self._session, deadline)

    def admin(self, request: AdminRequest, deadline: int) -> AdminOperation:
        """Return the operation that carries out an admin request."""
        return AdminOperation(self._session, deadline, request)

    def walk(
        self,
        index: str,
        prefix: str | bytes,
        request: Request,
        read: str | Level | None = None,
        on_error: str | OnError = OnError.RAISE,
    ) -> Walk[Any]:
        """Return the scan of an index that requests its pages with ``request``."""
        is_register = check_name(index)
        level, mode = self.read_level(read), OnError.parse(on_error)
        if is_register:  # replicas of registers are compared by their homes only
            level = Level.ONE
        query = Query(index, encode_prefix(prefix), level, self._types.decode_values, mode)
        return walk_for(request, query)

    def _read(
        self,
        kind: type[_Read],
        index: str,
        keys: Sequence[Key],
        timeout: float | None,
        read: str | Level | None,
        on_error: OnError = OnError.RAISE,
    ) -> _Read:
        check_name(index)
        # The rest of a larger batch is checked part by part, as it is sent.
        encoded = as_encoded(keys[: self._session.keys_per_read])
        return kind(
            self._session,
            self.deadline(timeout),
            index,
            keys,
            self.read_level(read),
            self._types.decode_values,
            encoded,
            on_error,
        )


def _decoded(key: Key, value: Any) -> Any:
    if isinstance(value, Undecodable):
        raise undecodable_error({key: value}, {})
    return value
