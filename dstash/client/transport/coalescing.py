"""Coalescing: calls made in one iteration of the event loop are sent as one request per peer.

A request for one key costs nearly as much as a request for hundreds. So calls wait until the
iteration ends, and are sent together (like Nagle's algorithm, but without a delay; as in Facebook's
DataLoader).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dstash.client.calls import Calls
from dstash.client.operations.batching import Item
from dstash.client.operations.registers.names import check_name, has_registers
from dstash.client.operations.short.lookup import ShortLookup
from dstash.client.operations.short.write import ShortDelete, ShortPut
from dstash.client.session import Session
from dstash.client.transport.coalesced import (
    CoalescedDelete,
    CoalescedExists,
    CoalescedLookup,
    CoalescedPut,
    Group,
    ReadGroup,
    WriteGroup,
)
from dstash.limits import MAX_KEY_BYTES, Ttl, check_index, check_ttl
from dstash.types import Level, OnError
from dstash.wire.keys import Key, encode_key
from dstash.wire.values import TypeRegistry


class Batch:
    """Groups calls until ``take`` is called.

    Args:
        session: the state that all calls of the client share.
        calls: checks arguments against the settings.
        types: encodes and decodes values.
    """

    def __init__(self, session: Session, calls: Calls, types: TypeRegistry) -> None:
        self._session = session
        self._calls = calls
        self._types = types
        self._groups: list[Group] = []
        # Groups by arguments; by the type of the timeout too, because 1 and True are equal.
        self._reads: dict[tuple[Any, ...], ReadGroup] = {}
        self._writes: dict[tuple[Any, ...], WriteGroup] = {}
        self._written: dict[tuple[str, Key], int] = {}

    def take(self) -> list[Group]:
        """Return the groups, in the order in which they must start."""
        groups, self._groups = self._groups, []
        self._reads, self._writes, self._written = {}, {}, {}
        return groups

    def lookup(
        self, index: str, key: Key, timeout: float | None, read: str | Level | None
    ) -> ReadGroup:
        """Check the key; return the group for its look-up."""
        if type(key) is not str or not key.isascii() or not 0 < len(key) <= MAX_KEY_BYTES:
            encode_key(key)  # rejects an invalid key before it fails the whole group
        group = self._reads.get((CoalescedLookup, index, timeout, type(timeout), read))
        return group or self._new_reads(CoalescedLookup, index, timeout, read)

    def exists(
        self, index: str, key: Key, timeout: float | None, read: str | Level | None
    ) -> ReadGroup:
        """Check the key; return the group for its existence check."""
        encode_key(key)
        group = self._reads.get((CoalescedExists, index, timeout, type(timeout), read))
        return group or self._new_reads(CoalescedExists, index, timeout, read)

    def put(
        self,
        index: str,
        item: Item,
        ttl: Ttl | None,
        timeout: float | None,
        write: str | Level | None,
    ) -> WriteGroup:
        """Add a put; return its group."""
        slot = (CoalescedPut, index, ttl, timeout, type(timeout), write)
        return self._write(slot, item, lambda: self._puts(index, ttl, timeout, write))

    def delete(
        self, index: str, item: Item, timeout: float | None, write: str | Level | None
    ) -> WriteGroup:
        """Add a delete; return its group."""
        slot = (CoalescedDelete, index, timeout, type(timeout), write)
        return self._write(slot, item, lambda: self._deletes(index, timeout, write))

    # -- inside

    def _new_reads(
        self,
        kind: type[CoalescedLookup],
        index: str,
        timeout: float | None,
        read: str | Level | None,
    ) -> ReadGroup:
        check_name(index)
        deadline, level = self._calls.deadline(timeout), self._calls.read_level(read)
        decode = self._types.decode_values

        is_short = kind is CoalescedLookup and (level is Level.ONE or not has_registers(index))

        def make(group: ReadGroup) -> CoalescedLookup | ShortLookup:
            keys = list(group.waiting)
            if is_short and len(keys) == 1:
                encoded = encode_key(keys[0])
                return ShortLookup(self._session, deadline, index, keys[0], encoded, level, decode)
            operation = kind(
                self._session, deadline, index, keys, level, decode, on_error=OnError.RETURN
            )
            operation.group = group
            return operation

        group = ReadGroup(len(self._groups), deadline, make, self._types)
        self._reads[kind, index, timeout, type(timeout), read] = group
        self._groups.append(group)
        return group

    def _write(
        self, slot: tuple[Any, ...], item: Item, make: Callable[[], WriteGroup]
    ) -> WriteGroup:
        """Add an item to the group of a slot; open a new group to keep a key's writes in order."""
        key = item[0]
        place = (slot[1], key)
        latest = self._written.get(place, -1)
        group = self._writes.get(slot)
        if group is None or group.number < latest or key in group.items:
            group = self._writes[slot] = make()
            self._groups.append(group)
        self._written[place] = group.number
        group.items[key] = item
        return group

    def _puts(
        self, index: str, ttl: Ttl | None, timeout: float | None, write: str | Level | None
    ) -> WriteGroup:
        check_index(index)
        deadline, level = self._calls.deadline(timeout), self._calls.write_level(write)
        milliseconds = check_ttl(ttl)

        def make(group: WriteGroup, items: list[Item]) -> CoalescedPut | ShortPut:
            if len(items) == 1:
                return ShortPut(self._session, deadline, index, level, items[0], milliseconds)
            operation = CoalescedPut(self._session, deadline, index, level, items, milliseconds)
            operation.group = group
            return operation

        return WriteGroup(len(self._groups), deadline, make)

    def _deletes(self, index: str, timeout: float | None, write: str | Level | None) -> WriteGroup:
        check_index(index)
        deadline, level = self._calls.deadline(timeout), self._calls.write_level(write)

        def make(group: WriteGroup, items: list[Item]) -> CoalescedDelete | ShortDelete:
            if len(items) == 1:
                return ShortDelete(self._session, deadline, index, level, items[0])
            operation = CoalescedDelete(self._session, deadline, index, level, items)
            operation.group = group
            return operation

        return WriteGroup(len(self._groups), deadline, make)
