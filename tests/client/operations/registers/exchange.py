"""An operation on registers and three peers, which answer as a test decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstash.client.operations.base import Operation
from dstash.client.operations.registers.changes import ChangeOperation
from dstash.client.operations.registers.request_ids import RequestIds
from dstash.client.operations.registers.wanted import Wanted
from dstash.client.session import Send, Session
from dstash.cluster.topology.topology import Member, Topology
from dstash.errors import DStashError
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode
from dstash.wire.keys import encode_keys
from dstash.wire.messages import Error
from dstash.wire.registers import Change, Changed, ChangeKind, ChangeOutcome, pack_numbers
from dstash.wire.shapes import Frame, Message
from dstash.wire.values import TypeRegistry

TYPES = TypeRegistry()
NOW = 1_700_000_000_000
#: Any two keys with the same first letter have the same home: a key is its own name of a peer.
NAMES = ("a", "b", "c")
#: How long an operation waits for an answer before it asks the next replica.
PATIENCE = 1000


def cluster(epoch: int = 7, names: Sequence[str] = NAMES) -> Topology:
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in names)
    return Topology("test", "id", epoch, 3, formed=True, members=members)


class Exchange:
    """An operation, the requests that it has sent, and answers to them."""

    def __init__(self) -> None:
        self.now = NOW
        self.session = Session(lambda: self.now)
        self.session.install(cluster().encode(), list(NAMES))
        self.ids = RequestIds(self.session)
        self.sent: list[Send] = []
        self.operation: Operation

    def change(self, *keys: str, value: Any = 1, wanted: Wanted | None = None) -> None:
        """Start a change of keys."""
        [payload] = TYPES.encode_many([value])
        items: list[Any] = [
            (key, encoded, payload) for key, encoded in zip(keys, encode_keys(keys), strict=True)
        ]
        self.start(
            ChangeOperation(
                self.session,
                self.now + 10_000,
                "@i",
                items,
                wanted or Wanted(ChangeKind.PUT),
                self.ids,
                TYPES.decode_values,
            )
        )

    def start(self, operation: Operation) -> None:
        """Start an operation; its first requests are in ``sent``."""
        self.operation = operation
        while operation.hungry:
            self.sent += operation.more(self.now)

    def message(self, place: int = -1) -> Any:
        """Return a request that was sent."""
        return decode(self.sent[place].frames).message

    def request(self, place: int = -1) -> Change:
        """Return a change that was sent."""
        message = self.message(place)
        assert isinstance(message, Change)
        return message

    def answer(self, place: int, message: Message | DStashError) -> None:
        """Answer a request."""
        if isinstance(message, DStashError):
            message = Error.of(message)
        envelope = Envelope(self.sent[place].correlation, 7, self.now, message)
        sends = self.operation.receive(self.sent[place].peer, envelope, self.now)
        self.sent += sends

    def lose(self, place: int) -> None:
        """Break the connection on which a request was sent."""
        self.sent += self.operation.lost(self.sent[place].peer, self.now)

    def unsend(self, place: int) -> None:
        """Report that a request could not be sent."""
        self.sent += self.operation.unsent(self.sent[place], self.now)

    def wait(self, milliseconds: int = 600) -> None:
        """Let time pass."""
        self.now += milliseconds
        self.sent += [send for send in self.operation.tick(self.now) if _is_about_registers(send)]

    def expire(self) -> None:
        """Let the deadline of the call pass."""
        self.wait(self.operation.deadline - self.now)


def _is_about_registers(send: Send) -> bool:
    return decode(send.frames).message.KIND in (26, 28)


def changed(
    *outcomes: ChangeOutcome,
    version: int = 5,
    value: Any = None,
    rejected: DStashError | None = None,
) -> Changed:
    """Return an answer with the same version for all keys."""
    rejections = [
        [place, rejected.code, str(rejected)]
        for place, outcome in enumerate(outcomes)
        if outcome is ChangeOutcome.REJECTED and rejected is not None
    ]
    payload = None if value is None else TYPES.encode_many([value])[0]
    values = Frame(codec.pack_blobs([payload] * len(outcomes)))
    numbers = pack_numbers([version] * len(outcomes))
    return Changed(bytes(outcomes), numbers, b"", rejections, values)
