"""Scans of an index, as a sequence of operations.

The clients run the operations one after the other::

    while not walk.done:
        part = walk.take(run(walk.operation(session, deadline)))
        if part is not None:
            yield from part

At level ``one`` each page has the records of one replica. At higher levels a page is delivered once
enough other replicas have sent equal digests of the same range. Partitions in which they differ are
unconfirmed: enough replicas list their keys, and each listed key is looked up at the level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, ClassVar, Final, Generic, TypeVar

from dstash.client.operations.base import Operation
from dstash.client.operations.drafts import Confirmed, Draft, Position, Query, Unconfirmed
from dstash.client.operations.key_lists import KeyListOperation, Listed
from dstash.client.operations.page_reads import PAGE_BYTES, PAGE_KEYS, PageOperation
from dstash.client.operations.reads import ExistsOperation, LookupOperation
from dstash.client.operations.registers.answers import Answer
from dstash.client.results import undecodable_error
from dstash.client.session import Session
from dstash.store.record import Record, partition_of
from dstash.types import OnError
from dstash.wire import codec
from dstash.wire.keys import Key, decode_any_key, decode_key, expect_own
from dstash.wire.messages import Count, Scan, ScanKeys, Values
from dstash.wire.values import Undecodable

#: Unconfirmed keys whose values are looked up together before their size is known.
_FIRST_KEYS: Final = 16

#: Maximum age of a page that was read ahead.
_MAX_AHEAD_AGE_MS: Final = 1000

Request = type[Scan] | type[ScanKeys] | type[Count]

T = TypeVar("T")


class Walk(ABC, Generic[T]):
    """One scan."""

    request: ClassVar[Request]

    def __init__(self, query: Query) -> None:
        self.query = query
        self._position = Position.start()
        self._ahead: Draft | None = None
        self._unconfirmed: Unconfirmed | None = None
        self._candidates: list[Key] = []
        self._looked_up: list[Key] = []
        self._pages = 0

    @property
    def index(self) -> str:
        """The index that is scanned."""
        return self.query.index

    @property
    def done(self) -> bool:
        """Whether the whole scan was delivered."""
        return self._position.done and self._unconfirmed is None and not self._candidates

    def operation(self, session: Session, deadline: int) -> Operation:
        """Return the next operation, whose result goes to ``take``."""
        query = self.query
        if self._candidates:
            return self._look_up(session, deadline)
        if self._unconfirmed is not None:
            return KeyListOperation(session, deadline, query, self._unconfirmed)
        ahead = self._ahead
        if ahead is not None and session.wall() - ahead.read_at > _MAX_AHEAD_AGE_MS:
            ahead = None
        # The caller may want the first page only.
        reads_ahead = self._pages > 0
        page = PageOperation(session, deadline, query, self.request)
        return page.begin_at(self._position, ahead, reads_ahead=reads_ahead)

    def take(self, result: Any) -> list[T] | None:
        """Process the result of an operation; return the part of the scan that it adds, if any."""
        if isinstance(result, Confirmed):
            self._pages += 1
            self._position, self._ahead = result.draft.end, result.ahead
            self._unconfirmed = result.unconfirmed()
            return self._of_page(result)
        if isinstance(result, Listed):
            self._unconfirmed, self._candidates = result.rest, result.keys
            return None if result.keys else []
        self._candidates = self._candidates[len(self._looked_up) :]
        return self._of_found(result)

    def _look_up(self, session: Session, deadline: int) -> LookupOperation:
        query, keys = self.query, self._candidates
        self._looked_up = keys
        return ExistsOperation(session, deadline, query.index, keys, query.level, query.decode)

    @abstractmethod
    def _of_page(self, confirmed: Confirmed) -> list[T]:
        """Return the confirmed part of a page."""

    @abstractmethod
    def _of_found(self, found: dict[Key, Any]) -> list[T]:
        """Return the part of the scan that a look-up of unconfirmed keys found."""


class _WeighedLookup(LookupOperation):
    """A look-up that counts the bytes that it finds."""

    weight = 0

    def deliver(self, keys: Sequence[Key], values: Values) -> None:
        """Process the answer to a look-up of ``keys``."""
        self.weight += len(values.values)
        super().deliver(keys, values)

    def deliver_live(self, keys: Sequence[Key], answers: Sequence[Answer]) -> None:
        """Process registers that have values."""
        self.weight += sum(len(answer.value or b"") for answer in answers)
        super().deliver_live(keys, answers)

    def deliver_record(self, key: Key, record: Record) -> None:
        """Process the newest record of a key, which is live."""
        self.weight += len(record.payload)
        super().deliver_record(key, record)


class ItemsWalk(Walk[tuple[Key, Any]]):
    """A scan for keys and values."""

    request = Scan

    def __init__(self, query: Query) -> None:
        super().__init__(query)
        self._at_once = _FIRST_KEYS
        self._lookup: _WeighedLookup | None = None

    def _of_page(self, confirmed: Confirmed) -> list[tuple[Key, Any]]:
        page, unconfirmed = confirmed.draft.page, confirmed.unconfirmed_partitions()
        encoded = codec.unpack_keys(page.keys)
        keys = list(map(decode_any_key if unconfirmed else decode_key, encoded))
        undecodable: dict[Key, Undecodable] = {}
        values = self.query.decode(page.values, keys, undecodable)
        codec.expect_even(keys, values)
        pairs = list(zip(keys, values, strict=True))
        if unconfirmed:
            confirmed_keys = [partition_of(key) not in unconfirmed for key in encoded]
            pairs = list(compress(pairs, confirmed_keys))
            expect_own(key for key, _ in pairs)
        if undecodable and self.query.on_error is OnError.RAISE:
            _refuse_undecodable(pairs)
        return pairs

    def _look_up(self, session: Session, deadline: int) -> LookupOperation:
        query, keys = self.query, self._candidates[: self._at_once]
        self._looked_up = keys
        self._lookup = _WeighedLookup(
            session,
            deadline,
            query.index,
            keys,
            query.level,
            query.decode,
            on_error=query.on_error,
        )
        return self._lookup

    def _of_found(self, found: dict[Key, Any]) -> list[tuple[Key, Any]]:
        if self._lookup is not None and found:
            mean = max(1, self._lookup.weight // len(found))
            # The values stay in memory until the caller consumes them.
            self._at_once = min(PAGE_KEYS, 8 * self._at_once, max(1, PAGE_BYTES // mean))
        expect_own(found)
        return list(found.items())


def _refuse_undecodable(pairs: Iterable[tuple[Key, Any]]) -> None:
    """Raise ``UndecodableValue`` if a value of a page cannot be decoded."""
    found = dict(pairs)
    undecodable = {key: value for key, value in found.items() if isinstance(value, Undecodable)}
    if undecodable:
        raise undecodable_error(undecodable, found)


class KeysWalk(Walk[Key]):
    """A scan for keys."""

    request = ScanKeys

    def _of_page(self, confirmed: Confirmed) -> list[Key]:
        keys: Iterable[bytes] = codec.unpack_keys(confirmed.draft.page.keys)
        unconfirmed = confirmed.unconfirmed_partitions()
        if unconfirmed:
            keys = (key for key in keys if partition_of(key) not in unconfirmed)
        return list(map(decode_key, keys))

    def _of_found(self, found: dict[Key, Any]) -> list[Key]:
        expect_own(found)
        return list(found)


class CountWalk(Walk[int]):
    """A scan for the number of keys: each part is one number."""

    request = Count

    def _of_page(self, confirmed: Confirmed) -> list[int]:
        return [confirmed.live_records()]

    def _of_found(self, found: dict[Key, Any]) -> list[int]:
        return [len(found)]


_KINDS: Final[dict[Request, type[Walk[Any]]]] = {
    kind.request: kind for kind in (ItemsWalk, KeysWalk, CountWalk)
}


def walk_for(request: Request, query: Query) -> Walk[Any]:
    """Return a scan that requests its pages with ``request``."""
    return _KINDS[request](query)
