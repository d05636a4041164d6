"""The read of one page of a scan from one replica, and its comparison with other replicas.

While other replicas compute the digests of a page, the next page is read ahead; if that read fails,
the operation does not wait for it. All votes about a page have the epoch under which the page was
read; if the topology changes, the page is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.operations.drafts import Confirmed, Draft, Position, Query, Sums, check_progress
from dstash.client.session import Send, Session
from dstash.errors import CorruptRecord, DStashError, Misrouted, ProtocolError, StaleEpoch
from dstash.wire.messages import Count, Page, Scan, ScanKeys
from dstash.wire.shapes import Message

PAGE_KEYS: Final = 2000
PAGE_BYTES: Final = 2 * 1024 * 1024


class PageOperation(Operation):
    """Reads a page, from another replica after a failure, and confirms it at the level."""

    def __init__(
        self,
        session: Session,
        deadline: int,
        query: Query,
        request: type[Scan] | type[ScanKeys] | type[Count],
    ) -> None:
        super().__init__(session, deadline)
        self.query = query
        self.request = request
        self._position = Position.start()
        self._draft: Draft | None = None
        self._ahead: Draft | None = None
        self._reads_ahead = False

    def begin_at(
        self, position: Position, draft: Draft | None, *, reads_ahead: bool
    ) -> PageOperation:
        """Set the position to read from; use the page ``draft`` if it has the current epoch."""
        self._position = position
        if draft is not None and draft.epoch == self.session.epoch:
            self._draft = draft
        self._reads_ahead = reads_ahead
        return self

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [_PageChunk(self, self._position)] if self._draft is None else self._next(self._draft)

    def result(self) -> Confirmed:
        """Return the page, and the votes of the replicas about it."""
        super().result()
        if self._draft is None:
            raise AssertionError("a page operation ended without page or error")
        return Confirmed(self._draft, self._ahead)

    # -- for the chunks

    def take(self, chunk: _PageChunk, draft: Draft, now: int) -> list[Send]:
        """Process the page of a replica."""
        if chunk.is_ahead:
            self._ahead = draft
            self.finish(chunk)
            return []
        self._draft = draft
        return self.replace(chunk, self._next(draft), now)

    def votes_needed(self, partition: int) -> int:
        """Return how many other replicas must confirm a page of this partition."""
        return self.query.level.needed(len(self.session.known_view().readers[partition])) - 1

    def checks(self, draft: Draft, places: Iterable[int], attempt: int = 0) -> list[_DigestChunk]:
        """Return chunks that request the missing votes for these partitions of a page."""
        table = self.session.read_targets(self.query.level)
        asked: dict[str, list[int]] = {}
        for place in places:
            if place in draft.differing:
                continue
            partition, voters = draft.asked[place], draft.voters[place]
            candidates = [peer for peer in table[partition] if peer not in {draft.peer, *voters}]
            wanted = self.votes_needed(partition) - len(voters)
            # An empty peer is a chunk that waits until enough replicas have their data.
            for peer in (*candidates, *[""] * wanted)[: max(0, wanted)]:
                asked.setdefault(peer, []).append(place)
        for peer, peer_places in asked.items():
            for place in peer_places if peer else ():
                draft.voters[place].add(peer)
        return [
            _DigestChunk(self, draft, peer, peer_places, attempt)
            for peer, peer_places in asked.items()
        ]

    def read_again(self, draft: Draft, attempt: int, now: int) -> list[Send]:
        """Drop a page and its votes, because the topology has changed."""
        for chunk in list(self._open):
            self.finish(chunk)
        self._draft = self._ahead = None
        successor = _PageChunk(self, draft.begin)
        successor.attempt = attempt
        self._open.add(successor)
        self.again_later(successor, now)
        return []

    def _next(self, draft: Draft) -> list[Chunk]:
        if not self.votes_needed(draft.asked[0]):
            return []
        if not draft.page.moment:  # peers of earlier versions send no digests
            draft.differ(draft.places)
        chunks: list[Chunk] = list(self.checks(draft, draft.places))
        if self._reads_ahead and not draft.end.done:
            chunks.append(_PageChunk(self, draft.end, is_ahead=True))
        return chunks


class _PageChunk(Chunk):
    """Requests the page after a position from one replica."""

    def __init__(
        self, operation: PageOperation, position: Position, *, is_ahead: bool = False
    ) -> None:
        self.operation = operation
        self.position = position
        self.is_ahead = is_ahead
        #: Peers with a corrupt record in this page: they are asked last.
        self.corrupt: frozenset[str] = frozenset()
        self._asked: Sequence[int] = ()

    def begin(self, now: int) -> list[Send]:
        operation = self.operation
        session, first = operation.session, self.position.remaining[0]
        table = session.read_targets(operation.query.level)
        by_use = list(table[first])
        if self.corrupt:
            table = session.all_targets()
            by_use = sorted(
                table[first], key=lambda peer: (peer in self.corrupt, session.is_suspect(peer))
            )
        if not by_use:
            return self._again(now)
        self.epoch = table.epoch
        self._asked = [
            partition for partition in self.position.remaining if table[partition] == table[first]
        ]
        partitions = b"".join([partition.to_bytes(2, "big") for partition in self._asked])
        request = operation.request(
            operation.query.index,
            operation.query.prefix,
            partitions,
            self.position.after,
            PAGE_KEYS,
            PAGE_BYTES,
            digest=operation.votes_needed(first) > 0,
        )
        return [operation.ask(by_use[0], self, request, now)]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if not isinstance(message, Page):
            raise ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
        epoch = self.epoch or 0
        draft = Draft(peer, epoch, self.position, self._asked, message, now)
        return self.operation.take(self, draft, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if not failure.error.retryable and not self.is_ahead:
            raise failure.error
        if isinstance(failure.error, CorruptRecord):
            self.corrupt |= {peer}
        return self._again(now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return self._again(now)

    def _again(self, now: int) -> list[Send]:
        if self.is_ahead:
            self.operation.finish(self)
            return []
        successor = _PageChunk(self.operation, self.position)
        successor.corrupt = self.corrupt
        successor.attempt = self.attempt + 1
        return self.operation.replace_later(self, [successor], now)

    def expired(self, error: DStashError) -> None:
        if not self.is_ahead:
            self.operation.error = self.operation.error or error


class _DigestChunk(Chunk):
    """Requests digests of the partitions of a page from one replica; an empty peer means none."""

    def __init__(
        self,
        operation: PageOperation,
        draft: Draft,
        peer: str,
        places: Sequence[int],
        attempt: int,
    ) -> None:
        self.operation = operation
        self.draft = draft
        self.peer = peer
        self.places = places
        self.attempt = attempt
        self.epoch: int = draft.epoch
        self._sums = Sums()
        #: Places whose digest is incomplete, and the key after which it continues.
        self._left = places
        self._after = draft.after(places)

    def begin(self, now: int) -> list[Send]:
        if not self.peer or self.operation.session.epoch != self.epoch:
            return self._ask_another(now)
        return [self._ask(now)]

    def _ask(self, now: int) -> Send:
        draft, operation = self.draft, self.operation
        partitions = b"".join([draft.asked[place].to_bytes(2, "big") for place in self._left])
        request = Count(
            operation.query.index,
            operation.query.prefix,
            partitions,
            self._after,
            PAGE_KEYS,
            PAGE_BYTES,
            True,
            draft.until(self._left),
            draft.page.moment,
        )
        return operation.ask(self.peer, self, request, now)

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if not isinstance(message, Page):
            raise ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
        draft, left = self.draft, self._left
        if not message.moment:  # peers of earlier versions send no digests
            draft.differ(self.places)
            self.operation.finish(self)
            return []
        check_progress(message, len(left), self._after)
        self._sums.add(message, left)
        draft.compare(self._sums, left[: message.done])
        rest = left[message.done :]
        self._after = message.after
        if rest and message.after and self._sums.counts[rest[0]] > draft.sums.counts[rest[0]]:
            draft.differ(rest[:1])  # more records only add to the difference
            rest, self._after = rest[1:], b""
        self._left = rest
        if rest:
            return [self._ask(now)]
        self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if not failure.error.retryable:
            raise failure.error
        if isinstance(failure.error, StaleEpoch | Misrouted):
            return self.operation.read_again(self.draft, self.attempt + 1, now)
        return self._ask_another(now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return self._ask_another(now)

    def _ask_another(self, now: int) -> list[Send]:
        """Request the votes from other replicas; from the same replica only after a pause."""
        operation, draft = self.operation, self.draft
        if operation.session.epoch != self.epoch:
            return operation.read_again(draft, self.attempt + 1, now)
        for place in self.places:
            draft.voters[place].discard(self.peer)
        chunks = operation.checks(draft, self.places, self.attempt + 1)
        same: list[Chunk] = [chunk for chunk in chunks if chunk.peer == self.peer]
        rest: list[Chunk] = [chunk for chunk in chunks if chunk.peer != self.peer]
        return operation.replace_later(self, same, now) + operation.start(rest, now)

    def expired(self, error: DStashError) -> None:
        self.operation.error = self.operation.error or error
