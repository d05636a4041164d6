"""Linearizable reads of registers: a home answers after a quorum has shown the same version."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.operations.batching import interleave
from dstash.client.operations.reconciliation import REPLY_BYTES
from dstash.client.operations.registers.answers import Answer, read_answers
from dstash.client.operations.registers.pacing import MAX_KEYS, patience_for
from dstash.client.routing import Peers, group
from dstash.client.session import Send
from dstash.errors import Busy, DStashError, Misrouted, ProtocolError, StaleEpoch
from dstash.wire import codec
from dstash.wire.keys import Key, encode_keys
from dstash.wire.registers import ChangeOutcome, Settle
from dstash.wire.shapes import Frame, Message

_READ: Final = frozenset({ChangeOutcome.FOUND, ChangeOutcome.ABSENT})


class SettlingOperation(Operation):
    """An operation that reads registers. ``index`` has the keys."""

    index: str

    def cut_settles(self, keys: Sequence[Key], size: int, attempt: int = 0) -> list[Chunk]:
        """Return chunks that read registers, each key once, at most ``size`` keys in each."""
        size = min(size, MAX_KEYS)
        table = self.session.homes()
        distinct = dict(zip(encode_keys(keys), keys, strict=True))
        groups = group(list(distinct), list(distinct.values()), table)
        return interleave(
            [
                SettleChunk(self, homes, members[begin : begin + size], attempt, table.epoch)
                for begin in range(0, len(members), size)
            ]
            for homes, members in groups.items()
        )

    @abstractmethod
    def deliver_settled(self, keys: Sequence[Key], answers: Sequence[Answer]) -> None:
        """Process the registers of keys, which are found or absent."""


class SettleChunk(Chunk):
    """Registers with the same home."""

    def __init__(
        self,
        operation: SettlingOperation,
        homes: Peers,
        keys: Sequence[Key],
        attempt: int,
        epoch: int,
    ) -> None:
        self.operation = operation
        self.homes = homes
        self.keys = keys
        self.attempt = attempt
        self.epoch: int = epoch
        self.patience = patience_for(len(keys))  # a home may have to write before it can answer
        self._home = 0
        self._is_paused = False

    def begin(self, now: int) -> list[Send]:
        """Ask the present home; reroute if the view has changed."""
        self._is_paused = False
        if self.operation.session.epoch > self.epoch:
            chunks = self.operation.cut_settles(self.keys, len(self.keys), self.attempt)
            return self.operation.replace(self, chunks, now)
        settle = Settle(self.operation.index, Frame(codec.pack_blobs(encode_keys(self.keys))))
        return [self.operation.ask(self.homes[self._home], self, settle, now)]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        """Deliver what was read; ask again for the rest."""
        answers = read_answers(peer, message, len(self.keys))
        if _READ.issuperset({answer.outcome for answer in answers}):
            self.operation.deliver_settled(self.keys, answers)
            self.operation.finish(self)
            return []
        read = [place for place, answer in enumerate(answers) if answer.outcome in _READ]
        if read:
            keys = [self.keys[place] for place in read]
            self.operation.deliver_settled(keys, [answers[place] for place in read])
        errors = [
            answer.error or ProtocolError(f"{peer} answered a read with {answer.outcome.name}")
            for answer in answers
            if answer.outcome not in _READ
        ]
        self.operation.finish(self)
        done = set(read)
        self.keys = [key for place, key in enumerate(self.keys) if place not in done]
        if all(isinstance(error, Busy) for error in errors):
            sizes = [len(answers[place].value or b"") for place in read]
            if sizes and sum(sizes) + max(sizes) > REPLY_BYTES:
                return self._split(sizes, now)
        final = next((error for error in errors if not error.retryable), None)
        return self._retry(final or errors[0], now)

    def _split(self, sizes: Sequence[int], now: int) -> list[Send]:
        """Read the rest at once, in chunks of as many keys as fitted into this answer."""
        session = self.operation.session
        session.value_bytes = max(session.value_bytes, sum(sizes) / len(sizes))
        chunks = self.operation.cut_settles(self.keys, len(sizes), self.attempt)
        return self.operation.start(chunks, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        """Ask again, or fail the call if every home would refuse."""
        return self._retry(failure.error, now) if self._is_last(peer) else []

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        """Ask the next replica, too; the first answer counts."""
        return self._ask_next(now) if self._is_last(peer) else []

    def _is_last(self, peer: str) -> bool:
        """Whether a request is the last that was sent."""
        return not self._is_paused and peer == self.homes[self._home]

    def expired(self, error: DStashError) -> None:
        """Fail the call: reads have no partial result."""
        self.operation.error = self.operation.error or error

    def _retry(self, error: DStashError, now: int) -> list[Send]:
        if not error.retryable and not isinstance(error, StaleEpoch | Misrouted):
            self.operation.fail(error)
            return []
        if isinstance(error, Busy | StaleEpoch | Misrouted):
            return self._pause(now)
        return self._ask_next(now)

    def _ask_next(self, now: int) -> list[Send]:
        self._home = (self._home + 1) % len(self.homes)
        if not self._home:
            return self._pause(now)
        self.attempt += 1  # the next may take longer
        return self.operation.start([self], now)

    def _pause(self, now: int) -> list[Send]:
        self._is_paused = True
        sends = self.operation.start_later([self], now)
        self.attempt += 1
        return sends
