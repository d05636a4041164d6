"""Tests of calls whose deadline passes between two parts of a batch."""

from __future__ import annotations

import pytest

from dstash.client.operations.base import Operation
from dstash.client.operations.reads import LookupOperation
from dstash.client.operations.writes import PutOperation
from dstash.client.session import Send, Session
from dstash.cluster.topology.topology import Member, Topology
from dstash.errors import TimedOut
from dstash.types import Level, Outcome
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Lookup, Stored, Values
from dstash.wire.shapes import Frame
from dstash.wire.values import TypeRegistry

DEADLINE = 5000
BATCH = 1000
KEYS = [f"key-{number}" for number in range(BATCH + 100)]  # more than reads or writes start with


@pytest.fixture
def session() -> Session:
    made = Session(lambda: 1000, batch_keys=BATCH)
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in "abc")
    topology = Topology(cluster="c", cluster_id="id", epoch=1, members=members, formed=True)
    made.install(topology.encode(), ["a", "b", "c"])
    for peer in "abc":
        made.learn_clock(peer, 1000, 1000, 1000)
    return made


def answer_all(operation: Operation, sends: list[Send]) -> None:
    for send in sends:
        envelope = decode(send.frames)
        request = envelope.message
        if isinstance(request, Lookup):
            count = len(codec.unpack_keys(request.keys))
            nothing = codec.join_payloads([b"\xc0"] * count)
            message: Values | Stored = Values(count, b"", list(range(count)), [], Frame(nothing))
        else:
            message = Stored([], b"")
        answer = Envelope(envelope.correlation, 1, 1000, message)
        assert operation.receive(send.peer, answer, 1000) == []


def test_lookup_fails_when_a_part_was_never_sent(session: Session) -> None:
    decoder = TypeRegistry().decode_values
    operation = LookupOperation(session, DEADLINE, "i", KEYS, Level.ONE, decoder)
    answer_all(operation, operation.more(1000))
    operation.tick(DEADLINE)
    with pytest.raises(TimedOut):
        operation.result()


def test_write_reports_unsent_keys_as_failed(session: Session) -> None:
    items = [(key, key.encode(), b"\x01") for key in KEYS]
    operation = PutOperation(session, DEADLINE, "i", Level.ALL, items, None)
    answer_all(operation, operation.more(1000))
    operation.tick(DEADLINE)
    outcome = operation.result()
    assert outcome.stored == BATCH
    assert set(outcome.outcomes.values()) == {Outcome.FAILED}
    assert len(outcome.outcomes) == 100


def test_write_reports_unanswered_keys_as_unknown(session: Session) -> None:
    items = [(key, key.encode(), b"\x01") for key in KEYS]
    operation = PutOperation(session, DEADLINE, "i", Level.ALL, items, None)
    operation.more(1000)
    operation.tick(DEADLINE)
    outcomes = list(operation.result().outcomes.values())
    assert outcomes.count(Outcome.UNKNOWN) == BATCH
    assert outcomes.count(Outcome.FAILED) == 100
