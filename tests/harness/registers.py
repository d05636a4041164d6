"""Callers of registers on the joined cores of a cluster: requests, answers, and their history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dstash.version import stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error
from dstash.wire.registers import (
    ANY,
    KEEP,
    Amounts,
    Change,
    Changed,
    ChangeKind,
    ChangeOutcome,
    Settle,
    pack_amounts,
    pack_numbers,
    unpack_numbers,
)
from dstash.wire.shapes import Frame, Message
from tests.harness.joined import Joined

INDEX = "@r"


class Result(NamedTuple):
    """The answer for one key."""

    outcome: ChangeOutcome
    version: int
    value: bytes | None
    expiry: int
    error: Any


@dataclass
class Sent:
    """A request with its answer, once that came."""

    home: str
    message: Message
    answer: Message | None = None

    @property
    def results(self) -> list[Result]:
        """The answer for each key."""
        answer = self.answer
        assert isinstance(answer, Changed), answer
        values = codec.unpack_optional_blobs(answer.values)
        versions = unpack_numbers(answer.versions)
        expiries = unpack_numbers(answer.expiries) or [0] * len(values)
        errors = {place: (code, text) for place, code, text in answer.rejected}
        return [
            Result(ChangeOutcome(outcome), versions[n], values[n], expiries[n], errors.get(n))
            for n, outcome in enumerate(answer.outcomes)
        ]

    @property
    def result(self) -> Result:
        """The answer for the only key."""
        [only] = self.results
        return only

    @property
    def error(self) -> Any:
        """The error that refused the request."""
        assert isinstance(self.answer, Error), self.answer
        return self.answer.error()


def blobs(*some: bytes | None) -> Frame:
    return Frame(codec.pack_blobs(some))


class Callers:
    """Sends requests to the peers of a cluster, each with a number of its own."""

    def __init__(self, joined: Joined) -> None:
        self.joined = joined
        self._numbers = 0
        self._correlation = 0
        self._sent: dict[int, Sent] = {}

    def change(
        self,
        kind: ChangeKind,
        *keys: bytes,
        home: str = "a",
        values: Sequence[bytes] = (),
        expected: int = ANY,
        caller: bytes = b"caller01",
        **fields: Any,
    ) -> Sent:
        """Send a change; ``run`` waits for the answer."""
        self._numbers += 1
        number = fields.pop("number", 0) or stamp_at(self.joined.now, self._numbers)
        amounts = fields.pop("amounts", None)
        if kind is ChangeKind.INCREMENT:
            amounts = pack_amounts(amounts or Amounts(1))
        return self.send(
            home,
            Change(
                fields.pop("index", INDEX),
                caller,
                number,
                fields.pop("repeated", False),
                int(kind),
                fields.pop("ttl", KEEP),
                fields.pop("fence", 0),
                pack_numbers([expected]),
                amounts or b"",
                blobs(*keys),
                blobs(*values),
                fields.pop("epoch", 0),
                fields.pop("is_ahead", False),
            ),
            **fields,
        )

    def settle(self, *keys: bytes, home: str = "a") -> Sent:
        """Send a read."""
        return self.send(home, Settle(INDEX, blobs(*keys)))

    def send(self, home: str, message: Message, *, copies: int = 1, timeout: int = 5000) -> Sent:
        """Send a message, or several equal copies of it."""
        self._correlation += 1
        sent = self._sent[self._correlation] = Sent(home, message)
        joined = self.joined
        deadline = joined.time_at(home) + timeout
        frames = encode(Envelope(self._correlation, joined.topology.epoch, deadline, message))
        for _ in range(copies):
            if home not in joined.down:
                replies = joined.peers[home].receive(b"client", frames, joined.time_at(home))
                joined._answer_each(home, replies)
        return sent

    def run(self, *sent: Sent, most_ms: int = 20_000) -> Sent:
        """Exchange messages until requests have their answers; time passes when none is left."""
        end = self.joined.now + most_ms
        while any(each.answer is None for each in sent):
            self.joined.settle()
            self.collect()
            if all(each.answer is not None for each in sent):
                break
            assert self.joined.now < end, f"no answer after {most_ms} ms"
            self.joined.now += 5
        return sent[0]

    def collect(self) -> None:
        """Take the answers that have come."""
        while self.joined._answers:
            _, frames = self.joined._answers.popleft()
            envelope = decode(frames)
            sent = self._sent.get(envelope.correlation)
            if sent is not None and sent.answer is None:
                sent.answer = envelope.message
