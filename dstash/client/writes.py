"""Writing: puts, deletes and whole records, to every replica at once.

A chunk goes to all replicas of its keys and is done when enough have it on disk. A replica that
holds something newer says so; then the write is stamped past it and sent again, because a caller
whose put returned must find it, however slow the clocks were. A retry after an error keeps its
version: it is the same write.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final

from dstash.client.core import Chunk, Failure, Operation
from dstash.client.results import BatchResult
from dstash.client.routing import WriteSet, group
from dstash.client.session import Send, Session
from dstash.client.slabs import Item, content_of, dealt, encoded_of, largest_of, runs, steps
from dstash.errors import (
    BelowFloor,
    ClockSkew,
    DStashError,
    ProtocolError,
    StaleEpoch,
    Unavailable,
    from_wire,
)
from dstash.types import NEVER, Level, Outcome
from dstash.version import Version, newest_stamp
from dstash.wire import codec
from dstash.wire.messages import Apply, Delete, Put, Stored
from dstash.wire.replication import Hint
from dstash.wire.shapes import Frame, Message

KEYS_PER_CHUNK: Final = 4096
BYTES_PER_CHUNK: Final = 1024 * 1024
BYTES_PER_SLAB: Final = 32 * 1024 * 1024


class WriteOperation(Operation):
    """Writes items; the result is a ``BatchResult``."""

    def __init__(
        self, session: Session, deadline: int, index: str, level: Level, items: Sequence[Item]
    ) -> None:
        super().__init__(session, deadline)
        self.index = index
        self.level = level
        self.outcome = BatchResult()
        self._items = items
        self._largest = largest_of(items)

    @abstractmethod
    def message(self, version: Version, items: Sequence[Item], keys: Frame) -> Message:
        """Return the request that writes ``items``."""

    def _chunks(self) -> Iterator[list[Chunk]]:
        for slab in runs(self._items, self.session.slab, BYTES_PER_SLAB, self._largest):
            yield from steps(self.cut(slab))

    def cut(
        self,
        items: Sequence[Item],
        version: Version | None = None,
        attempt: int = 0,
        *,
        tainted: bool = False,
    ) -> list[Chunk]:
        """Return chunks for items, routed by the view at hand.

        Args:
            version: of all of them, for a retry; None: each chunk is stamped. The versions grow in
                the order in which chunks are sent, so each is above what a replica has stored.
        """
        view = self.session.known_view()
        groups = group(
            [encoded for _, encoded, _ in items], items, self.session.write_targets(view)
        )
        parts = dealt(
            [
                (targets, part)
                for part in runs(members, KEYS_PER_CHUNK, BYTES_PER_CHUNK, self._largest)
            ]
            for targets, members in groups.items()
        )
        stamp = self.session.new_version
        return [
            WriteChunk(
                self, targets, view.epoch, part, version or stamp(), attempt, tainted=tainted
            )
            for targets, part in parts
        ]

    def settle(self, chunk: WriteChunk, rejected: dict[int, DStashError]) -> None:
        """Take a chunk as written, but for the items that were rejected."""
        self.outcome.stored += len(chunk.items) - len(rejected)
        self.outcome.deleted += sum(chunk.existed)
        for place, error in rejected.items():
            # Another replica, whose horizon is behind, may have taken what is past for this one.
            is_past = isinstance(error, BelowFloor)
            outcome = Outcome.UNKNOWN if is_past else Outcome.FAILED
            self.outcome.outcomes[chunk.items[place][0]] = outcome
            self.outcome.reasons.append(error)

    def give_up(self, chunk: WriteChunk, error: DStashError) -> None:
        """Take a chunk as not written: failed if nobody can have it, else unknown."""
        outcome = Outcome.UNKNOWN if chunk.tainted else Outcome.FAILED
        self.outcome.outcomes.update((key, outcome) for key, _, _ in chunk.items)
        self.outcome.reasons.append(error)

    def result(self) -> BatchResult:
        """Return the outcomes."""
        super().result()
        return self.outcome


class PutOperation(WriteOperation):
    """Stores payloads that all live for ``ttl`` milliseconds from now (None: for ever)."""

    def __init__(
        self,
        session: Session,
        deadline: int,
        index: str,
        level: Level,
        items: Sequence[Item],
        ttl: int | None,
    ) -> None:
        super().__init__(session, deadline, index, level, items)
        self.ttl = ttl
        self.expiry = NEVER

    def _chunks(self) -> Iterator[list[Chunk]]:
        if self.ttl is not None:
            self.expiry = self.session.cluster_time() + self.ttl
        yield from super()._chunks()

    def message(self, version: Version, items: Sequence[Item], keys: Frame) -> Message:
        """Return a ``Put``."""
        payloads = Frame(codec.pack_blobs(list(map(content_of, items))))
        return Put(self.index, version, self.expiry, keys, payloads)


class DeleteOperation(WriteOperation):
    """Writes tombstones."""

    def message(self, version: Version, items: Sequence[Item], keys: Frame) -> Message:
        """Return a ``Delete``."""
        return Delete(self.index, version, keys)


class ApplyOperation(WriteOperation):
    """Writes whole records under the versions they carry. Being beaten is as good as stored."""

    def message(self, version: Version, items: Sequence[Item], keys: Frame) -> Message:
        """Return an ``Apply``."""
        records = Frame(codec.pack_blobs(list(map(content_of, items))))
        return Apply(self.index, keys, records)


class WriteChunk(Chunk):
    """Items that go to the same replicas under one version."""

    patience = 1500  # a sync takes its time; the other replicas have been asked already

    def __init__(
        self,
        operation: WriteOperation,
        targets: WriteSet,
        epoch: int,
        items: Sequence[Item],
        version: Version,
        attempt: int,
        *,
        tainted: bool,
    ) -> None:
        self.operation = operation
        self.targets = targets
        self.items = items
        self.version = version
        self.attempt = attempt
        self.epoch: int = epoch
        #: Whether some replica may hold the write although nobody said so.
        self.tainted = tainted
        self.existed = bytearray(len(items))
        self._acks: set[str] = set()
        self._superseded: dict[int, Version] = {}
        self._rejected: dict[int, DStashError] = {}
        self._failed: dict[str, DStashError] = {}
        self._message: Message | None = None
        self._paused = False
        self._begun = False

    def begin(self, now: int) -> list[Send]:
        """Send to every replica that has not acked; route anew when the view has changed."""
        if self.operation.session.epoch > self.epoch:
            return self._reroute(self.version, now)
        if self._message is None:
            keys = Frame(codec.pack_blobs(list(map(encoded_of, self.items))))
            self._message = self.operation.message(self.version, self.items, keys)
        if self._begun and self._waiting():
            self.tainted = True  # they are asked twice, so one answer does not settle it
        self._begun = True
        waiting = [peer for peer in self.targets.peers if peer not in self._acks]
        self._failed.clear()
        self._paused = False
        return [self.operation.ask(peer, self, self._message, now) for peer in waiting]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Take an ack."""
        if not isinstance(message, Stored):
            error = ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
            return self.failed(peer, Failure(error, definite=False), now)
        self.tainted = True
        doubt = self._not_an_ack(peer, message)
        if doubt is not None:
            return self.failed(peer, Failure(doubt, definite=False), now)
        self._acks.add(peer)
        for place, existed in enumerate(message.existed[: len(self.items)]):
            self.existed[place] |= existed
        for place, code, detail in message.rejected:
            if code == 0:
                known = self._superseded.get(place, b"")
                self._superseded[place] = max(known, detail)
            else:
                self._rejected[place] = from_wire(code, detail, {})
        if self.targets.is_met(self._acks, self.operation.level):
            return self._complete(now)
        return self._settle_if_hopeless(now)

    def _not_an_ack(self, peer: str, message: Stored) -> DStashError | None:
        """Return why an answer does not count: the peer's clock is wrong, or it must wait."""
        for _, code, detail in message.rejected:
            if code:
                error = from_wire(code, detail, {})
                # What is past for a replica stays so: it has given its answer.
                if error.retryable and not isinstance(error, BelowFloor):
                    return error
            elif self.operation.session.is_from_the_future(newest_stamp(detail)):
                return ClockSkew(f"{peer} holds a version from the future")
        return None

    def _complete(self, now: int) -> list[Send]:
        beaten = sorted(self._superseded) if not isinstance(self.operation, ApplyOperation) else []
        hints = self._hints()
        if beaten:
            return hints + self._stamp_past(beaten, now)
        self.operation.settle(self, self._rejected)
        self.operation.finish(self)
        return hints

    def _hints(self) -> list[Send]:
        """Tell a replica that has the write which others missed it (hinted handoff)."""
        session = self.operation.session
        missed = [
            peer
            for peer in self.targets.peers
            if peer not in self._acks and (peer in self._failed or session.is_avoided(peer))
        ]
        if not missed:
            return []
        keys = Frame(codec.pack_blobs([encoded for _, encoded, _ in self.items]))
        keeper = min(self._acks)
        return [
            session.request(
                keeper,
                session.next_correlation(),
                self.operation.deadline,
                Hint(self.operation.index, peer, keys),
            )
            for peer in missed
        ]

    def _stamp_past(self, beaten: list[int], now: int) -> list[Send]:
        session = self.operation.session
        for version in self._superseded.values():
            session.observe(newest_stamp(version))
        again = [self.items[place] for place in beaten]
        lost = set(beaten)
        kept = [place for place in range(len(self.items)) if place not in lost]
        rejected = {
            new: self._rejected[place] for new, place in enumerate(kept) if place in self._rejected
        }
        self.existed = bytearray(self.existed[place] for place in kept)
        self.items = [self.items[place] for place in kept]
        self.operation.settle(self, rejected)
        chunks = self.operation.cut(again, None, self.attempt, tainted=True)
        return self.operation.replace(self, chunks, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Take note that one replica did not ack; try again when the rest cannot be enough."""
        error = failure.error
        self.tainted = self.tainted or not failure.definite
        if isinstance(error, StaleEpoch) and self.operation.session.epoch > self.epoch:
            return self._reroute(self.version, now)
        if isinstance(error, BelowFloor) and self._rises_above(error):
            return self._reroute(None, now)
        self._failed[peer] = error
        return self._settle_if_hopeless(now)

    def _rises_above(self, error: BelowFloor) -> bool:
        """Move the clock past a floor; False when that floor is from the future."""
        session, floor = self.operation.session, error.facts.get("floor")
        stamp = floor if isinstance(floor, int) else 0
        session.observe(stamp)
        return not session.is_from_the_future(stamp)

    def _reroute(self, version: Version | None, now: int) -> list[Send]:
        tainted = self.tainted or (self._begun and bool(self._waiting()))
        chunks = self.operation.cut(self.items, version, self.attempt, tainted=tainted)
        return self.operation.replace(self, chunks, now)

    def _waiting(self) -> list[str]:
        known = self._acks | self._failed.keys()
        return [peer for peer in self.targets.peers if peer not in known]

    def _settle_if_hopeless(self, now: int) -> list[Send]:
        possible = self._acks.union(self._waiting())
        if self.targets.is_met(possible, self.operation.level):
            return []
        # Those that may yet change their minds are asked again, after a pause.
        hopeful = possible | {peer for peer, error in self._failed.items() if error.retryable}
        if not self.targets.is_met(hopeful, self.operation.level):
            self.tainted = self.tainted or bool(self._waiting())
            self.operation.give_up(self, self._worst())
            self.operation.finish(self)
            return []
        if not self._waiting() and not self._paused:
            self._try_again(now)
        return []

    def _try_again(self, now: int) -> None:
        if any(isinstance(error, ClockSkew) for error in self._failed.values()) and not self._acks:
            self._stamp_anew_later(now)
            return
        self._paused = True
        self.operation.again_later(self, now)
        self.attempt += 1

    def _stamp_anew_later(self, now: int) -> None:
        # Other chunks, so that a late ack of this version does not count as one of theirs.
        operation, tainted = self.operation, self.tainted or bool(self._waiting())
        chunks = operation.cut(self.items, None, self.attempt + 1, tainted=tainted)
        operation.replace_later(self, chunks, now)

    def _worst(self) -> DStashError:
        final = (error for error in self._failed.values() if not error.retryable)
        too_few = Unavailable("too few replicas hold their data: others have lost it")
        return next(final, too_few)

    def silent(self, peer: str, now: int) -> list[Send]:
        """Wait on, for a slow replica may still ack; but ask those again that failed."""
        if any(error.retryable for error in self._failed.values()) and not self._paused:
            self._try_again(now)
        return []

    def expired(self, error: DStashError) -> None:
        """Tell the outcome as far as it is known."""
        self.tainted = self.tainted or (self._begun and bool(self._waiting()))
        self.operation.give_up(self, error)
