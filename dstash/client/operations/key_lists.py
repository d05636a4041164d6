"""Lists of the keys in a range in which replicas differ.

Each key that a quorum acked is on at least one replica of any other quorum. So the union of the
lists of enough replicas has every key that a look-up at the level would find. The union ends where
the shortest list ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.operations.drafts import Query, Unconfirmed, check_progress
from dstash.client.operations.page_reads import PAGE_BYTES, PAGE_KEYS
from dstash.client.routing import Peers
from dstash.client.session import Send, Session
from dstash.errors import DStashError, ProtocolError
from dstash.store.record import partition_of
from dstash.wire import codec
from dstash.wire.keys import Key, decode_any_key
from dstash.wire.messages import Page, ScanKeys
from dstash.wire.shapes import Message


class Listed(NamedTuple):
    """The keys of the first part of a range, and the rest of the range."""

    keys: list[Key]
    rest: Unconfirmed | None


class KeyListOperation(Operation):
    """Lists the keys of the first part of a range on as many replicas as the level needs."""

    def __init__(
        self, session: Session, deadline: int, query: Query, unconfirmed: Unconfirmed
    ) -> None:
        super().__init__(session, deadline)
        self.query = query
        self.unconfirmed = unconfirmed
        self.listed: Listed | None = None

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [_ListChunk(self)]

    def result(self) -> Listed:
        """Return the keys, and the rest of the range."""
        super().result()
        if self.listed is None:
            raise AssertionError("a list of keys ended without result or error")
        return self.listed


class _ListChunk(Chunk):
    def __init__(self, operation: KeyListOperation) -> None:
        self.operation = operation
        self._peers: Peers = ()
        self._asked: Sequence[int] = ()
        self._pages: dict[str, Page] = {}

    def begin(self, now: int) -> list[Send]:
        operation, unconfirmed = self.operation, self.operation.unconfirmed
        table = operation.session.read_targets(operation.query.level)
        self._peers = table[unconfirmed.partitions[0]]
        if not self._peers:
            return self._again(now)
        self.epoch = table.epoch
        self._asked = _first_with_same_targets(
            unconfirmed.partitions, [table[partition] for partition in unconfirmed.partitions]
        )
        request = ScanKeys(
            operation.query.index,
            operation.query.prefix,
            b"".join([partition.to_bytes(2, "big") for partition in self._asked]),
            unconfirmed.after,
            PAGE_KEYS,
            PAGE_BYTES,
            digest=True,
        )
        return [operation.ask(peer, self, request, now) for peer in self._peers]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if not isinstance(message, Page):
            raise ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
        check_progress(message, len(self._asked), self.operation.unconfirmed.after)
        self._pages[peer] = message
        if len(self._pages) == len(self._peers):
            self.operation.listed = self._union()
            self.operation.finish(self)
        return []

    def _union(self) -> Listed:
        pages, unconfirmed = self._pages.values(), self.operation.unconfirmed
        done, after = min((page.done, page.after) for page in pages)
        last = len(unconfirmed.partitions) - 1
        if unconfirmed.until and (done > last or (done == last and after >= unconfirmed.until)):
            done, after = last, unconfirmed.until
            rest = None
        else:
            partitions = unconfirmed.partitions[done:]
            rest = Unconfirmed(partitions, after, unconfirmed.until) if partitions else None
        places = {partition: place for place, partition in enumerate(self._asked)}
        keys: dict[bytes, None] = {}
        for page in pages:
            for key in codec.unpack_keys(page.keys):
                place = places.get(partition_of(key))
                if place is None:
                    raise ProtocolError("a peer listed a key of a partition that was not requested")
                if place < done or (place == done and key <= after):
                    keys[key] = None
        return Listed(list(map(decode_any_key, keys)), rest)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if not failure.error.retryable:
            raise failure.error
        return self._again(now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return self._again(now)

    def _again(self, now: int) -> list[Send]:
        successor = _ListChunk(self.operation)
        successor.attempt = self.attempt + 1
        return self.operation.replace_later(self, [successor], now)

    def expired(self, error: DStashError) -> None:
        self.operation.error = self.operation.error or error


def _first_with_same_targets(partitions: Sequence[int], targets: Sequence[Peers]) -> Sequence[int]:
    """Return the leading partitions that have the same targets."""
    for place, peers in enumerate(targets):
        if peers != targets[0]:
            return partitions[:place]
    return partitions
