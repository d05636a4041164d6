"""A home of registers in memory, which applies the operations of peers (``peer/registers``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from dstash.client.calls import Calls
from dstash.client.operations.base import Operation
from dstash.client.registers.steps import Pause, Steps, T
from dstash.client.session import Send, Session
from dstash.config.client import ClientSettings
from dstash.errors import DStashError
from dstash.peer.registers import operations
from dstash.peer.registers.operations import Decision, State
from dstash.types import NEVER
from dstash.version import WRITER_BYTES, pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Error, Pong
from dstash.wire.registers import (
    KEEP,
    NEVER_EXPIRES,
    Amounts,
    Change,
    Changed,
    ChangeKind,
    ChangeOutcome,
    Settle,
    pack_numbers,
    unpack_amounts,
    unpack_expected,
)
from dstash.wire.shapes import EMPTY, Frame, Message
from dstash.wire.values import TypeRegistry
from tests.client.operations.registers.exchange import NAMES, NOW, cluster

#: Answers a request in the place of the home; None lets the home answer.
Interfere = Callable[[Message], DStashError | None]


class Home:
    """One home for all keys, and the calls of a client."""

    def __init__(self) -> None:
        self.now = NOW
        self.session = Session(lambda: self.now)
        self.session.install(cluster().encode(), list(NAMES))
        self.calls = Calls(ClientSettings(), self.session, TypeRegistry())
        self.states: dict[bytes, State] = {}
        self.requests: list[Message] = []
        self.pauses: list[float] = []
        self.interfere: Interfere = lambda message: None
        #: Called in each pause of a call.
        self.meanwhile: Callable[[], None] = lambda: None

    def drive(self, steps: Steps[T]) -> T:
        """Run a call; its pauses take no time."""
        answer: Any = None
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    self.now += round(step.seconds * 1000)
                    self.meanwhile()
                    step = steps.send(None)
                    continue
                try:
                    answer = self.run(step)
                except DStashError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def run(self, operation: Operation) -> Any:
        """Run an operation and return its result."""
        sends: deque[Send] = deque()
        while not operation.done:
            if operation.hungry:
                sends.extend(operation.more(self.now))
            if sends:
                send = sends.popleft()
                answer = self._answer(decode(send.frames).message)
                envelope = Envelope(send.correlation, 7, self.now, answer)
                sends.extend(operation.receive(send.peer, envelope, self.now))
            elif not operation.done:
                self.now = max(self.now, operation.wakeup())
                sends.extend(operation.tick(self.now))
        return operation.result()

    def expire(self, key: str) -> None:
        """Delete a register, as its home does when it has expired."""
        gone = self.states[key.encode()]
        version = pack(stamp_at(self.now, len(self.requests)), bytes(WRITER_BYTES))
        expired = operations.Operation(ChangeKind.DELETE, b"home", 1 << 63)
        after = operations.apply(expired, gone, version).state
        assert after is not None
        self.states[key.encode()] = after

    def _answer(self, message: Message) -> Message:
        if not isinstance(message, Change | Settle):
            return Pong()
        self.requests.append(message)
        refused = self.interfere(message)
        if refused is not None:
            return Error.of(refused)
        if isinstance(message, Change):
            return self._change(message)
        states = [self._state(key) for key in codec.unpack_keys(message.keys)]
        return Changed(
            bytes(
                ChangeOutcome.ABSENT if state.is_absent else ChangeOutcome.FOUND for state in states
            ),
            pack_numbers([state.version for state in states]),
            pack_numbers([state.expiry for state in states]),
            [],
            Frame(codec.pack_blobs([None if s.is_absent else s.value for s in states])),
        )

    def _state(self, key: bytes) -> State:
        return self.states.get(key) or operations.read(None, 0)

    def _change(self, message: Change) -> Message:
        keys = codec.unpack_keys(message.keys)
        values = codec.unpack_blobs(message.payloads) or [b""] * len(keys)
        expected = unpack_expected(message.expected, len(keys))
        amounts = [Amounts(0)] * len(keys)
        if message.amounts:
            amounts = unpack_amounts(message.amounts, len(keys))
        expiry = None if message.ttl == KEEP else NEVER
        if message.ttl not in (KEEP, NEVER_EXPIRES):
            expiry = self.now + message.ttl
        decisions: list[Decision | DStashError] = []
        for place, key in enumerate(keys):
            operation = operations.Operation(
                ChangeKind(message.operation),
                message.caller,
                message.number,
                message.repeated,
                expected[place],
                values[place],
                *amounts[place],
                expiry=expiry,
                fence=message.fence,
            )
            version = pack(stamp_at(self.now, len(self.requests)), bytes(WRITER_BYTES))
            try:
                decision = operations.apply(operation, self._state(key), version)
            except DStashError as error:
                decisions.append(error)
                continue
            if decision.state is not None:
                self.states[key] = decision.state
            decisions.append(decision)
        return _changed(decisions)


def _changed(decisions: list[Decision | DStashError]) -> Changed:
    refused = Decision(ChangeOutcome.REJECTED, 0)
    made = [decision if isinstance(decision, Decision) else refused for decision in decisions]
    return Changed(
        bytes(
            ChangeOutcome.ANSWER_LOST if decision.is_answer_lost else decision.outcome
            for decision in made
        ),
        pack_numbers([decision.version for decision in made]),
        b"",
        [
            [place, error.code, str(error)]
            for place, error in enumerate(decisions)
            if isinstance(error, DStashError)
        ],
        Frame(codec.pack_blobs([decision.answer or None for decision in made])) or EMPTY,
    )
