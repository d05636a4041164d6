"""Reads: look-ups at a level, and the reconciliation of replicas that disagree.

At level ``one`` a chunk requests values from one replica. At higher levels it also requests a
digest over the versions of the same keys from other replicas (Cassandra's digest reads). If digests
differ, it fetches whole records, picks the highest version of each key, and repairs the replicas
that lack it before it answers (Dynamo's read repair).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.operations.batching import chunked, interleave
from dstash.client.routing import Peers, group
from dstash.client.session import Send, Session
from dstash.errors import (
    ClockSkew,
    CorruptRecord,
    DiskFull,
    DStashError,
    Misrouted,
    ProtocolError,
    StaleEpoch,
    Unauthorised,
)
from dstash.store.record import Record, highest, open_record, version_of
from dstash.types import Level
from dstash.wire import codec
from dstash.wire.keys import Key, encode_keys
from dstash.wire.messages import Apply, Fetch, Lookup, Records, Stored, Values, Want
from dstash.wire.protocol import CONTENT_DIGESTS
from dstash.wire.shapes import Frame, Message

#: Keys in one request: enough to amortise a message, few enough to overlap work.
KEYS_PER_CHUNK: Final = 4096
#: Neighbouring partitions whose keys are not sorted further: their pages stay in a cache.
PARTITIONS_PER_BAND: Final = 64
#: Target for the size of an answer; peers cut longer answers.
REPLY_BYTES: Final = 4 * 1024 * 1024

#: Plain numbers, because arithmetic with flags is slow.
_DIGEST: Final = Want.DIGEST.value
_CONTENT: Final = Want.CONTENT.value

Decode = Callable[[bytes], list[Any]]


class LookupOperation(Operation):
    """Looks up any number of distinct keys; the result maps those found to their values.

    ``encoded`` are the encoded keys of the first part of the batch, if they exist already.
    """

    #: The bits of ``Want`` for the replica that sends values.
    wanted: int = Want.VALUES.value

    def __init__(
        self,
        session: Session,
        deadline: int,
        index: str,
        keys: Sequence[Key],
        level: Level,
        decode: Decode,
        encoded: Sequence[bytes] | None = None,
    ) -> None:
        super().__init__(session, deadline)
        self.index = index
        self.level = level
        self.decode = decode
        self.found: dict[Key, Any] = {}
        self._keys = keys
        self._encoded = encoded

    def _chunks(self) -> Iterator[list[Chunk]]:
        batch_keys = self.session.keys_per_read
        for begin in range(0, len(self._keys), batch_keys):
            encoded, self._encoded = self._encoded, None
            yield from chunked(self.cut(self._keys[begin : begin + batch_keys], encoded=encoded))

    def cut(
        self, keys: Sequence[Key], attempt: int = 0, encoded: Sequence[bytes] | None = None
    ) -> list[Chunk]:
        """Return chunks for keys, routed by the current view."""
        table = self.session.read_targets(self.level)
        size = max(1, min(KEYS_PER_CHUNK, int(REPLY_BYTES / self.session.value_bytes)))
        return interleave(
            [
                ReadChunk(self, targets, members[begin : begin + size], attempt)
                for begin in range(0, len(members), size)
            ]
            for targets, members in group(
                encoded or encode_keys(keys), keys, table, PARTITIONS_PER_BAND
            ).items()
        )

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

    def deliver(self, keys: Sequence[Key], values: Values) -> None:
        """Process the answer to a look-up of ``keys``."""
        decoded = self.decode(values.values)
        if len(decoded) != len(keys):
            raise ProtocolError(f"a peer answered {len(decoded)} values for {len(keys)} keys")
        self._learn_size(values)
        if values.missing:
            absent = set(values.missing)
            self.found.update(
                (key, value)
                for place, (key, value) in enumerate(zip(keys, decoded, strict=True))
                if place not in absent
            )
        else:
            self.found.update(zip(keys, decoded, strict=True))

    def deliver_winner(self, key: Key, record: Record) -> None:
        """Process the newest record of a key whose replicas disagreed."""
        if record.is_live(self.session.cluster_time()):
            self.deliver_record(key, record)

    def deliver_record(self, key: Key, record: Record) -> None:
        """Process the newest record of a key, which is live."""
        [self.found[key]] = self.decode(codec.join_payloads([record.payload]))

    def _learn_size(self, values: Values) -> None:
        mean = len(values.values) / max(1, values.answered)
        self.session.value_bytes += (mean - self.session.value_bytes) / 8

    def result(self) -> dict[Key, Any]:
        """Return the values found."""
        super().result()
        return self.found


class ExistsOperation(LookupOperation):
    """Finds out which keys exist; the result has those keys."""

    wanted = 0

    def deliver(self, keys: Sequence[Key], values: Values) -> None:
        """Process the answer, which lists the missing keys only."""
        self.found.update(dict.fromkeys(keys, True))
        for place in values.missing:
            self.found.pop(keys[place], None)

    def deliver_record(self, key: Key, record: Record) -> None:
        """Process the newest record of a key, which is live."""
        self.found[key] = True


class RecordOperation(LookupOperation):
    """Fetches whole records; the result maps keys to live ``Record``s."""

    def cut(
        self, keys: Sequence[Key], attempt: int = 0, encoded: Sequence[bytes] | None = None
    ) -> list[Chunk]:
        """Return chunks for keys, which compare the replicas record by record."""
        return self.cut_reconciliations(keys, self.level, attempt)

    def deliver_record(self, key: Key, record: Record) -> None:
        """Process the newest record of a key, which is live."""
        self.found[key] = record


class StateOperation(RecordOperation):
    """Fetches whole records, including tombstones and expired records."""

    def deliver_winner(self, key: Key, record: Record) -> None:
        """Process the newest record of a key."""
        self.found[key] = record


class ReadChunk(Chunk):
    """Keys that are read from the same replicas, the first of which sends the values."""

    def __init__(
        self, operation: LookupOperation, targets: Peers, keys: Sequence[Key], attempt: int
    ) -> None:
        self.operation = operation
        self.targets = targets
        self.keys = keys
        self.attempt = attempt
        self.epoch: int = operation.session.epoch
        self._frame = Frame(codec.pack_blobs(encode_keys(keys)))
        self._digests: dict[str, bytes] = {}
        self._is_corrupt = False
        #: How many of the keys, from the first on, all answers so far cover.
        self._answered = len(keys)
        self._values: Values | None = None

    def begin(self, now: int) -> list[Send]:
        """Send the request to every target."""
        if not self.targets:
            return self._reroute(now, self.attempt + 1)
        compared = self._compared()
        wants = [self.operation.wanted | compared] + [compared] * (len(self.targets) - 1)
        return [
            self.operation.ask(peer, self, Lookup(self.operation.index, want, self._frame), now)
            for peer, want in zip(self.targets, wants, strict=True)
        ]

    def _compared(self) -> int:
        """Return the bits of ``Want`` for the digests that are compared."""
        if len(self.targets) < 2:
            return 0
        knows = self.operation.session.all_speak(self.targets, CONTENT_DIGESTS)
        return _DIGEST | _CONTENT if knows else _DIGEST

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Process values or a digest; compare once all have arrived."""
        if not isinstance(message, Values):
            return self.failed(peer, _unexpected(peer, message), now)
        self._digests[peer] = message.digest
        self._is_corrupt = self._is_corrupt or bool(message.corrupt)
        self._answered = min(self._answered, message.answered)
        if peer == self.targets[0]:
            self._values = message
        if len(self._digests) < len(self.targets) or self._values is None:
            return []
        return self._compare(self._values, now)

    def _compare(self, values: Values, now: int) -> list[Send]:
        if self._answered < len(self.keys):
            return self._split(values, now)
        if self._is_corrupt or len(set(self._digests.values())) > 1:
            level = max(self.operation.level, Level.QUORUM, key=list(Level).index)
            # A corrupt record hashes like a missing record, so it must not count as a vote: other
            # replicas have to replace it.
            chunks = self.operation.cut_reconciliations(
                self.keys, None if self._is_corrupt else level, self.attempt
            )
            return self.operation.replace(self, chunks, now)
        self.operation.deliver(self.keys, values)
        self.operation.finish(self)
        return []

    def _split(self, values: Values, now: int) -> list[Send]:
        # The answer would have been too large; chunks of the part that was answered fit.
        size = max(1, self._answered)
        self.operation.session.value_bytes = max(
            self.operation.session.value_bytes, len(values.values) / max(1, values.answered)
        )
        chunks: list[Chunk] = [
            ReadChunk(self.operation, self.targets, self.keys[i : i + size], self.attempt)
            for i in range(0, len(self.keys), size)
        ]
        return self.operation.replace(self, chunks, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Route the keys again: the session now has the peer as suspect, or a new view."""
        if not _worth_retrying(failure):
            self.operation.fail(failure.error)
            return []
        learned = self.operation.session.epoch > self.epoch
        return self._reroute(now, self.attempt if learned else self.attempt + 1)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Read from another replica, if there is any."""
        return self._reroute(now, self.attempt + 1)

    def _reroute(self, now: int, attempt: int) -> list[Send]:
        chunks = self.operation.cut(self.keys, attempt)
        same = len(chunks) == 1 and getattr(chunks[0], "targets", None) == self.targets
        if same and attempt > self.attempt:
            return self.operation.replace_later(self, chunks, now)
        return self.operation.replace(self, chunks, now)

    def expired(self, error: DStashError) -> None:
        """Fail the call: reads have no partial result."""
        self.operation.error = self.operation.error or error


class Reconciliation(Chunk):
    """Keys whose replicas disagree: fetches the records, picks the newest, repairs the rest."""

    def __init__(
        self,
        operation: LookupOperation,
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
        return self.failed(peer, _unexpected(peer, message), now)

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
        """Record the repairs that a replica refused for lack of disk space or as future."""
        for number, code, _ in message.rejected:
            if type(number) is not int or number >= len(places):
                continue
            place = places[number]
            if code == DiskFull.code:
                self._full.setdefault(place, set()).add(peer)
            elif code == ClockSkew.code:
                winner = highest([records[place] for records in self._records.values()])
                if winner is not None:
                    self._refused.add((place, winner))

    def _settle_or_deliver(self, now: int) -> list[Send]:
        """Deliver, unless repairs are pending or the newest records must be picked again.

        A future record that a quorum of replicas hold counts as valid. Any other future record must
        not supersede an older write, because the next read may not find it.
        """
        if self._repairing:
            return []
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

    def _lacks_quorum(self, place: int) -> bool:
        """Whether less than a quorum hold the newest record, because disks are full."""
        full = self._full[place]
        holders = [
            peer for peer in self.peers if peer not in full and place not in self._corrupt_at[peer]
        ]
        replicas = len(self.operation.session.replicas_of(self.encoded[place]))
        return len(holders) < Level.QUORUM.needed(replicas)

    def _withdraw(self, place: int, record: bytes) -> bool:
        """Exclude a record unless a quorum hold it; return whether it was excluded."""
        holders = [peer for peer, records in self._records.items() if records[place] == record]
        replicas = len(self.operation.session.replicas_of(self.encoded[place]))
        if len(holders) >= Level.QUORUM.needed(replicas):
            return False
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
        if not _worth_retrying(failure):
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


def _worth_retrying(failure: Failure) -> bool:
    error = failure.error
    return error.retryable or isinstance(error, StaleEpoch | Misrouted | CorruptRecord)


def _unexpected(peer: str, message: Message) -> Failure:
    error = ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
    return Failure(error, definite=False)
