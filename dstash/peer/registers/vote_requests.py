"""The requests for votes that proposers want to send, and the limits of such messages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

import msgpack

from dstash.limits import MAX_FRAME_BYTES
from dstash.peer.registers.attempt import Attempt, Phase
from dstash.peer.registers.batch_attempt import BatchAttempt
from dstash.peer.registers.proposer import Proposer
from dstash.store.record import ABSENT, version_of
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Vote
from dstash.version import VERSION_BYTES, Version
from dstash.wire import codec
from dstash.wire.registers.consensus import Accept, Prepare, Promised
from dstash.wire.shapes import Frame, Message

#: Above all versions: a voter sends no record to a proposer that knows this one.
_HIGHEST: Final = b"\xff" * VERSION_BYTES

Attempts = list[tuple[Proposer, Attempt]]

#: Limits of one message between peers.
_MAX_KEYS: Final = 250
_MAX_BYTES: Final = 2 * 1024 * 1024
#: The most bytes of records in an answer to another peer, unless a single record is longer; and in
#: an answer of the peer to itself, which has to fit into a frame, too.
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_MAX_OWN_BYTES: Final = MAX_FRAME_BYTES - 1024 * 1024


class RecordSizes:
    """How large (bytes) the records are that voters send, if they do not fit into an answer."""

    def __init__(self) -> None:
        self.expected = 0

    def learn(self, attempts: Attempts, votes: Iterable[Vote]) -> None:
        """Take the votes of an answer: they lack the records that did not fit."""
        sizes, is_cut = [], False
        for (_, attempt), vote in zip(attempts, votes, strict=True):
            if vote.record is not None:
                sizes.append(len(vote.record))
            elif vote.verdict is Verdict.VOTED and vote.version > _version(attempt.known):
                is_cut = True
        if is_cut and sizes:
            self.expected = max(sizes)
        else:
            self.expected -= self.expected // 8


def limited(answer: Promised, *, is_own: bool) -> Promised:
    """Return the answer of a voter without the records that do not fit into one message.

    Their proposer takes them from another voter, or repeats the round.
    """
    bound = _MAX_OWN_BYTES if is_own else _MAX_ANSWER_BYTES
    if len(answer.records) <= bound:
        return answer
    weight = 0
    records: list[bytes | None] = []
    for record in msgpack.unpackb(answer.records):  # longer than what other peers may send
        size = len(record or b"")
        fits = not weight or weight + size <= bound
        records.append(record if fits else None)
        weight += size if fits else 0
    return replace(answer, records=Frame(codec.pack_blobs(records)))


def requests_for(
    waiting: Iterable[tuple[Proposer, Attempt, Iterable[str]]], writer: bytes, expected: int
) -> Iterator[tuple[str, Attempts, Message]]:
    """Yield (voter, attempts, message).

    Args:
        waiting: the attempts, with their proposers and the voters that are asked.
        writer: the number of this process.
        expected: bytes of each record in the answer.
    """
    groups: dict[tuple[str, Phase, int, bool], Attempts] = defaultdict(list)
    for proposer, attempt, names in waiting:
        for name in names:
            shared = name, attempt.phase, _round(attempt), attempt.is_needed
            groups[shared].append((proposer, attempt))
    for (peer, phase, number, is_needed), attempts in groups.items():
        for part in _parts(attempts, 0 if phase is Phase.ACCEPT else expected):
            yield peer, part, _message(phase, number, part, writer, is_needed=is_needed)


def _message(
    phase: Phase, number: int, attempts: Attempts, writer: bytes, *, is_needed: bool
) -> Message:
    keys = Frame(codec.pack_blobs([proposer.key for proposer, _ in attempts]))
    if phase is Phase.ACCEPT:
        return Accept(keys, Frame(codec.pack_blobs([attempt.record for _, attempt in attempts])))
    known = b"".join([_version(attempt.known) for _, attempt in attempts])
    return Prepare(number, writer, known, keys, is_needed)


def batch_message(attempt: BatchAttempt, writer: bytes, *, with_records: bool = True) -> Message:
    """Return the request for votes on the registers of a batch.

    Args:
        attempt: the batch.
        writer: the number of this process.
        with_records: whether voters return the records that they hold, if it only asks.
    """
    keys, records = Frame(codec.pack_blobs(attempt.keys)), attempt.records
    if attempt.phase is Phase.ACCEPT:
        return Accept(keys, Frame(codec.pack_blobs(records)))
    if not with_records and attempt.phase is Phase.ASK:
        return Prepare(0, writer, _HIGHEST * len(attempt.keys), keys)
    known = b"".join(map(_version, records)) if any(records) else b""
    return Prepare(attempt.round if attempt.phase is Phase.PREPARE else 0, writer, known, keys)


def _round(attempt: Attempt) -> int:
    return attempt.round if attempt.phase is Phase.PREPARE else 0


def _version(record: bytes | None) -> Version:
    return ABSENT if record is None else version_of(record)


def _parts(attempts: Attempts, expected: int) -> Iterable[Attempts]:
    """Split requests for votes into messages of limited size."""
    part: Attempts = []
    weight = 0
    for proposer, attempt in attempts:
        size = len(proposer.key) + len(attempt.record) + expected
        if part and (len(part) >= _MAX_KEYS or weight + size > _MAX_BYTES):
            yield part
            part, weight = [], 0
        part.append((proposer, attempt))
        weight += size
    if part:
        yield part
