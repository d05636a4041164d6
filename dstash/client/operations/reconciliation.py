"""Reconciliation: a quorum read of whole records, where replicas disagree.

It picks the highest version of each key, and repairs the replicas that lack it before it answers
(Dynamo's read repair).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.routing import Peers, group
from dstash.client.session import Send
from dstash.errors import (
    ClockSkew,
    CorruptRecord,
    DiskFull,
    DStashError,
    IndexDropped,
    Misrouted,
    ProtocolError,
    StaleEpoch,
    Unauthorised,
)
from dstash.store.record import Record, highest, open_record, partition_of, version_of
from dstash.types import Level
from dstash.wire import codec
from dstash.wire.keys import Key, encode_keys
from dstash.wire.messages import Apply, Fetch, Records, Stored
from dstash.wire.shapes import Frame, Message

#: Keys in one request: enough to amortise a message, few enough to overlap work.
KEYS_PER_CHUNK: Final = 4096
#: Target for the size of an answer; peers cut longer answers.
REPLY_BYTES: Final = 4 * 1024 * 1024


class ReconcilingOperation(Operation):
    """A read of keys that compares whole records where it has to. ``index`` has the keys."""

    index: str

    @abstractmethod
    def cut(
        self, keys: Sequence[Key], attempt: int = 0, encoded: Sequence[Any] | None = None
    ) -> list[Chunk]:
        """Return chunks for keys, routed by the current view."""

    def cut_reconciliations(
        self, keys: Sequence[Key], level: Level | None, attempt: int
    ) -> list[Chunk]:
        """Return chunks that compare records: of all replicas if ``level`` is None."""
        size = max(1, min(KEYS_PER_CHUNK, int(REPLY_BYTES / self.session.value_bytes)))
        session = self.session
        table = session.all_targets() if level is None else session.read_targets(level)
        return [
            Reconciliation(self, peers, members[begin : begin + size], level, attempt)
            for peers, members in group(encode_keys(keys), keys, table).items()
            for begin in range(0, len(members), size)
        ]

    def deliver_winner(self, key: Key, record: Record) -> None:
        """Process the newest record of a key whose replicas disagreed."""
        if record.is_live(self.session.cluster_time()):
            self.deliver_record(key, record)

    @abstractmethod
    def deliver_record(self, key: Key, record: Record) -> None:
        """Process the newest record of a key, which is live."""


class Reconciliation(Chunk):
    """Keys whose replicas disagree: fetches the records, picks the newest, repairs the rest."""

    def __init__(
        self,
        operation: ReconcilingOperation,
        peers: Peers,
        keys: Sequence[Key],
        level: Level | None,
        attempt: int,
    ) -> None:
        self.operation = operation
        self.peers = peers
        self.keys = list(keys)
        self.encoded = encode_keys(keys)
        self.level = level
        self.attempt = attempt
        self._records: dict[str, list[bytes | None]] = {}
        #: The positions of the records sent to a replica that is being repaired, by replica.
        self._repairing: dict[str, list[int]] = {}
        #: Newest records, with their positions, that a replica rejected as future.
        self._refused: set[tuple[int, bytes]] = set()
        #: Replicas whose record was excluded, by position. It had won over all other records.
        self._excluded: dict[int, set[str]] = {}
        #: Newest records, with their positions, that a replica has dropped with their index.
        self._dropped: set[tuple[int, bytes]] = set()
        #: Replicas whose disks have no space for the newest record, by position.
        self._full: dict[int, set[str]] = {}
        #: How many replicas hold a corrupt record, by position.
        self._corrupt: Counter[int] = Counter()
        self._corrupt_at: dict[str, set[int]] = {}

    def begin(self, now: int) -> list[Send]:
        """Fetch the records from every replica."""
        if not self.peers:
            return self._restart(now)
        fetch = Fetch(self.operation.index, Frame(codec.pack_blobs(self.encoded)))
        return [self.operation.ask(peer, self, fetch, now) for peer in self.peers]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Process records, then the acks of the repairs."""
        if isinstance(message, Records):
            records = codec.unpack_optional_blobs(message.records)
            if len(records) > len(self.keys):
                raise ProtocolError(f"{peer} sent {len(records)} records for {len(self.keys)} keys")
            self._records[peer] = records
            self._corrupt.update(message.corrupt)
            self._corrupt_at[peer] = set(message.corrupt)
            return self._repair(now) if len(self._records) == len(self.peers) else []
        if isinstance(message, Stored):
            self._note_refused(peer, self._repairing.pop(peer, []), message)
            return self._settle_or_deliver(now)
        return self.failed(peer, unexpected(peer, message), now)

    def _repair(self, now: int) -> list[Send]:
        rest = self._drop_unanswered()
        corrupt = [place for place in self._corrupt if place < len(self.keys)]
        if corrupt and self.level is not None:
            wider = self.operation.cut_reconciliations(self.keys, None, self.attempt)
            return self.operation.replace(self, rest + wider, now)
        for place in corrupt:
            self._check_enough_are_sound(place)
        return self.operation.start(rest, now) + self._repair_losers(now)

    def _repair_losers(self, now: int) -> list[Send]:
        sends: list[Send] = []
        winners = [highest(column) for column in zip(*self._records.values(), strict=True)]
        for peer, records in self._records.items():
            sends += self._repair_one(peer, records, winners, now)
        if not self._repairing:
            self._deliver()
        return sends

    def _repair_one(
        self,
        peer: str,
        records: list[bytes | None],
        winners: list[bytes | None],
        now: int,
    ) -> list[Send]:
        corrupt = self._corrupt_at[peer]  # the peer repairs these itself
        losses = [
            (place, key, winner)
            for place, (key, record, winner) in enumerate(
                zip(self.encoded, records, winners, strict=True)
            )
            if winner is not None and record != winner and place not in corrupt
        ]
        if not losses:
            return []
        places, keys, lost = zip(*losses, strict=True)
        self._repairing[peer] = list(places)
        session = self.operation.session
        # A replica without a tombstone may have dropped it as garbage: it is not lagging.
        live = [record for record in lost if open_record(record).is_live(session.cluster_time())]
        if live:
            session.mark_lagging(peer, min(map(version_of, live)), now)
        apply = Apply(
            self.operation.index, Frame(codec.pack_blobs(keys)), Frame(codec.pack_blobs(lost))
        )
        return [self.operation.ask(peer, self, apply, now)]

    def _note_refused(self, peer: str, places: list[int], message: Stored) -> None:
        """Record the repairs that a replica refused: as dropped or future, or without space."""
        for number, code, _ in message.rejected:
            if type(number) is not int or number >= len(places):
                continue
            place = places[number]
            if code == DiskFull.code:
                self._full.setdefault(place, set()).add(peer)
            elif code in (ClockSkew.code, IndexDropped.code):
                winner = highest([records[place] for records in self._records.values()])
                if winner is not None:
                    refused = self._refused if code == ClockSkew.code else self._dropped
                    refused.add((place, winner))

    def _settle_or_deliver(self, now: int) -> list[Send]:
        """Deliver, unless repairs are pending or the newest records must be picked again.

        A future record that a quorum of replicas may have accepted counts as valid. Any other
        future record must not supersede an older write, because the next read may not find it.
        """
        if self._repairing:
            return []
        if self._dropped:
            self._exclude_dropped()
            return self._repair_losers(now)
        if self._refused and self.level is not None:
            # Replicas that were not asked may hold the record as well.
            wider = self.operation.cut_reconciliations(self.keys, None, self.attempt)
            return self.operation.replace(self, wider, now)
        refused, self._refused = self._refused, set()
        withdrawn = [self._withdraw(place, record) for place, record in refused]
        if any(withdrawn):
            self._full = {}
            return self._repair_losers(now)
        if self.level and not self.attempt and any(map(self._lacks_quorum, self._full)):
            # Another replica may hold the newest record, or have space for it.
            wider = self.operation.cut_reconciliations(self.keys, None, self.attempt)
            return self.operation.replace(self, wider, now)
        self._deliver()
        return []

    def _exclude_dropped(self) -> None:
        """Exclude records that a replica knows to be dropped; others may not know it yet."""
        for place, record in self._dropped:
            for records in self._records.values():
                if records[place] == record:
                    records[place] = None
        dropped = {place for place, _ in self._dropped}
        self._refused = {entry for entry in self._refused if entry[0] not in dropped}
        self._dropped = set()

    def _lacks_quorum(self, place: int) -> bool:
        """Whether less than a quorum hold the newest record, because disks are full."""
        full = self._full[place]
        holders = [
            peer for peer in self.peers if peer not in full and place not in self._corrupt_at[peer]
        ]
        replicas = len(self.operation.session.replicas_of(self.encoded[place]))
        return len(holders) < Level.QUORUM.needed(replicas)

    def _withdraw(self, place: int, record: bytes) -> bool:
        """Exclude a record unless a quorum may have accepted it; return whether it was excluded.

        A higher record may have taken its place on a replica. A replica whose record is corrupt, or
        that was not asked because it lacks data, may have had it.
        """
        holders = {peer for peer, records in self._records.items() if records[place] == record}
        excluded = self._excluded.setdefault(place, set())
        view = self.operation.session.known_view()  # once: other threads may replace it
        replicas = view.readers[partition_of(self.encoded[place])]
        unknown = [
            peer
            for peer in replicas
            if place in self._corrupt_at.get(peer, ())
            or (peer not in self.peers and not view.members[peer].is_waived)
        ]
        possible = len(holders | excluded) + len(unknown)
        if possible >= Level.QUORUM.needed(len(replicas)):
            return False
        excluded |= holders
        for peer in holders:
            self._records[peer][place] = None
        return bool(holders)

    def _check_enough_are_sound(self, place: int) -> None:
        """Raise ``CorruptRecord`` unless the sound replicas must have the last acked write.

        A write is on a quorum W of N replicas, so any N - W + 1 of them include a replica that has
        it.
        """
        replicas = len(self.operation.session.replicas_of(self.encoded[place]))
        sound = len(self.peers) - self._corrupt[place]
        if sound < replicas - Level.QUORUM.needed(replicas) + 1:
            raise CorruptRecord(
                f"too many replicas of {self.keys[place]!r} are corrupt or unavailable"
            )

    def _drop_unanswered(self) -> list[Chunk]:
        """Remove the keys that the shortest answer does not cover, and return chunks for them."""
        fitted = min(map(len, self._records.values()))
        rest = self.keys[fitted:]
        self.keys, self.encoded = self.keys[:fitted], self.encoded[:fitted]
        self._records = {peer: found[:fitted] for peer, found in self._records.items()}
        return self.operation.cut(rest, self.attempt) if rest else []

    def _deliver(self) -> None:
        operation = self.operation
        columns = zip(*self._records.values(), strict=True)
        for key, column in zip(self.keys, columns, strict=True):
            winner = highest(column)
            if winner is not None:
                operation.deliver_winner(key, open_record(winner))
        operation.finish(self)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Restart with a look-up, unless only the repair failed and can be skipped."""
        if isinstance(failure.error, Unauthorised) and peer in self._repairing:
            self._repairing.pop(peer)
            return self._settle_or_deliver(now)
        if isinstance(failure.error, DiskFull) and peer in self._repairing:
            # The read itself needs no disk space.
            for place in self._repairing.pop(peer):
                self._full.setdefault(place, set()).add(peer)
            return self._settle_or_deliver(now)
        if not worth_retrying(failure):
            self.operation.fail(failure.error)
            return []
        return self._restart(now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Restart with a look-up, from other replicas."""
        return self._restart(now)

    def _restart(self, now: int) -> list[Send]:
        chunks = self.operation.cut(self.keys, self.attempt + 1)
        return self.operation.replace_later(self, chunks, now)

    def expired(self, error: DStashError) -> None:
        """Fail the call: reads have no partial result."""
        self.operation.error = self.operation.error or error


def worth_retrying(failure: Failure) -> bool:
    """Whether another replica, or the same one later, may answer a read that failed."""
    error = failure.error
    return error.retryable or isinstance(error, StaleEpoch | Misrouted | CorruptRecord)


def unexpected(peer: str, message: Message) -> Failure:
    """Return the failure of a read that was answered with a message of another kind."""
    error = ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
    return Failure(error, definite=False)
