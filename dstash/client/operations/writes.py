"""Writes: puts, deletes and whole records, sent to all replicas at once.

A chunk goes to all replicas of its keys and is done when enough of them have stored it. If a
replica holds a newer version, it answers ``superseded``; the write is then stamped past it and sent
again, because a caller must find its own write after the put returned, however slow its clock is. A
retry after an error keeps its version, because it is the same write.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from itertools import compress
from typing import Final, NamedTuple

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.operations.batching import (
    Item,
    chunked,
    content_of,
    encoded_of,
    interleave,
    largest_of,
    split_by_size,
)
from dstash.client.operations.clock_reading import ClockReading
from dstash.client.refusals import Refusals, error_for, is_final
from dstash.client.results import BatchResult
from dstash.client.routing import Peers, WriteSet, group
from dstash.client.session import Send, Session
from dstash.errors import (
    BelowFloor,
    ClockSkew,
    DeadlinePassed,
    DStashError,
    ProtocolError,
    StaleEpoch,
    Unavailable,
    from_wire,
)
from dstash.limits import MOST_REPLACED
from dstash.types import NEVER, Level, Outcome
from dstash.version import VERSION_BYTES, Stamp, Version, newest_stamp
from dstash.wire import codec
from dstash.wire.keys import Key
from dstash.wire.messages import Apply, Delete, Put, Stored
from dstash.wire.replication import Hint
from dstash.wire.shapes import EMPTY, Frame, Message

KEYS_PER_CHUNK: Final = 4096
BYTES_PER_CHUNK: Final = 1024 * 1024
#: Tolerated error of an expiry after the clocks of peers were set.
TTL_TOLERANCE_MS: Final = 500
BYTES_PER_BATCH: Final = 32 * 1024 * 1024


class Earlier(NamedTuple):
    """The versions of earlier attempts at a write.

    ``refused`` are the versions that some replica rejected as future, packed, and all earlier
    versions of a delete: another replica may hold them. ``passed`` is the highest future stamp that
    the write was stamped past, and ``is_repeated`` whether that version was sent twice.
    """

    refused: bytes = b""
    passed: Stamp = 0
    is_repeated: bool = False

    def with_refused(self, version: Version) -> Earlier:
        """Return a copy with one more version; the oldest are dropped if there are too many."""
        kept = self.refused[-(MOST_REPLACED - 1) * VERSION_BYTES :]
        return self._replace(refused=kept + version)


_FIRST_ATTEMPT: Final = Earlier()


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
        #: Keys that were live before an earlier attempt of this call.
        self._existed: set[Key] = set()
        self._reading: ClockReading | None = None

    def renew(self) -> None:
        """Prepare for another version, with the current clock readings."""

    @property
    def is_outdated(self) -> bool:
        """Whether stored items must be written again, by the current clock readings."""
        return False

    @abstractmethod
    def message(
        self, version: Version, items: Sequence[Item], keys: Frame, replaces: bytes
    ) -> Message:
        """Return the request that writes ``items``."""

    @property
    def hungry(self) -> bool:
        """Whether ``more`` has something to send now. It has not while clocks are being read."""
        reads_clocks = self._reading is not None and not self._reading.is_over
        return super().hungry and not reads_clocks

    def _clocks_first(self) -> Iterator[list[Chunk]]:
        """Yield the clock reading, if it must precede the first stamp."""
        if self._reading is None and self.session.unread_clocks():
            self._reading = ClockReading(self)
            yield [self._reading]

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield from self._clocks_first()
        for batch_keys in split_by_size(
            self._items, self.session.batch_keys, BYTES_PER_BATCH, self._largest
        ):
            yield from chunked(self.cut(batch_keys))

    def cut(
        self,
        items: Sequence[Item],
        version: Version | None = None,
        attempt: int = 0,
        *,
        indeterminate: bool = False,
        earlier: Earlier = _FIRST_ATTEMPT,
    ) -> list[Chunk]:
        """Return chunks for items, routed by the current view.

        Args:
            items: to write.
            version: of all chunks, for a retry; None to stamp each chunk. Versions increase in the
                order in which chunks are sent, so each is above those that a replica has stored.
            attempt: number of earlier attempts.
            indeterminate: whether a replica may already hold the items.
            earlier: the versions of earlier attempts.
        """
        view = self.session.known_view()
        groups = group(
            [encoded for _, encoded, _ in items], items, self.session.write_targets(view)
        )
        parts = interleave(
            [
                (targets, part)
                for part in split_by_size(members, KEYS_PER_CHUNK, BYTES_PER_CHUNK, self._largest)
            ]
            for targets, members in groups.items()
        )
        stamp = self.session.new_version
        return [
            WriteChunk(
                self,
                targets,
                view.epoch,
                part,
                version or stamp(),
                attempt,
                indeterminate=indeterminate,
                earlier=earlier,
            )
            for targets, part in parts
        ]

    def settle(self, chunk: WriteChunk, places: Sequence[int]) -> None:
        """Count items of a chunk as stored."""
        self.outcome.stored += len(places)
        if self._existed:
            self.outcome.deleted += sum(self.existed(chunk, place) for place in places)
        elif len(places) == len(chunk.items):
            self.outcome.deleted += sum(chunk.existed)
        else:
            self.outcome.deleted += sum(chunk.existed[place] for place in places)

    def existed(self, chunk: WriteChunk, place: int) -> bool:
        """Whether a replica held a live record of an item, in any attempt of this call."""
        return bool(chunk.existed[place]) or chunk.items[place][0] in self._existed

    def keep_existed(self, chunk: WriteChunk) -> None:
        """Remember which keys of a chunk existed: its tombstones hide that from its successors."""
        if any(chunk.existed):
            flagged = compress(chunk.items, chunk.existed)
            self._existed.update(key for key, _, _ in flagged)

    def give_up(
        self, chunk: WriteChunk, places: Sequence[int], outcome: Outcome, error: DStashError
    ) -> None:
        """Record items of a chunk as failed or unknown."""
        self.outcome.outcomes.update((chunk.items[place][0], outcome) for place in places)
        self.outcome.reasons.append(error)

    def fail(self, error: DStashError) -> None:
        """End the whole call with an error, which is ``TimedOut`` if an item may be stored."""
        begun = any(isinstance(chunk, WriteChunk) and chunk.may_be_stored for chunk in self._open)
        if begun or self.outcome.stored:
            error = error_for(Outcome.UNKNOWN, error)
        super().fail(error)

    def result(self) -> BatchResult:
        """Return the outcomes."""
        super().result()
        return self.outcome


class PutOperation(WriteOperation):
    """Stores payloads that expire ``ttl`` milliseconds from now (None: never)."""

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
        #: The expiry that was sent with each version: it must not change.
        self._expiries: dict[Version, int] = {}
        self._offset = 0

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield from self._clocks_first()
        self.renew()
        yield from super()._chunks()

    def renew(self) -> None:
        """Compute the expiry from the current clock readings."""
        if self.ttl is not None:
            self._offset = self.session.offset
            self.expiry = self.session.cluster_time() + self.ttl

    @property
    def is_outdated(self) -> bool:
        """Whether the clocks of the peers turned out to be set since the expiry was computed."""
        drift = abs(self.session.offset - self._offset)
        return self.ttl is not None and drift > TTL_TOLERANCE_MS

    def message(
        self, version: Version, items: Sequence[Item], keys: Frame, replaces: bytes
    ) -> Message:
        """Return a ``Put``."""
        payloads = Frame(codec.pack_blobs(list(map(content_of, items))))
        expiry = self._expiries.setdefault(version, self.expiry)
        return Put(self.index, version, expiry, keys, payloads, replaces)


class DeleteOperation(WriteOperation):
    """Writes tombstones."""

    def message(
        self, version: Version, items: Sequence[Item], keys: Frame, replaces: bytes
    ) -> Message:
        """Return a ``Delete``."""
        return Delete(self.index, version, keys, replaces)


class ApplyOperation(WriteOperation):
    """Writes whole records with their own versions. A superseded record counts as stored."""

    def message(
        self, version: Version, items: Sequence[Item], keys: Frame, replaces: bytes
    ) -> Message:
        """Return an ``Apply``."""
        records = Frame(codec.pack_blobs(list(map(content_of, items))))
        return Apply(self.index, keys, records)


class WriteChunk(Chunk):
    """Items that go to the same replicas under one version."""

    patience = 1500  # a sync takes long, and the other replicas have got the request already

    def __init__(
        self,
        operation: WriteOperation,
        targets: WriteSet,
        epoch: int,
        items: Sequence[Item],
        version: Version,
        attempt: int,
        *,
        indeterminate: bool,
        earlier: Earlier,
    ) -> None:
        self.operation = operation
        self.targets = targets
        self.items = items
        self.version = version
        self.attempt = attempt
        self.epoch: int = epoch
        #: Whether some replica may hold the write although none has acked it.
        self.indeterminate = indeterminate
        self.earlier = earlier
        #: The highest future stamp that a replica holds, or its future floor, by replica.
        self._ahead: dict[str, Stamp] = {}
        self.existed = bytearray(len(items))
        self._acks: set[str] = set()
        self._superseded: dict[int, Version] = {}
        self._refusals = Refusals()
        self._settled: set[int] = set()
        self._left = len(items)
        self._failed: dict[str, DStashError] = {}
        self._message: Message | None = None
        self._keys = EMPTY
        #: Replicas that have the stored items; empty until then.
        self._holders: Peers = ()
        self._paused = False
        self._begun = False

    @property
    def may_be_stored(self) -> bool:
        """Whether a replica may hold an item that is not settled."""
        groups = self._refusals.groups(len(self.items), self._settled)
        return any(self._is_unknown(self._acks - refusing) for refusing, _ in groups)

    def begin(self, now: int) -> list[Send]:
        """Send to every replica that has not acked; reroute if the view has changed."""
        if self.operation.session.epoch > self.epoch:
            return self._reroute(self.version, now)
        if self._message is None:
            keys = self._keys = Frame(codec.pack_blobs(list(map(encoded_of, self.items))))
            self._message = self.operation.message(
                self.version, self.items, keys, self.earlier.refused
            )
        if self._begun and self._waiting():
            self.indeterminate = True  # sent twice, so one answer does not settle it
        self._begun = True
        waiting = [peer for peer in self.targets.peers if peer not in self._acks]
        self._failed.clear()
        self._paused = False
        return [self.operation.ask(peer, self, self._message, now) for peer in waiting]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Process an ack: of all items, except those that the replica refused."""
        if not isinstance(message, Stored):
            error = ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
            return self.failed(peer, Failure(error, definite=False), now)
        self._acks.add(peer)
        self._note_store(peer, message)
        for place, existed in enumerate(message.existed[: len(self.items)]):
            self.existed[place] |= existed
        for place, code, detail in message.rejected:
            if code:
                self._refusals.add(place, peer, from_wire(code, detail, {}))
            elif self.operation.session.is_from_the_future(newest_stamp(detail)):
                self._is_ahead(peer, newest_stamp(detail))
                skew = ClockSkew(f"{peer} holds a version from the future")
                self._refusals.add(place, peer, skew)
            else:
                known = self._superseded.get(place, b"")
                self._superseded[place] = max(known, detail)
        return self._proceed(now)

    def _note_store(self, peer: str, message: Stored) -> None:
        """Record that the store of a peer has acked the stamp of this write."""
        sighting = self.operation.stores.get(peer)
        is_stamped = not isinstance(self.operation, ApplyOperation)
        if sighting is not None and is_stamped and len(message.rejected) < len(self.items):
            sighting.acked(newest_stamp(self.version))

    def _proceed(self, now: int, *, waits: bool = True) -> list[Send]:
        """Settle the items that are decided; retry the rest, or give them up.

        Args:
            now: milliseconds, by the clock of this machine.
            waits: whether to wait for unanswered requests before giving an item up: the answers
                may show whether it is stored.
        """
        sends: list[Send] = []
        waiting = self._waiting()
        again = False
        for refusing, places in self._refusals.groups(len(self.items), self._settled):
            acks = self._acks - refusing
            possible = acks.union(waiting)
            if self._is_met(acks):
                sends += self._store(places, acks, now)
            elif not acks and self._refusals.shared(places[0]) and self._is_met(self._acks):
                self._give_up(places, acks)
            elif self._is_met(possible):
                continue
            elif self._is_met(possible | self._may_store_later(places[0])):
                again = True
            elif not (waiting and waits):
                self._give_up(places, acks)
        if not self._left:
            sends += self._end(now)
        elif again and not waiting and not self._paused:
            sends += self._try_again(now)
        return sends

    def _end(self, now: int) -> list[Send]:
        """Finish; late answers of replicas are still processed after the call."""
        outstanding = self.operation.finish(self)
        if not outstanding or not self._holders or self._message is None:
            return []
        session = self.operation.session
        late = [(number, peer) for number, peer in outstanding if not session.is_suspect(peer)]
        missed = session.outstanding.add(late, self.operation.index, self._keys, self._holders, now)
        return session.hints(missed, now)

    def _is_met(self, acks: Collection[str]) -> bool:
        return self.targets.is_met(acks, self.operation.level)

    def _may_store_later(self, place: int) -> set[str]:
        """Return the replicas that refused an item, and may store it on a retry."""
        failed = {peer for peer, error in self._failed.items() if error.retryable}
        return failed | self._refusals.retryable(place)

    def _is_unknown(self, acks: Collection[str]) -> bool:
        """Whether a replica may hold an item, given the replicas that acked it."""
        return self.indeterminate or bool(acks) or (self._begun and bool(self._waiting()))

    def _store(self, places: Sequence[int], acks: set[str], now: int) -> list[Send]:
        """Settle items as stored; stamp superseded items past the newer version instead."""
        hints = self._hints(places, acks)
        superseded: Sequence[int] = []
        if self.operation.is_outdated:
            superseded, places = places, []
        elif self._superseded and not isinstance(self.operation, ApplyOperation):
            superseded = [place for place in places if place in self._superseded]
            places = [place for place in places if place not in self._superseded]
        if places:
            self._holders = tuple(sorted(acks))
        self._settle(places)
        self.operation.settle(self, places)
        return hints + self._stamp_past(superseded, now) if superseded else hints

    def _settle(self, places: Sequence[int]) -> None:
        self._left -= len(places)
        if self._left:
            self._settled.update(places)

    def _give_up(self, places: Sequence[int], acks: Collection[str]) -> None:
        """Settle items as failed, or as unknown if a replica may hold them."""
        reasons = self._failed | dict(self._refusals.of(places[0]))
        final = next(filter(is_final, reasons.values()), None)
        why = final or Unavailable("too few replicas have their data; the rest have lost it")
        text = "; ".join(f"{peer}: {error}" for peer, error in sorted(reasons.items()))
        alike = self._refusals.shared(places[0]) and not acks
        outcome = Outcome.UNKNOWN if self._is_unknown(acks) and not alike else Outcome.FAILED
        self._settle(places)
        self.operation.give_up(self, places, outcome, error_for(outcome, why, text))

    def _hints(self, places: Sequence[int], acks: set[str]) -> list[Send]:
        """Return hints about the replicas that missed the write (hinted handoff)."""
        session = self.operation.session
        refused = self._refusals.of(places[0])
        missed = [
            peer
            for peer in self.targets.peers
            if peer not in acks
            and (peer in self._failed or peer in refused or session.is_suspect(peer))
        ]
        if not missed:
            return []
        keys = Frame(codec.pack_blobs([self.items[place][1] for place in places]))
        agent = min(acks)
        return [
            session.request(
                agent,
                session.next_correlation(),
                self.operation.deadline,
                Hint(self.operation.index, peer, keys),
            )
            for peer in missed
        ]

    def _stamp_past(self, superseded: Sequence[int], now: int) -> list[Send]:
        session = self.operation.session
        for version in self._superseded.values():
            session.observe(newest_stamp(version))
        self._settle(superseded)
        self.operation.keep_existed(self)
        self._keep_version()
        self.operation.renew()
        again = [self.items[place] for place in superseded]
        chunks = self.operation.cut(
            again, None, self.attempt, indeterminate=True, earlier=self.earlier
        )
        return self.operation.start(chunks, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Record that a replica did not ack; retry if the rest cannot meet the level."""
        error = failure.error
        self.indeterminate = self.indeterminate or not failure.definite
        if isinstance(error, StaleEpoch) and self.operation.session.epoch > self.epoch:
            return self._reroute(self.version, now)
        if isinstance(error, BelowFloor) and self._rises_above(peer, error):
            self._keep_version()
            return self._reroute(None, now)
        self._failed[peer] = error
        return self._proceed(now)

    def _is_ahead(self, peer: str, stamp: Stamp) -> None:
        self._ahead[peer] = max(stamp, self._ahead.get(peer, 0))

    def _least_ahead(self) -> Stamp:
        """Return the lowest stamp above which enough replicas accept this write; 0 for any.

        Higher stamps are held by a minority only, so the write need not be stamped past them.
        """
        for stamp in sorted({0, *self._ahead.values()}):
            able = [peer for peer in self.targets.peers if self._ahead.get(peer, 0) <= stamp]
            if self._is_met(able):
                return stamp
        return max(self._ahead.values(), default=0)

    def _rises_above(self, peer: str, error: BelowFloor) -> bool:
        """Move the clock past a floor; return False if the floor is a future stamp."""
        session, floor = self.operation.session, error.details.get("floor")
        stamp = floor if isinstance(floor, int) else 0
        session.observe(stamp)
        is_ahead = session.is_from_the_future(stamp)
        if is_ahead:
            self._is_ahead(peer, stamp)
        return not is_ahead

    def _reroute(self, version: Version | None, now: int) -> list[Send]:
        return self.operation.replace(self, self._successors(version, self.attempt), now)

    def _successors(self, version: Version | None, attempt: int) -> list[Chunk]:
        """Return chunks for the items that are not settled, routed by the current view."""
        self.operation.keep_existed(self)
        items = self.items
        if self._settled:
            items = [item for place, item in enumerate(items) if place not in self._settled]
        return self.operation.cut(
            items, version, attempt, indeterminate=self.may_be_stored, earlier=self.earlier
        )

    def _waiting(self) -> list[str]:
        known = self._acks | self._failed.keys()
        return [peer for peer in self.targets.peers if peer not in known]

    def _try_again(self, now: int) -> list[Send]:
        self._paused = True
        version = self._next_version(now)
        if version == self.version and not self._refusals:
            self.operation.again_later(self, now)
            self.attempt += 1
            return []
        if version != self.version:
            self.operation.renew()
        # New chunks, so that a late ack of this version does not count for another version. With
        # the same version, only the refused items are sent again, to all replicas.
        chunks = self._successors(version, self.attempt + 1)
        return self.operation.replace_later(self, chunks, now)

    def _next_version(self, now: int) -> Version | None:
        """Return the version of the next attempt; it differs if clocks disagree.

        If so many replicas hold a stamp (or a floor) ahead of every known clock that this write
        cannot be acked below it, that stamp may be correct, and the write is stamped past it. If
        the remaining replicas reject this twice (they compare clocks after the first time), the
        stamp is wrong. Then the write is stamped by the clock again (None), and replaces the
        version that it got from a wrong clock.
        """
        if isinstance(self.operation, ApplyOperation):
            return self.version
        is_past = newest_stamp(self.version) > self.earlier.passed > 0
        ahead = self._least_ahead()
        if ahead > (self.earlier.passed if is_past else 0):
            self.earlier = self.earlier._replace(passed=ahead, is_repeated=False)
            return self.operation.session.version_past(ahead)
        reasons = self._failed.values()
        if not self._acks and any(isinstance(error, DeadlinePassed) for error in reasons):
            self._keep_version()
            return None  # the clocks that this client had read were set since
        if not any(isinstance(error, ClockSkew) for error in reasons):
            return self.version
        if is_past and not self.earlier.is_repeated:
            self.earlier = self.earlier._replace(is_repeated=True)
            return self.version
        if not is_past:  # else this version may have replaced a correct version
            self.earlier = self.earlier.with_refused(self.version)
        self.operation.session.distrust_old_clocks(now)
        return None

    def _keep_version(self) -> None:
        """Remember the old version of a delete that gets a new version, for the next request.

        A replica that stored it, and whose answer was lost, has recorded whether the key existed.
        """
        if isinstance(self.operation, DeleteOperation):
            self.earlier = self.earlier.with_refused(self.version)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Keep waiting, because a slow replica may still ack; retry replicas that failed."""
        sends = self._proceed(now, waits=False)
        if self._left and not self._paused and self._has_retryable():
            sends += self._try_again(now)
        return sends

    def _has_retryable(self) -> bool:
        groups = self._refusals.groups(len(self.items), self._settled)
        return any(self._may_store_later(places[0]) for _, places in groups)

    def expired(self, error: DStashError) -> None:
        """Give up the items that are not settled, with the outcome as far as it is known."""
        for refusing, places in self._refusals.groups(len(self.items), self._settled):
            is_unknown = self._is_unknown(self._acks - refusing)
            outcome = Outcome.UNKNOWN if is_unknown else Outcome.FAILED
            refused = self._refusals.of(places[0])
            text = "; ".join([str(error), *(f"{peer}: {why}" for peer, why in refused.items())])
            self.operation.give_up(self, places, outcome, error_for(outcome, error, text))
