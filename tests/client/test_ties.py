"""Tests of equal versions with different content: all replicas and clients pick the same one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dstash.client.operations.reads import RecordOperation
from dstash.client.operations.writes import KEYS_PER_CHUNK, ApplyOperation, PutOperation
from dstash.errors import Busy
from dstash.store.record import build_record, open_record
from dstash.types import Level
from dstash.version import Version, pack, stamp_at
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Error, Put
from tests.harness.joined import TYPES, Joined


@pytest.fixture
def joined() -> Joined:
    return Joined()


def put_under(joined: Joined, version: Version, value: str, *peers: str) -> Any:
    """Put ``k`` under a version, on some peers only."""

    def tamper(peer: str, envelope: Envelope) -> Envelope | None:
        if not isinstance(envelope.message, Put):
            return envelope
        if peer not in peers:
            return None
        return envelope._replace(message=replace(envelope.message, version=version))

    joined.tamper = tamper
    result = joined.put({"k": value}, "one", timeout=1000)
    joined.tamper = lambda peer, envelope: envelope
    return result


@pytest.mark.parametrize("values", [("one", "two"), ("two", "one")])
def test_put_is_stamped_past_equal_version_with_higher_bytes(
    joined: Joined, values: tuple[str, str]
) -> None:
    version = pack(stamp_at(joined.now), b"twin")
    put_under(joined, version, values[0], "a", "b", "c")
    stamped: list[Version] = []

    def first_try_under_that_version(peer: str, envelope: Envelope) -> Envelope:
        if isinstance(envelope.message, Put):
            stamped.append(envelope.message.version)
            if len(stamped) <= 3:
                return envelope._replace(message=replace(envelope.message, version=version))
        return envelope

    joined.tamper = first_try_under_that_version
    assert joined.put({"k": values[1]}, "all").stored == 1
    assert joined.lookup("k", level="all") == {"k": values[1]}
    # The bytes "two" are above "one": only the put of "one" is superseded and stamped again.
    assert len(stamped) == (6 if values[1] == "one" else 3)


def test_reconciliation_orders_equal_versions_by_bytes(joined: Joined) -> None:
    version = pack(stamp_at(joined.now), b"twin")
    put_under(joined, version, "two", "a")
    put_under(joined, version, "one", "b")
    put_under(joined, version, "one", "c")
    operation = RecordOperation(
        joined.session, joined.now + 5000, "i", ["k"], Level.ALL, TYPES.decode_values
    )
    assert TYPES.decode_array(b"\x91" + joined.run(operation)["k"].payload) == ["two"]
    assert len({joined.record(peer, "k") for peer in "abc"}) == 1


def test_restored_record_loses_to_equal_version_with_higher_bytes(
    joined: Joined,
) -> None:
    joined.put({"k": "two"}, "all")
    stored = open_record(joined.record("a", "k") or b"")
    [payload] = TYPES.encode_many(["one"])
    lower = build_record(b"i", b"k", stored._replace(payload=payload))
    apply = ApplyOperation(joined.session, joined.now + 5000, "i", Level.ALL, [("k", b"k", lower)])
    joined.run(apply)
    assert joined.lookup("k", level="all") == {"k": "two"}


class TestChunks:
    def operation(self, joined: Joined) -> PutOperation:
        names = [f"key{number}" for number in range(3 * KEYS_PER_CHUNK)]
        items = [(name, name.encode(), b"\x01") for name in names]
        return PutOperation(joined.session, joined.now + 5000, "i", Level.ALL, items, None)

    def test_chunks_of_a_batch_have_increasing_versions(self, joined: Joined) -> None:
        joined.run(self.operation(joined))
        for name in "abc":
            puts = [request.message for peer, request in joined.asked if peer == name]
            versions = [put.version for put in puts if isinstance(put, Put)]
            assert len(versions) >= 3
            assert versions == sorted(set(versions))

    def test_resent_chunk_keeps_its_version(self, joined: Joined) -> None:
        left = 5

        def busy_at_first(envelope: Envelope) -> Envelope:
            nonlocal left
            left -= 1
            message = Error.of(Busy("come back")) if left >= 0 else envelope.message
            return envelope._replace(message=message)

        joined.tamper_answer = busy_at_first
        assert joined.run(self.operation(joined)).stored == 3 * KEYS_PER_CHUNK
        puts = [request.message for _, request in joined.asked if isinstance(request.message, Put)]
        assert len({(put.keys, put.version) for put in puts}) == len({put.keys for put in puts})
        assert len(puts) > 3 * len({put.keys for put in puts})
