"""The list of indexes: names and sizes, by asking one replica of each partition."""

from __future__ import annotations

import pytest

from dstash.client.operations.indexes.sizes import IndexesOperation, IndexSize
from dstash.client.operations.writes import PutOperation
from dstash.cluster.replication import index_sizes
from dstash.config.client import ClientSettings
from dstash.errors import Unavailable, UsageError
from dstash.types import Level
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Error, IndexesReply, IndexesRequest
from tests.harness.joined import TYPES, Joined

#: Per record: partition, length of the name, checksum, version, flags, expiry.
HEAD = 2 + 1 + 37


@pytest.fixture
def joined() -> Joined:
    return Joined(names="abcd")


def store(joined: Joined, index: str, count: int) -> None:
    items = [(f"key{i:05}", f"key{i:05}".encode(), TYPES.encode_many([i])[0]) for i in range(count)]
    deadline = joined.now + 5000
    joined.run(PutOperation(joined.session, deadline, index, Level.ALL, items, None))  # type: ignore[arg-type]  # a str is a Key


def listed(joined: Joined, timeout: int = 5000) -> list[IndexSize]:
    found: list[IndexSize] = joined.run(IndexesOperation(joined.session, joined.now + timeout))
    return found


def test_indexes_are_listed_with_their_exact_sizes_when_they_are_small(joined: Joined) -> None:
    store(joined, "users", 100)
    store(joined, "a", 3)
    joined.put({"gone": 1})
    joined.delete("gone")
    size = 3 * (HEAD + len("a") + len("key00000") + 1)
    users = 100 * (HEAD + len("users") + len("key00000") + 1)
    assert listed(joined) == [
        IndexSize("a", 3, size, True),
        IndexSize("users", 100, users, True),
    ]


def test_large_indexes_are_estimated_and_small_ones_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined = Joined("a", replicas=1)
    monkeypatch.setattr(index_sizes, "_MAX_COUNTED", 400)
    store(joined, "large", 1200)
    store(joined, "small", 20)
    large, small = listed(joined)
    assert (large.name, large.exact) == ("large", False)
    assert large.records == pytest.approx(1200, rel=0.15)
    assert large.bytes == pytest.approx(1200 * (HEAD + 5 + 8 + 3), rel=0.15)
    assert small.name == "small"
    assert small.records >= 15  # found by its ranges, although few of them were counted


def test_another_replica_answers_for_a_peer_that_is_down(joined: Joined) -> None:
    store(joined, "users", 100)
    joined.down = {"b"}
    assert [(index.records, index.exact) for index in listed(joined)] == [(100, True)]


def test_another_replica_answers_for_a_silent_peer_within_the_default_timeout(
    joined: Joined,
) -> None:
    store(joined, "users", 100)
    joined.silent = {"b"}
    timeout = round(ClientSettings().timeout * 1000)
    assert [(index.records, index.exact) for index in listed(joined, timeout)] == [(100, True)]


def test_list_fails_when_a_partition_has_no_replica_that_answers(joined: Joined) -> None:
    joined.down = {"a", "b", "c", "d"}
    with pytest.raises(Unavailable):
        listed(joined, timeout=500)


def test_list_names_peer_of_earlier_version(joined: Joined) -> None:
    def answer(envelope: Envelope) -> Envelope:
        if isinstance(envelope.message, IndexesReply):
            return envelope._replace(message=Error(10, "unknown message kind 33"))
        return envelope

    joined.tamper_answer = answer
    with pytest.raises(UsageError, match=r"^[abcd] runs an earlier version, which cannot list"):
        listed(joined)


def test_each_partition_is_asked_for_once(joined: Joined) -> None:
    listed(joined)
    asked = [
        envelope.message.partitions
        for _, envelope in joined.asked
        if isinstance(envelope.message, IndexesRequest)
    ]
    packed = b"".join(asked)
    partitions = [packed[i : i + 2] for i in range(0, len(packed), 2)]
    assert sorted(partitions) == [number.to_bytes(2, "big") for number in range(4096)]
