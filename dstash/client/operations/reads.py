"""Reads: look-ups at a level.

At level ``one`` a chunk requests values from one replica. At higher levels it also requests a
digest over the versions of the same keys from other replicas (Cassandra's digest reads). If digests
differ, a ``Reconciliation`` takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from functools import partial
from typing import Any, Final

from dstash import loops
from dstash.client.operations.base import Chunk, Failure
from dstash.client.operations.batching import chunked, interleave
from dstash.client.operations.reconciliation import (
    KEYS_PER_CHUNK,
    REPLY_BYTES,
    ReconcilingOperation,
    unexpected,
    worth_retrying,
)
from dstash.client.operations.registers.answers import Answer
from dstash.client.operations.registers.names import has_registers
from dstash.client.operations.registers.pacing import WINDOW as SETTLES_WINDOW
from dstash.client.operations.registers.settles import SettlingOperation
from dstash.client.results import undecodable_error
from dstash.client.routing import Peers, few_targets, sort_places
from dstash.client.session import Send, Session
from dstash.errors import DStashError, ProtocolError
from dstash.store.record import Record
from dstash.types import Level, OnError, RecordFlag
from dstash.version import WRITER_BYTES, pack
from dstash.wire import codec
from dstash.wire.keys import Key, as_encoded, encode_keys
from dstash.wire.messages import Lookup, Values, Want
from dstash.wire.protocol import CONTENT_DIGESTS
from dstash.wire.shapes import Frame, Message
from dstash.wire.values import Undecodable

#: Neighbouring partitions whose keys are not sorted further: their pages stay in a cache.
PARTITIONS_PER_BAND: Final = 64
#: At quorum, up to so many keys are asked for with few requests; with more, requests that overlap
#: save time.
_FEW_KEYS: Final = 2048

#: Plain numbers, because arithmetic with flags is slow.
_DIGEST: Final = Want.DIGEST.value
_CONTENT: Final = Want.CONTENT.value

#: Decodes joined payloads of keys; adds the values that cannot be decoded to a mapping. See
#: ``TypeRegistry.decode_values``.
Decode = Callable[[bytes, Sequence[Any], MutableMapping[Any, Undecodable]], list[Any]]


class LookupOperation(ReconcilingOperation, SettlingOperation):
    """Looks up any number of keys.

    The result maps the keys that were found to their values.

    Args:
        session: the state that the calls of this client share.
        deadline: of the call, in milliseconds of the session's wall clock.
        index: of the keys.
        keys: to look up.
        level: how many replicas must agree.
        decode: decodes values.
        encoded: the first part of the batch as ``as_encoded`` returns it, if that exists already.
        on_error: whether a value that cannot be decoded fails the call, or is returned as an
            ``Undecodable``.
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
        encoded: Sequence[Any] | None = None,
        on_error: OnError = OnError.RAISE,
    ) -> None:
        super().__init__(session, deadline)
        self.index = index
        self.level = level
        self.decode = decode
        self.on_error = on_error
        self.found: dict[Key, Any] = {}
        #: Values that cannot be decoded; ``found`` has them, too.
        self.undecodable: dict[Key, Undecodable] = {}
        self._keys = keys
        self._encoded = encoded
        if self.is_linearizable:
            self.window = SETTLES_WINDOW

    def _chunks(self) -> Iterator[list[Chunk]]:
        size = self.session.keys_per_read
        for begin in range(0, len(self._keys), size):
            encoded, self._encoded = self._encoded, None
            yield from chunked(self.cut(self._keys[begin : begin + size], encoded=encoded))

    def cut(
        self, keys: Sequence[Key], attempt: int = 0, encoded: Sequence[Any] | None = None
    ) -> list[Chunk]:
        """Return chunks for keys, routed by the current view."""
        if self.is_linearizable:
            return self.cut_settles(keys, self.keys_per_chunk(), attempt)
        return self.routed(encoded or as_encoded(keys), partial(loops.pick, keys), attempt)

    def routed(
        self, encoded: Sequence[Any], pick: Callable[[memoryview], Sequence[Key]], attempt: int
    ) -> list[Chunk]:
        """Return chunks for keys, routed by the current view.

        Args:
            encoded: the keys as ``as_encoded`` returns them.
            pick: returns the keys at some places.
            attempt: number of earlier attempts.
        """
        table, size = self.session.read_targets(self.level), self.keys_per_chunk()
        groups = sort_places(encoded, table, PARTITIONS_PER_BAND)
        if self.level is Level.QUORUM and len(encoded) <= _FEW_KEYS:
            groups = few_targets(groups)
        return interleave(
            [
                ReadChunk(
                    self,
                    targets,
                    pick(places[begin : begin + size]),
                    attempt,
                    table.epoch,
                    Frame(loops.pack_keys(encoded, places[begin : begin + size])),
                )
                for begin in range(0, len(places), size)
            ]
            for targets, places in groups.items()
        )

    def keys_per_chunk(self) -> int:
        """Return how many keys one request has, by the mean size of values."""
        return max(1, min(KEYS_PER_CHUNK, int(REPLY_BYTES / self.session.value_bytes)))

    @property
    def is_linearizable(self) -> bool:
        """Whether the homes of registers are asked, which answer for a quorum."""
        return self.level is not Level.ONE and has_registers(self.index)

    def deliver(self, keys: Sequence[Key], values: Values) -> None:
        """Process the answer to a look-up of ``keys``."""
        self.found.update(zip(keys, self.decoded(keys, values), strict=True))
        self._drop_missing(keys, values)

    def decoded(self, keys: Sequence[Key], values: Values) -> list[Any]:
        """Return the value of each key in an answer.

        Raises:
            ProtocolError: there are more or fewer values than keys.
        """
        decoded = self.decode(values.values, keys, self.undecodable)
        if len(decoded) != len(keys):
            raise ProtocolError(f"a peer answered {len(decoded)} values for {len(keys)} keys")
        self.session.learn_size(len(values.values) / max(1, values.answered))
        return decoded

    def deliver_settled(self, keys: Sequence[Key], answers: Sequence[Answer]) -> None:
        """Process the registers of keys."""
        sizes = [len(answer.value) for answer in answers if answer.value is not None]
        if sizes:
            self.session.learn_size(sum(sizes) / len(sizes))
            live = [place for place, answer in enumerate(answers) if answer.value is not None]
            self.deliver_live([keys[place] for place in live], [answers[place] for place in live])
        if len(sizes) < len(keys):
            for key, answer in zip(keys, answers, strict=True):
                if answer.value is None:
                    self.found.pop(key, None)

    def deliver_live(self, keys: Sequence[Key], answers: Sequence[Answer]) -> None:
        """Process registers that have values."""
        frame = codec.join_payloads([answer.value or b"" for answer in answers])
        self.found.update(zip(keys, self.decode(frame, keys, self.undecodable), strict=True))

    def deliver_record(self, key: Key, record: Record) -> None:
        """Process the newest record of a key, which is live."""
        frame = codec.join_payloads([record.payload])
        [self.found[key]] = self.decode(frame, [key], self.undecodable)

    def _drop_missing(self, keys: Sequence[Key], values: Values) -> None:
        try:
            for place in values.missing:
                self.found.pop(keys[place], None)
        except (IndexError, TypeError):
            raise ProtocolError("a peer reported a missing key that was not requested") from None

    def result(self) -> dict[Key, Any]:
        """Return the values found."""
        super().result()
        if self.undecodable and self.on_error is OnError.RAISE:
            raise undecodable_error(self.undecodable, self.found)
        return self.found


class ExistsOperation(LookupOperation):
    """Finds out which keys exist; the result has those keys."""

    wanted = 0

    def deliver(self, keys: Sequence[Key], values: Values) -> None:
        """Process the answer, which lists the missing keys only."""
        self.found.update(dict.fromkeys(keys, True))
        self._drop_missing(keys, values)

    def deliver_live(self, keys: Sequence[Key], answers: Sequence[Answer]) -> None:
        """Process registers that have values."""
        self.found.update(dict.fromkeys(keys, True))

    def deliver_record(self, key: Key, record: Record) -> None:
        """Process the newest record of a key, which is live."""
        self.found[key] = True


class RecordOperation(LookupOperation):
    """Fetches whole records; the result maps keys to live ``Record``s."""

    @property
    def is_linearizable(self) -> bool:
        """Whether the index has registers: peers send the records of registers to no client."""
        return has_registers(self.index)

    def cut(
        self, keys: Sequence[Key], attempt: int = 0, encoded: Sequence[Any] | None = None
    ) -> list[Chunk]:
        """Return chunks for keys, which compare the replicas record by record."""
        if self.is_linearizable:
            return self.cut_settles(keys, self.keys_per_chunk(), attempt)
        return self.cut_reconciliations(keys, self.level, attempt)

    def deliver_live(self, keys: Sequence[Key], answers: Sequence[Answer]) -> None:
        """Process registers that have values."""
        for key, answer in zip(keys, answers, strict=True):
            flags, version = int(RecordFlag.REGISTER), pack(answer.version, bytes(WRITER_BYTES))
            self.deliver_record(key, Record(version, flags, answer.expiry, answer.value or b""))

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
        self,
        operation: LookupOperation,
        targets: Peers,
        keys: Sequence[Key],
        attempt: int,
        epoch: int,
        frame: Frame | None = None,
    ) -> None:
        self.operation = operation
        self.targets = targets
        self.keys = keys
        self.attempt = attempt
        self.epoch: int = epoch
        self._frame = frame or Frame(codec.pack_blobs(encode_keys(keys)))
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
            return self.failed(peer, unexpected(peer, message), now)
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
        if self._is_corrupt and has_registers(self.operation.index):
            # Peers refuse ``Fetch`` there; a home reads a quorum, without the corrupt record.
            size = self.operation.keys_per_chunk()
            chunks = self.operation.cut_settles(self.keys, size, self.attempt)
            return self.operation.replace(self, chunks, now)
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
            ReadChunk(
                self.operation, self.targets, self.keys[i : i + size], self.attempt, self.epoch
            )
            for i in range(0, len(self.keys), size)
        ]
        return self.operation.replace(self, chunks, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Route the keys again: the session now has the peer as suspect, or a new view."""
        if not worth_retrying(failure):
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
