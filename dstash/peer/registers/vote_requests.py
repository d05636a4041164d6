"""The requests for votes that proposers want to send, together for each voter and kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from dstash.peer.registers.attempt import Attempt, Phase
from dstash.peer.registers.proposer import Proposer
from dstash.store.record import ABSENT, version_of
from dstash.version import Version
from dstash.wire import codec
from dstash.wire.registers.consensus import Accept, Prepare
from dstash.wire.shapes import Frame, Message

Attempts = list[tuple[Proposer, Attempt]]

#: Limits of one message between peers.
_MAX_KEYS: Final = 250
_MAX_BYTES: Final = 2 * 1024 * 1024


def requests_for(
    waiting: Iterable[tuple[Proposer, Attempt, Iterable[str]]], writer: bytes
) -> Iterator[tuple[str, Attempts, Message]]:
    """Yield (voter, attempts, message).

    Args:
        waiting: the attempts, with their proposers and the voters that are asked.
        writer: the number of this process.
    """
    groups: dict[tuple[str, Phase, int], Attempts] = defaultdict(list)
    for proposer, attempt, names in waiting:
        for name in names:
            groups[name, attempt.phase, _round(attempt)].append((proposer, attempt))
    for (peer, phase, number), attempts in groups.items():
        for part in _parts(attempts):
            yield peer, part, _message(phase, number, part, writer)


def _message(phase: Phase, number: int, attempts: Attempts, writer: bytes) -> Message:
    keys = Frame(codec.pack_blobs([proposer.key for proposer, _ in attempts]))
    if phase is Phase.ACCEPT:
        return Accept(keys, Frame(codec.pack_blobs([attempt.record for _, attempt in attempts])))
    known = b"".join([_version(attempt.known) for _, attempt in attempts])
    return Prepare(number, writer, known, keys)


def _round(attempt: Attempt) -> int:
    return attempt.round if attempt.phase is Phase.PREPARE else 0


def _version(record: bytes | None) -> Version:
    return ABSENT if record is None else version_of(record)


def _parts(attempts: Attempts) -> Iterable[Attempts]:
    """Split requests for votes into messages of limited size."""
    part: Attempts = []
    weight = 0
    for proposer, attempt in attempts:
        size = len(proposer.key) + len(attempt.record)
        if part and (len(part) >= _MAX_KEYS or weight + size > _MAX_BYTES):
            yield part
            part, weight = [], 0
        part.append((proposer, attempt))
        weight += size
    if part:
        yield part
