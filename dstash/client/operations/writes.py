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
from typing import Final

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
from dstash.client.operations.versions import FIRST_ATTEMPT, Earlier, WriteVersions
from dstash.client.operations.votes import Votes
from dstash.client.outstanding import Missed
from dstash.client.refusals import by_peer, error_for, is_final
from dstash.client.results import BatchResult
from dstash.client.routing import Peers, WriteSet, group
from dstash.client.session import Send, Session
from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.errors import (
    BelowFloor,
    ClockSkew,
    DStashError,
    ProtocolError,
    StaleEpoch,
    Unavailable,
    from_wire,
)
from dstash.store.record import build_record, open_record
from dstash.types import NEVER, Level, Outcome
from dstash.version import Version, is_later_write, newest_stamp, with_touch
from dstash.wire import codec
from dstash.wire.keys import Key
from dstash.wire.messages import Apply, Delete, Put, Stored
from dstash.wire.shapes import EMPTY, Frame, Message

KEYS_PER_CHUNK: Final = 4096
BYTES_PER_CHUNK: Final = 1024 * 1024
#: Tolerated error of an expiry after the clocks of peers were set.
TTL_TOLERANCE_MS: Final = 500
BYTES_PER_BATCH: Final = 32 * 1024 * 1024


class WriteOperation(Operation):
    """Writes items; the result is a ``BatchResult``."""

    #: Whether items are stamped by this client. Whole records have versions of their own.
    is_stamped = True
    #: Whether a request names all versions of earlier attempts.
    keeps_versions = False
    #: Whether to read clocks that are unread; False if the transport does that.
    reads_clocks = True

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

    @property
    def settings(self) -> IndexSettings | None:
        """The settings that peers apply to this write, as far as this client knows."""
        return None

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
        if self.reads_clocks and self._reading is None and self.session.unread_clocks():
            self._reading = ClockReading(self)
            yield [self._reading]

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield from self._clocks_first()
        most = self.session.batch_keys
        for items in split_by_size(self._items, most, BYTES_PER_BATCH, self._largest):
            yield from chunked(self.cut(items))

    def cut(
        self,
        items: Sequence[Item],
        version: Version | None = None,
        attempt: int = 0,
        *,
        indeterminate: bool = False,
        earlier: Earlier = FIRST_ATTEMPT,
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
        self.outcome.give_up([chunk.items[place][0] for place in places], outcome, error)

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
            self.expire_at(self.session.cluster_time() + self.ttl, self.session.offset)

    def expire_at(self, expiry: int, offset: int) -> None:
        """Take an expiry, and how far the cluster clock was ahead when it was computed."""
        self.expiry, self._offset = expiry, offset

    @property
    def is_outdated(self) -> bool:
        """Whether the clocks of the peers turned out to be set since the expiry was computed."""
        drift = abs(self.session.offset - self._offset)
        return self.ttl is not None and drift > TTL_TOLERANCE_MS

    @property
    def settings(self) -> IndexSettings | None:
        """The settings of the index in the current view."""
        return self.session.known_view().index_settings.get(self.index)

    def message(
        self, version: Version, items: Sequence[Item], keys: Frame, replaces: bytes
    ) -> Message:
        """Return a ``Put``."""
        payloads = Frame(codec.pack_blobs(list(map(content_of, items))))
        expiry = self._expiries.setdefault(version, self.expiry)
        return Put(self.index, version, expiry, keys, payloads, replaces)


class DeleteOperation(WriteOperation):
    """Writes tombstones."""

    keeps_versions = True

    def settle(self, chunk: WriteChunk, places: Sequence[int]) -> None:
        """Count items of a chunk as stored, and list those that did not exist."""
        before = self.outcome.deleted
        super().settle(chunk, places)
        if self.outcome.deleted - before < len(places):
            self.outcome.missing += [
                chunk.items[place][0] for place in places if not self.existed(chunk, place)
            ]

    def message(
        self, version: Version, items: Sequence[Item], keys: Frame, replaces: bytes
    ) -> Message:
        """Return a ``Delete``."""
        return Delete(self.index, version, keys, replaces)


class ApplyOperation(WriteOperation):
    """Writes whole records with their own versions. A superseded record counts as stored."""

    is_stamped = False
    #: Whether the records are touched by this call.
    is_touch = False

    def message(
        self, version: Version, items: Sequence[Item], keys: Frame, replaces: bytes
    ) -> Message:
        """Return an ``Apply``."""
        records = Frame(codec.pack_blobs(list(map(content_of, items))))
        return Apply(self.index, keys, records, self.is_touch)


class TouchOperation(ApplyOperation):
    """Writes a record with another expiry.

    Unlike other whole records it is new, so it has a stamp of this client: that of the touch.
    """

    is_touch = True
    _is_cut = False

    @property
    def settings(self) -> IndexSettings | None:
        """The settings of the index in the current view."""
        return self.session.known_view().index_settings.get(self.index)

    def cut(
        self,
        items: Sequence[Item],
        version: Version | None = None,
        attempt: int = 0,
        *,
        indeterminate: bool = False,
        earlier: Earlier = FIRST_ATTEMPT,
    ) -> list[Chunk]:
        """Return chunks for items; touched again if they are sent again without their version."""
        if version is None and self._is_cut:
            items = [self._touched_again(item) for item in items]
        self._is_cut = True
        return super().cut(items, version, attempt, indeterminate=indeterminate, earlier=earlier)

    def _touched_again(self, item: Item) -> Item:
        key, encoded, content = item
        record = open_record(content)
        touched = record._replace(version=with_touch(record.version, self.session.stamp()))
        return key, encoded, build_record(self.index.encode(), encoded, touched)


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
        self._settings = operation.settings
        #: Whether some replica may hold the write although none has acked it.
        self.indeterminate = indeterminate
        self.existed = bytearray(len(items))
        level, keeps_all = operation.level, operation.keeps_versions
        self._votes = Votes(targets, level, len(items))
        self._versions = WriteVersions(
            operation.session, targets, level, version, earlier, keeps_all=keeps_all
        )
        self._superseded: dict[int, Version] = {}
        self._message: Message | None = None
        self._keys = EMPTY
        #: Replicas that have the stored items; empty until then.
        self._holders: Peers = ()
        self._paused = False
        self._begun = False

    @property
    def may_be_stored(self) -> bool:
        """Whether a replica may hold an item that is not settled."""
        groups = self._votes.groups()
        return any(self._is_unknown(self._votes.acks - refusing) for refusing, _ in groups)

    def begin(self, now: int) -> list[Send]:
        """Send to every replica that has not acked; reroute if the view has changed."""
        if self.operation.session.epoch > self.epoch:
            return self._reroute(self.version, now)
        message = self._request()
        if self._begun and self._votes.waiting():
            self.indeterminate = True  # sent twice, so one answer does not settle it
        self._begun = True
        waiting = [peer for peer in self.targets.peers if peer not in self._votes.acks]
        self._votes.failed.clear()
        self._paused = False
        return [self.operation.ask(peer, self, message, now) for peer in waiting]

    def resume(self, settings: IndexSettings | None) -> None:
        """Continue with requests that a short call has sent under these settings."""
        self._settings = settings
        self._request()
        self._begun = True

    def _request(self) -> Message:
        if self._message is None:
            self._keys = Frame(codec.pack_blobs(list(map(encoded_of, self.items))))
            self._message = self.operation.message(
                self.version, self.items, self._keys, self._versions.earlier.refused
            )
        return self._message

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Process an ack: of all items, except those that the replica refused."""
        if not isinstance(message, Stored):
            error = ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
            return self.failed(peer, Failure(error, definite=False), now)
        self._votes.acks.add(peer)
        self._note_store(peer, message)
        for place, existed in enumerate(message.existed[: len(self.items)]):
            self.existed[place] |= existed
        unsure = message.unsure[: len(self.items)]
        self._votes.add_unsure(peer, (place for place, flag in enumerate(unsure) if flag))
        for place, code, detail in message.rejected:
            if code:
                self._votes.refusals.add(place, peer, from_wire(code, detail, {}))
            elif self.operation.session.is_from_the_future(newest_stamp(detail)):
                self._versions.note_ahead(peer, newest_stamp(detail))
                skew = ClockSkew(f"{peer} holds a version from the future")
                self._votes.refusals.add(place, peer, skew)
            elif not is_later_write(detail, self.version):
                known = self._superseded.get(place, b"")
                self._superseded[place] = max(known, detail)
        return self._proceed(now)

    def _note_store(self, peer: str, message: Stored) -> None:
        """Record that the store of a peer has acked the stamp of this write."""
        sighting, is_stamped = self.operation.stores.get(peer), self.operation.is_stamped
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
        votes = self._votes
        waiting = votes.waiting()
        again = False
        for refusing, places in votes.groups():
            acks = votes.acks - refusing
            possible = acks.union(waiting)
            if votes.is_met(acks):
                if waiting and waits and (unsure := self._unsure(places, acks)):
                    places = [place for place in places if place not in unsure]
                sends += self._store(places, acks, now) if places else []
            elif not acks and votes.refusals.shared(places[0]) and votes.is_met(votes.acks):
                self._give_up(places, acks)
            elif votes.is_met(possible):
                continue
            elif votes.is_met(possible | votes.may_store_later(places[0])):
                again = True
            elif not (waiting and waits):
                self._give_up(places, acks)
        if not votes.left:
            sends += self._end(now)
        elif again and not waiting and not self._paused:
            sends += self._try_again(now)
        return sends

    def _unsure(self, places: Sequence[int], acks: Collection[str]) -> set[int]:
        """Return the places of keys of which it is not known whether they existed.

        Items that are written again are not among them: their next attempt finds it out.
        """
        return {
            place
            for place in self._votes.unsure(places, acks)
            if place not in self._superseded and not self.operation.existed(self, place)
        }

    def _end(self, now: int) -> list[Send]:
        """Finish; late answers of replicas are still processed after the call."""
        outstanding = self.operation.finish(self)
        if not outstanding or not self._holders or self._message is None:
            return []
        session = self.operation.session
        late = [(number, peer) for number, peer in outstanding if not session.is_suspect(peer)]
        missed = session.outstanding.add(late, self.operation.index, self._keys, self._holders, now)
        return session.hints(missed, now)

    def _is_unknown(self, acks: Collection[str]) -> bool:
        """Whether a replica may hold an item, given the replicas that acked it."""
        return self.indeterminate or bool(acks) or (self._begun and bool(self._votes.waiting()))

    def _store(self, places: Sequence[int], acks: set[str], now: int) -> list[Send]:
        """Settle items as stored; stamp superseded items past the newer version instead."""
        for place in self._unsure(places, acks):  # a record was there, and it may have been live
            self.existed[place] = 1
        hints = self._hints(places, acks, now)
        superseded: Sequence[int] = []
        if self.operation.is_outdated:
            superseded, places = places, []
        elif self._superseded and self.operation.is_stamped:
            superseded = [place for place in places if place in self._superseded]
            places = [place for place in places if place not in self._superseded]
        if places:
            self._holders = tuple(sorted(acks))
        self._votes.settle(places)
        self.operation.settle(self, places)
        return hints + self._stamp_past(superseded, now) if superseded else hints

    def _give_up(self, places: Sequence[int], acks: Collection[str]) -> None:
        """Settle items as failed, or as unknown if a replica may hold them."""
        refusals = self._votes.refusals
        reasons = self._votes.failed | dict(refusals.of(places[0]))
        final = next(filter(is_final, reasons.values()), None)
        why = final or Unavailable("too few replicas have their data; the rest have lost it")
        text = by_peer(reasons)
        alike = refusals.shared(places[0]) and not acks
        outcome = Outcome.UNKNOWN if self._is_unknown(acks) and not alike else Outcome.FAILED
        self._votes.settle(places)
        self.operation.give_up(self, places, outcome, error_for(outcome, why, text))

    def _hints(self, places: Sequence[int], acks: set[str], now: int) -> list[Send]:
        """Return hints about the replicas that missed the write (hinted handoff)."""
        session = self.operation.session
        refused = self._votes.refusals.of(places[0])
        missed = [
            peer
            for peer in self.targets.peers
            if peer not in acks
            and (peer in self._votes.failed or peer in refused or session.is_suspect(peer))
        ]
        if not missed:
            return []
        keys = Frame(codec.pack_blobs([self.items[place][1] for place in places]))
        index, holders = self.operation.index, tuple(sorted(acks))
        return session.hints([Missed(peer, index, keys, holders) for peer in missed], now)

    def _stamp_past(self, superseded: Sequence[int], now: int) -> list[Send]:
        session = self.operation.session
        for version in self._superseded.values():
            session.observe(newest_stamp(version))
        self._votes.settle(superseded)
        self.operation.keep_existed(self)
        self._versions.keep()
        self.operation.renew()
        again = [self.items[place] for place in superseded]
        chunks = self.operation.cut(
            again, None, self.attempt, indeterminate=True, earlier=self._versions.earlier
        )
        return self.operation.start(chunks, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Record that a replica did not ack; retry if the rest cannot meet the level."""
        error = failure.error
        self.indeterminate = self.indeterminate or not failure.definite
        if isinstance(error, StaleEpoch) and self.operation.session.epoch > self.epoch:
            return self._reroute(self.version, now)
        if isinstance(error, BelowFloor) and self._versions.rises_above(peer, error):
            self._versions.keep()
            return self._reroute(None, now)
        self._votes.failed[peer] = error
        return self._proceed(now)

    def _reroute(self, version: Version | None, now: int) -> list[Send]:
        return self.operation.replace(self, self._successors(version, self.attempt), now)

    def _successors(self, version: Version | None, attempt: int) -> list[Chunk]:
        """Return chunks for the items that are not settled, routed by the current view.

        A retry keeps its version unless the settings of the index have changed: a replica that has
        stored this version has computed another expiry, which must lose on all replicas.
        """
        self.operation.keep_existed(self)
        if self.operation.settings != self._settings:
            version = None
        return self.operation.cut(
            self._votes.unsettled(self.items),
            version,
            attempt,
            indeterminate=self.may_be_stored,
            earlier=self._versions.earlier,
        )

    def _try_again(self, now: int) -> list[Send]:
        self._paused = True
        version: Version | None = self.version
        if self.operation.is_stamped:
            errors, is_acked = self._votes.failed.values(), bool(self._votes.acks)
            version = self._versions.next(errors, now, is_acked=is_acked)
        if version == self.version and not self._votes.refusals:
            self.operation.again_later(self, now)
            self.attempt += 1
            return []
        if version != self.version:
            self.operation.renew()
        # New chunks, so that a late ack of this version does not count for another version. With
        # the same version, only the refused items are sent again, to all replicas.
        chunks = self._successors(version, self.attempt + 1)
        return self.operation.replace_later(self, chunks, now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Keep waiting, because a slow replica may still ack; retry replicas that failed."""
        sends = self._proceed(now, waits=False)
        if self._votes.left and not self._paused and self._votes.has_retryable():
            sends += self._try_again(now)
        return sends

    def expired(self, error: DStashError) -> None:
        """Give up the items that are not settled, with the outcome as far as it is known."""
        for refusing, group_places in self._votes.groups():
            acks, places = self._votes.acks - refusing, group_places
            if self._votes.is_met(acks):  # only whether the keys existed is not known
                stored = [place for place in places if place not in self._superseded]
                places = [place for place in places if place in self._superseded]
                if stored:
                    self._store(stored, acks, self.operation.deadline)
                if not places:
                    continue
            is_unknown = self._is_unknown(acks)
            outcome = Outcome.UNKNOWN if is_unknown else Outcome.FAILED
            refused = self._votes.refusals.of(places[0])
            text = "; ".join(filter(None, [str(error), by_peer(refused)]))
            self.operation.give_up(self, places, outcome, error_for(outcome, error, text))
