"""Coalesced calls: one operation for many callers, each of which has a future.

A future is resolved as soon as the answer for its key has arrived.
"""

from __future__ import annotations

import asyncio
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from dstash.client.operations.base import Call
from dstash.client.operations.batching import Item
from dstash.client.operations.reads import ExistsOperation, LookupOperation
from dstash.client.operations.registers.answers import Answer
from dstash.client.operations.short.lookup import ShortLookup
from dstash.client.operations.short.write import ShortWrite
from dstash.client.operations.writes import (
    DeleteOperation,
    PutOperation,
    WriteChunk,
    WriteOperation,
)
from dstash.client.results import undecodable_error
from dstash.errors import CorruptRecord, DStashError, UnsupportedType
from dstash.store.record import Record
from dstash.types import Outcome
from dstash.wire.keys import Key
from dstash.wire.messages import Values
from dstash.wire.values import TypeRegistry

#: Immutable types, whose values several callers may share.
_SHAREABLE: Final = (str, bytes, int, float, bool, type(None))

#: The future of a caller, and its default for a missing key. A plain tuple, because every call
#: has one.
Waiter = tuple[asyncio.Future[Any], Any]


class Group(ABC):
    """Calls with the same arguments except the key, by key.

    Args:
        number: position among the groups of one iteration of the loop.
        deadline: of the calls, in milliseconds of the session's wall clock.
    """

    def __init__(self, number: int, deadline: int) -> None:
        self.number = number
        self.deadline = deadline
        self.waiting: dict[Key, list[Waiter]] = {}
        self.operation: Call | None = None
        #: Trace context of the operation; empty for none.
        self.trace = ""
        self._new_future = asyncio.get_running_loop().create_future

    def join(self, key: Key, default: Any) -> asyncio.Future[Any]:
        """Return a future for the answer to a key; ``default`` if the key does not exist."""
        future = self._new_future()
        waiters = self.waiting.get(key)
        if waiters is None:
            self.waiting[key] = [(future, default)]
        else:
            waiters.append((future, default))
        return future

    @abstractmethod
    def begin(self) -> Call:
        """Create the call, for the keys that callers still wait for; a short one for one key."""

    @abstractmethod
    def alone(self, key: Key, waiters: list[Waiter]) -> Group:
        """Return a group like this one, for one key."""

    @abstractmethod
    def _take_result(self) -> None:
        """Answer the callers of a short call that has succeeded; others are answered already."""

    @abstractmethod
    def _unresolved(self, future: asyncio.Future[Any], default: Any) -> None:
        """Answer a caller whose key a successful operation did not report."""

    def ended(self, error: Exception | None) -> Iterable[Group]:
        """Answer the remaining callers; return groups to start, for calls that need a retry.

        A bad record must not fail the other calls of the group, so each key is then requested alone
        (as ``Batch`` of bbolt does with a failing call).
        """
        error = error or self._outcome()
        if error is not None and len(self.waiting) > 1 and _is_about_one_key(error):
            return [self._alone(key, waiters) for key, waiters in self.waiting.items()]
        if error is None:
            self._take_result()
        for future, default in self._drain():
            if error is None:
                self._unresolved(future, default)
            else:
                _refuse(future, error)
        return []

    def _alone(self, key: Key, waiters: list[Waiter]) -> Group:
        group = self.alone(key, waiters)
        group.trace = self.trace
        return group

    def drop(self, key: Key, future: asyncio.Future[Any]) -> bool:
        """Drop a caller that was cancelled; return whether none is left."""
        kept = [waiter for waiter in self.waiting.pop(key, ()) if waiter[0] is not future]
        if kept:
            self.waiting[key] = kept
        return not self.waiting

    def is_wanted(self) -> bool:
        """Drop cancelled callers; return whether any caller is left."""
        for key, waiters in list(self.waiting.items()):
            for future, _ in waiters:
                if future.cancelled():
                    self.drop(key, future)
        return bool(self.waiting)

    def _drain(self) -> list[Waiter]:
        waiting, self.waiting = self.waiting, {}
        return [waiter for waiters in waiting.values() for waiter in waiters]

    def _outcome(self) -> Exception | None:
        try:
            if self.operation is not None:
                self.operation.result()
        except Exception as error:
            return error
        return None


class ReadGroup(Group):
    """Look-ups, or existence checks."""

    def __init__(
        self,
        number: int,
        deadline: int,
        make: Callable[[ReadGroup], LookupOperation | ShortLookup],
        types: TypeRegistry,
    ) -> None:
        super().__init__(number, deadline)
        self._make = make
        self._types = types

    def begin(self) -> LookupOperation | ShortLookup:
        """Create the call."""
        made = self.operation = self._make(self)
        return made

    def _take_result(self) -> None:
        if isinstance(self.operation, ShortLookup):
            self.resolve(list(self.waiting), self.operation.result())

    def alone(self, key: Key, waiters: list[Waiter]) -> Group:
        """Return a group for one key."""
        group = ReadGroup(self.number, self.deadline, self._make, self._types)
        group.waiting[key] = waiters
        return group

    def _unresolved(self, future: asyncio.Future[Any], default: Any) -> None:
        _settle(future, default)  # a reconciliation does not report missing keys

    def resolve(self, keys: Sequence[Key], found: dict[Key, Any]) -> None:
        """Answer the callers that wait for ``keys``."""
        waiting = self.waiting
        for key in keys:
            waiters = waiting.pop(key, ())
            if len(waiters) == 1:
                [(future, default)] = waiters
                if not future.done():
                    future.set_result(found.get(key, default))
            else:
                self._resolve_each(waiters, key, found)

    def refuse(self, key: Key, error: DStashError) -> None:
        """Fail the callers that wait for a key."""
        for future, _ in self.waiting.pop(key, ()):
            _refuse(future, error)

    def _resolve_each(self, waiters: Sequence[Waiter], key: Key, found: dict[Key, Any]) -> None:
        for place, (future, default) in enumerate(waiters):
            value = found.get(key, default)
            if place and key in found and type(value) not in _SHAREABLE:
                value = self._types.decode(self._types.encode(value))
            _settle(future, value)


class CoalescedLookup(LookupOperation):
    """A look-up that resolves the futures of its group as answers arrive."""

    group: ReadGroup

    def deliver(self, keys: Sequence[Key], values: Values) -> None:
        """Process the answer to a look-up of ``keys``."""
        super().deliver(keys, values)
        self._answer(keys)

    def deliver_live(self, keys: Sequence[Key], answers: Sequence[Answer]) -> None:
        """Process registers that have values."""
        super().deliver_live(keys, answers)
        self._answer(keys)

    def deliver_record(self, key: Key, record: Record) -> None:
        """Process the newest record of a key whose replicas disagreed."""
        super().deliver_record(key, record)
        self._answer([key])

    def _answer(self, keys: Sequence[Key]) -> None:
        if self.undecodable:
            for key in self.undecodable.keys() & keys:
                error = undecodable_error({key: self.undecodable[key]}, {})
                self.group.refuse(key, error)
        self.group.resolve(keys, self.found)


class CoalescedExists(CoalescedLookup, ExistsOperation):
    """The same for existence checks."""


class WriteGroup(Group):
    """Puts with the same time to live, or deletes; each key occurs once."""

    def __init__(
        self,
        number: int,
        deadline: int,
        make: Callable[[WriteGroup, list[Item]], WriteOperation | ShortWrite],
    ) -> None:
        super().__init__(number, deadline)
        self._make = make
        self.items: dict[Key, Item] = {}

    def begin(self) -> WriteOperation | ShortWrite:
        """Create the call."""
        items = [item for key, item in self.items.items() if key in self.waiting]
        made = self.operation = self._make(self, items)
        return made

    def _take_result(self) -> None:
        if not isinstance(self.operation, ShortWrite):
            return
        outcome, error = self.operation.result(), None
        try:
            outcome.raise_first()
        except DStashError as first:
            error = first
        for key in list(self.waiting):
            self.resolve(key, bool(outcome.deleted), error)

    def alone(self, key: Key, waiters: list[Waiter]) -> Group:
        """Return a group for one key."""
        group = WriteGroup(self.number, self.deadline, self._make)
        group.waiting[key], group.items[key] = waiters, self.items[key]
        return group

    def _unresolved(self, future: asyncio.Future[Any], default: Any) -> None:
        _refuse(future, AssertionError("a write ended without an outcome"))

    def resolve(self, key: Key, existed: bool, error: DStashError | None) -> None:
        """Answer the callers that wait for a key."""
        for future, _ in self.waiting.pop(key, ()):
            if error is None:
                _settle(future, existed)
            else:
                _refuse(future, error)


class CoalescedWrite(WriteOperation):
    """A write that resolves the futures of its group as outcomes become known."""

    group: WriteGroup

    def settle(self, chunk: WriteChunk, places: Sequence[int]) -> None:
        """Count items of a chunk as stored."""
        super().settle(chunk, places)
        for place in places:
            self.group.resolve(chunk.items[place][0], self.existed(chunk, place), None)

    def give_up(
        self, chunk: WriteChunk, places: Sequence[int], outcome: Outcome, error: DStashError
    ) -> None:
        """Record items of a chunk as failed or unknown."""
        super().give_up(chunk, places, outcome, error)
        for place in places:
            self.group.resolve(chunk.items[place][0], False, error)


class CoalescedPut(CoalescedWrite, PutOperation):
    """A coalesced put."""


class CoalescedDelete(CoalescedWrite, DeleteOperation):
    """A coalesced delete."""


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    """Set an error: a copy, because raising an error modifies it."""
    if not future.done():
        future.set_exception(_copy(error))


def _copy(error: Exception) -> Exception:
    try:
        return copy.copy(error)
    except Exception:  # its class has another constructor
        return error


def _is_about_one_key(error: Exception) -> bool:
    return isinstance(error, CorruptRecord | UnsupportedType) or not isinstance(error, DStashError)
