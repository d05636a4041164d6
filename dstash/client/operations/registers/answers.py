"""The answers of a home, for each key of a request."""

from __future__ import annotations

from typing import Final, NamedTuple

from dstash.errors import DStashError, ProtocolError, from_wire
from dstash.version import Stamp
from dstash.wire import codec
from dstash.wire.registers import Changed, ChangeOutcome, unpack_numbers
from dstash.wire.shapes import Message

_OUTCOMES: Final = {int(outcome): outcome for outcome in ChangeOutcome}


class Answer(NamedTuple):
    """The answer for one key.

    Attributes:
        outcome: of the change or read.
        version: of the register, 0 if it is absent.
        value: msgpack: the answer of the operation, or the value that was read; None for none.
        expiry: milliseconds since 1970, 0 for never; only in the answer to a read.
        error: the reason, if the outcome is ``REJECTED``.
    """

    outcome: ChangeOutcome
    version: Stamp
    value: bytes | None
    expiry: int = 0
    error: DStashError | None = None


def read_answers(peer: str, message: Message, count: int) -> list[Answer]:
    """Return the answer for each of ``count`` keys.

    Raises:
        ProtocolError: the message is of another kind, or does not have an answer for each key.
    """
    if not isinstance(message, Changed):
        raise ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
    versions = unpack_numbers(message.versions)
    expiries = unpack_numbers(message.expiries) or [0] * count
    values = codec.unpack_optional_blobs(message.values)
    if {len(message.outcomes), len(versions), len(expiries), len(values)} != {count}:
        raise ProtocolError(f"{peer} sent {len(message.outcomes)} answers for {count} keys")
    errors = {place: from_wire(code, text, {}) for place, code, text in message.rejected}
    try:
        outcomes = [_OUTCOMES[number] for number in message.outcomes]
    except KeyError:
        raise ProtocolError(f"{peer} sent an unknown outcome") from None
    answers = list(map(Answer, outcomes, versions, values, expiries))
    for place, error in errors.items():
        answers[place] = answers[place]._replace(error=error)
    return answers
