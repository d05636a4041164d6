"""Calls alike that travel together: one operation asks for all, each caller has a future.

A future is set as soon as the answer to its key is there.
"""

from __future__ import annotations

import asyncio
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from dstash.client.operations.base import Operation
from dstash.client.operations.batching import Item
from dstash.client.operations.reads import ExistsOperation, LookupOperation
from dstash.client.operations.writes import (
    DeleteOperation,
    PutOperation,
    WriteChunk,
    WriteOperation,
)
from dstash.errors import CorruptRecord, DStashError, UnsupportedType
from dstash.store.record import Record
from dstash.types import Outcome
from dstash.wire.keys import Key
from dstash.wire.messages import Values
from dstash.wire.values import TypeRegistry

#: Types whose values two callers may share: neither can change what the other sees.
_SHAREABLE: Final = (str, bytes, int, float, bool, type(None))


#: Who waits for a key, and what to answer when it is not there. A plain tuple: there is one for
#: every call.
Waiter = tuple[asyncio.Future[Any], Any]


class Group(ABC):
    """Calls alike, by key.

    Args:
        number: says in which order the groups of a turn were opened.
        deadline: of the calls, in milliseconds of the session's wall clock.
    """

    def __init__(self, number: int, deadline: int) -> None:
        self.number = number
        self.deadline = deadline
        self.waiting: dict[Key, list[Waiter]] = {}
        self.operation: Operation | None = None
        #: The trace that the operation is part of; empty for none.
        self.trace = ""
        self._new_future = asyncio.get_running_loop().create_future

    def join(self, key: Key, default: Any) -> asyncio.Future[Any]:
        """Return a future that gets the answer to a key; ``default`` when it is not there."""
        future = self._new_future()
        waiters = self.waiting.get(key)
        if waiters is None:
            self.waiting[key] = [(future, default)]
        else:
            waiters.append((future, default))
        return future

    @abstractmethod
    def begin(self) -> Operation:
        """Make the operation, for the keys that are still waited for."""

    @abstractmethod
    def alone(self, key: Key, waiters: list[Waiter]) -> Group:
        """Return a group like this one, for one key."""

    @abstractmethod
    def _unresolved(self, future: asyncio.Future[Any], default: Any) -> None:
        """Answer a caller whose key the operation, which succeeded, said nothing of."""

    def ended(self, error: Exception | None) -> Iterable[Group]:
        """Answer whoever still waits; returns groups to begin, for calls that need another try.

        One bad record must not fail its neighbours: each is asked for alone then (as a failing
        call is in bbolt's ``Batch``).
        """
        error = error or self._outcome()
        if error is not None and len(self.waiting) > 1 and _is_about_one_key(error):
            return [self._alone(key, waiters) for key, waiters in self.waiting.items()]
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
        """Forget a caller that was cancelled; whether nobody is left."""
        kept = [one for one in self.waiting.pop(key, ()) if one[0] is not future]
        if kept:
            self.waiting[key] = kept
        return not self.waiting

    def is_wanted(self) -> bool:
        """Whether anybody waits, once the callers that were cancelled meanwhile are forgotten."""
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
    """Look-ups, or questions whether keys exist."""

    def __init__(
        self,
        number: int,
        deadline: int,
        make: Callable[[ReadGroup], LookupOperation],
        types: TypeRegistry,
    ) -> None:
        super().__init__(number, deadline)
        self._make = make
        self._types = types

    def begin(self) -> LookupOperation:
        """Make the operation."""
        made = self.operation = self._make(self)
        return made

    def alone(self, key: Key, waiters: list[Waiter]) -> Group:
        """Return a group for one key."""
        group = ReadGroup(self.number, self.deadline, self._make, self._types)
        group.waiting[key] = waiters
        return group

    def _unresolved(self, future: asyncio.Future[Any], default: Any) -> None:
        _settle(future, default)  # replicas that were compared record by record have none

    def resolve(self, keys: Sequence[Key], found: dict[Key, Any]) -> None:
        """Answer those that wait for ``keys``."""
        waiting = self.waiting
        for key in keys:
            waiters = waiting.pop(key, ())
            if len(waiters) == 1:
                [(future, default)] = waiters
                if not future.done():
                    future.set_result(found.get(key, default))
            else:
                self._resolve_each(waiters, key, found)

    def _resolve_each(self, waiters: Sequence[Waiter], key: Key, found: dict[Key, Any]) -> None:
        for place, (future, default) in enumerate(waiters):
            value = found.get(key, default)
            if place and key in found and type(value) not in _SHAREABLE:
                value = self._types.decode(self._types.encode(value))
            _settle(future, value)


class CoalescedLookup(LookupOperation):
    """Tells its group of every answer when it comes."""

    group: ReadGroup

    def deliver(self, keys: Sequence[Key], values: Values) -> None:
        """Take the answer to a look-up of ``keys``."""
        super().deliver(keys, values)
        self.group.resolve(keys, self.found)

    def deliver_record(self, key: Key, record: Record) -> None:
        """Take the winner among replicas that disagreed."""
        super().deliver_record(key, record)
        self.group.resolve([key], self.found)


class CoalescedExists(CoalescedLookup, ExistsOperation):
    """The same, for existence."""


class WriteGroup(Group):
    """Puts that live equally long, or deletes; each key comes once."""

    def __init__(
        self, number: int, deadline: int, make: Callable[[WriteGroup, list[Item]], WriteOperation]
    ) -> None:
        super().__init__(number, deadline)
        self._make = make
        self.items: dict[Key, Item] = {}

    def begin(self) -> WriteOperation:
        """Make the operation."""
        items = [item for key, item in self.items.items() if key in self.waiting]
        made = self.operation = self._make(self, items)
        return made

    def alone(self, key: Key, waiters: list[Waiter]) -> Group:
        """Return a group for one key."""
        group = WriteGroup(self.number, self.deadline, self._make)
        group.waiting[key], group.items[key] = waiters, self.items[key]
        return group

    def _unresolved(self, future: asyncio.Future[Any], default: Any) -> None:
        _refuse(future, AssertionError("a write ended without an outcome"))

    def resolve(self, key: Key, existed: bool, error: DStashError | None) -> None:
        """Answer who waits for a key."""
        for future, _ in self.waiting.pop(key, ()):
            if error is None:
                _settle(future, existed)
            else:
                _refuse(future, error)


class CoalescedWrite(WriteOperation):
    """Tells its group of every outcome when it is known."""

    group: WriteGroup

    def settle(self, chunk: WriteChunk, places: Sequence[int]) -> None:
        """Take items of a chunk as stored."""
        super().settle(chunk, places)
        for place in places:
            self.group.resolve(chunk.items[place][0], self.existed(chunk, place), None)

    def give_up(
        self, chunk: WriteChunk, places: Sequence[int], outcome: Outcome, error: DStashError
    ) -> None:
        """Take items of a chunk as not stored, or as not known to be."""
        super().give_up(chunk, places, outcome, error)
        for place in places:
            self.group.resolve(chunk.items[place][0], False, error)


class CoalescedPut(CoalescedWrite, PutOperation):
    """For puts."""


class CoalescedDelete(CoalescedWrite, DeleteOperation):
    """For deletes."""


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    """Hand over an error: a copy, because every raise writes on it."""
    if not future.done():
        future.set_exception(_copy(error))


def _copy(error: Exception) -> Exception:
    try:
        return copy.copy(error)
    except Exception:  # a class with a constructor of its own
        return error


def _is_about_one_key(error: Exception) -> bool:
    return isinstance(error, CorruptRecord | UnsupportedType) or not isinstance(error, DStashError)
