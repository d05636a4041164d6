"""The answer to a request for some registers, and its size."""

from __future__ import annotations

from dstash.errors import Busy
from dstash.peer.registers.pending import Answer, Batch
from dstash.wire import codec
from dstash.wire.registers import Changed
from dstash.wire.registers import ChangeOutcome as Outcome

MB = 1024 * 1024


def answered(*sizes: int, outcome: Outcome, is_read: bool) -> Changed:
    """Return the message that answers a request with values of some sizes."""
    done: list[Changed] = []
    batch = Batch.of(len(sizes), done.append, is_read=is_read)
    for place, size in enumerate(sizes):
        batch.add(place, None).answer(Answer(outcome, 7, bytes(size)))
    [message] = done
    return message


def test_read_rejects_values_that_do_not_fit_as_busy() -> None:
    message = answered(*[MB] * 17, 1, outcome=Outcome.FOUND, is_read=True)
    assert list(message.outcomes) == [Outcome.FOUND] * 4 + [Outcome.REJECTED] * 14
    assert [(place, code) for place, code, _ in message.rejected] == [
        (place, Busy.code) for place in range(4, 18)
    ]
    assert len(message.values) < 5 * MB


def test_single_value_of_any_size_is_answered() -> None:
    message = answered(0, 8 * MB, 1, outcome=Outcome.FOUND, is_read=True)
    assert list(message.outcomes) == [Outcome.FOUND, Outcome.FOUND, Outcome.REJECTED]


def test_change_is_applied_without_an_answer_that_does_not_fit() -> None:
    message = answered(3 * MB, 3 * MB, outcome=Outcome.APPLIED, is_read=False)
    assert list(message.outcomes) == [Outcome.APPLIED, Outcome.ANSWER_LOST]
    values = codec.unpack_optional_blobs(message.values)
    assert [value is None for value in values] == [False, True]
