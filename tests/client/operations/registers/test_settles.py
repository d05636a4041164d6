"""Linearizable reads of registers: one home answers for a quorum."""

from __future__ import annotations

from typing import Any

import pytest

from dstash.client.operations.batch_lookup import BatchLookup
from dstash.client.operations.reads import ExistsOperation, RecordOperation
from dstash.errors import Busy, NotReady, Unauthorised, Unavailable
from dstash.types import Level
from dstash.wire import codec
from dstash.wire.messages import Lookup, Values
from dstash.wire.registers import Changed, ChangeOutcome, Settle, pack_numbers
from dstash.wire.shapes import EMPTY, Frame
from tests.client.operations.registers.exchange import PATIENCE, TYPES, Exchange

FOUND, ABSENT, REJECTED = ChangeOutcome.FOUND, ChangeOutcome.ABSENT, ChangeOutcome.REJECTED


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


def read(
    exchange: Exchange,
    *keys: str,
    kind: type[BatchLookup] = BatchLookup,
    level: str = "quorum",
) -> None:
    deadline = exchange.now + 10_000
    exchange.start(
        kind(exchange.session, deadline, "@i", list(keys), Level(level), TYPES.decode_values)
    )


def settled(*values: Any, version: int = 5, expiry: int = 0) -> Changed:
    """Return the answer for registers; ``...`` means an absent register."""
    payloads = [None if value is ... else TYPES.encode_many([value])[0] for value in values]
    outcomes = bytes(ABSENT if payload is None else FOUND for payload in payloads)
    numbers, expiries = pack_numbers([version] * len(values)), pack_numbers([expiry] * len(values))
    return Changed(outcomes, numbers, expiries, [], Frame(codec.pack_blobs(payloads)))


@pytest.mark.parametrize("level", ["quorum", "all"])
def test_lookup_asks_the_home_only(exchange: Exchange, level: str) -> None:
    read(exchange, "k", level=level)
    [send] = exchange.sent
    assert send.peer == exchange.session.replicas_of(b"k")[0]
    assert exchange.message() == Settle("@i", Frame(codec.pack_blobs([b"k"])))
    exchange.answer(0, settled(None))
    assert exchange.operation.result() == {"k": None}


def test_level_one_reads_one_replica_without_a_quorum(exchange: Exchange) -> None:
    read(exchange, "k", level="one")
    assert exchange.message() == Lookup("@i", 1, Frame(codec.pack_blobs([b"k"])))


def test_records_are_read_from_the_home_at_level_one(exchange: Exchange) -> None:
    read(exchange, "k", kind=RecordOperation, level="one")
    assert exchange.message() == Settle("@i", Frame(codec.pack_blobs([b"k"])))


@pytest.mark.parametrize("kind", [BatchLookup, ExistsOperation])
def test_corrupt_register_is_read_from_the_home_at_level_one(
    exchange: Exchange, kind: type[BatchLookup]
) -> None:
    read(exchange, "k", kind=kind, level="one")
    exchange.answer(0, Values(1, b"", [0], [0], EMPTY))
    assert [type(exchange.message(place)) for place in range(len(exchange.sent))] == [
        Lookup,
        Settle,
    ]
    exchange.answer(1, settled(1))
    assert list(exchange.operation.result()) == ["k"]


@pytest.mark.parametrize("kind", [BatchLookup, ExistsOperation, RecordOperation])
def test_absent_registers_are_not_in_the_result(
    exchange: Exchange, kind: type[BatchLookup]
) -> None:
    read(exchange, "k", kind=kind)
    exchange.answer(0, settled(...))
    assert exchange.operation.result() == {}


def test_record_has_value_version_and_expiry(exchange: Exchange) -> None:
    read(exchange, "k", kind=RecordOperation)
    exchange.answer(0, settled("value", version=9, expiry=exchange.now + 500))
    record = exchange.operation.result()["k"]
    assert (record.version[:8], record.expiry) == ((9).to_bytes(8, "big"), exchange.now + 500)
    assert record.payload == TYPES.encode_many(["value"])[0]


def test_result_has_the_order_of_the_keys(exchange: Exchange) -> None:
    keys = [str(number) for number in range(30)]
    read(exchange, *keys)
    for place in reversed(range(len(exchange.sent))):
        names = codec.unpack_keys(exchange.message(place).keys)
        exchange.answer(place, settled(*(int(name) for name in names)))
    assert list(exchange.operation.result().items()) == [(key, int(key)) for key in keys]


@pytest.mark.parametrize("kind", [BatchLookup, ExistsOperation, RecordOperation])
def test_key_that_occurs_twice_is_read_once(exchange: Exchange, kind: type[BatchLookup]) -> None:
    read(exchange, "k", "k", kind=kind)
    assert codec.unpack_keys(exchange.message().keys) == [b"k"]
    exchange.answer(0, settled(7))
    assert list(exchange.operation.result()) == ["k"]


@pytest.mark.parametrize("error", [NotReady("starting"), Unavailable("no quorum")])
def test_read_asks_the_next_replica_when_the_home_fails(
    exchange: Exchange, error: Exception
) -> None:
    read(exchange, "k")
    exchange.answer(0, error)  # type: ignore[arg-type]  # both are errors of dstash
    exchange.answer(1, settled(1))
    assert [send.peer for send in exchange.sent] == list(exchange.session.replicas_of(b"k")[:2])
    assert exchange.operation.result() == {"k": 1}


def test_read_asks_the_next_replica_when_the_home_is_silent(exchange: Exchange) -> None:
    read(exchange, "k")
    exchange.wait(PATIENCE)
    exchange.answer(1, settled(1))
    assert exchange.operation.result() == {"k": 1}


def test_late_answer_of_a_silent_home_counts(exchange: Exchange) -> None:
    read(exchange, "k")
    exchange.wait(PATIENCE)
    exchange.wait(PATIENCE - 1)  # the second may take longer, so the third is not asked yet
    assert len(exchange.sent) == 2
    exchange.answer(0, settled(1))
    assert exchange.operation.result() == {"k": 1}


def test_few_requests_of_a_batch_are_pending(exchange: Exchange) -> None:
    read(exchange, *map(str, range(10_000)))
    assert 6 <= len(exchange.sent) < 12
    assert {send.peer for send in exchange.sent} == {"a", "b", "c"}


def test_busy_home_is_asked_again(exchange: Exchange) -> None:
    read(exchange, "k")
    exchange.answer(0, Busy("moving"))
    assert len(exchange.sent) == 1
    exchange.wait()
    assert exchange.sent[1].peer == exchange.sent[0].peer


def test_rejected_keys_are_read_again(exchange: Exchange) -> None:
    replicas = exchange.session.replicas_of
    keys = [key for key in map(str, range(100)) if replicas(key.encode()) == replicas(b"0")]
    read(exchange, *keys[:2])
    part = settled(1, ...)
    rejected = [[1, Unavailable.code, "no quorum"]]
    outcomes = bytes([FOUND, REJECTED])
    exchange.answer(0, Changed(outcomes, part.versions, part.expiries, rejected, part.values))
    assert codec.unpack_keys(exchange.message(1).keys) == [keys[1].encode()]
    exchange.answer(1, settled(2))
    assert exchange.operation.result() == {keys[0]: 1, keys[1]: 2}


def test_values_that_did_not_fit_are_read_at_once_in_smaller_chunks(exchange: Exchange) -> None:
    replicas = exchange.session.replicas_of
    keys = [key for key in map(str, range(100)) if replicas(key.encode()) == replicas(b"0")]
    read(exchange, *keys[:10], kind=ExistsOperation)
    part = settled(*[bytes(1_000_000)] * 4, *[...] * 6)
    rejected = [[place, Busy.code, "too large"] for place in range(4, 10)]
    outcomes = bytes([FOUND] * 4 + [REJECTED] * 6)
    exchange.answer(0, Changed(outcomes, part.versions, part.expiries, rejected, part.values))
    counts = [len(codec.unpack_keys(exchange.message(n).keys)) for n in range(len(exchange.sent))]
    assert counts == [10, 4, 2]
    exchange.answer(1, settled(*range(4)))
    exchange.answer(2, settled(1, ...))
    assert sorted(exchange.operation.result()) == sorted(keys[:9])


def test_next_read_has_fewer_keys_after_large_values(exchange: Exchange) -> None:
    read(exchange, "k")
    exchange.answer(0, settled(bytes(8_000_000)))
    exchange.sent.clear()
    read(exchange, *map(str, range(1000)))
    assert max(len(codec.unpack_keys(exchange.message(n).keys)) for n in range(6)) <= 4


def test_lasting_refusal_fails_the_read(exchange: Exchange) -> None:
    read(exchange, "k")
    exchange.answer(0, Unauthorised("the key may not read"))
    with pytest.raises(Unauthorised):
        exchange.operation.result()
