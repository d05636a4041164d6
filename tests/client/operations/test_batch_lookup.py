"""A batch look-up returns the keys in their order, however their values arrived."""

from __future__ import annotations

import pytest

from dstash.client.operations.batch_lookup import BatchLookup
from dstash.types import Level
from tests.harness.joined import TYPES, Joined

KEYS = [f"k{number}" for number in range(40, 0, -1)]


@pytest.fixture
def cluster() -> Joined:
    cluster = Joined("abcd", replicas=2)
    cluster.put({key: key.upper() for key in sorted(KEYS)}, "all")
    return cluster


def test_result_has_the_order_of_the_keys(cluster: Joined) -> None:
    found = cluster.lookup(*KEYS)
    assert list(found.items()) == [(key, key.upper()) for key in KEYS]


def test_missing_keys_are_left_out(cluster: Joined) -> None:
    cluster.delete(*KEYS[::3])
    found = cluster.lookup("first", *KEYS, "last")
    assert list(found.items()) == [
        (key, key.upper()) for place, key in enumerate(KEYS) if place % 3
    ]


def test_none_is_a_value(cluster: Joined) -> None:
    cluster.put({KEYS[5]: None}, "all")
    assert cluster.lookup(*KEYS)[KEYS[5]] is None


def test_keys_that_are_asked_for_again_keep_their_places(cluster: Joined) -> None:
    silent = "a"
    cluster.silent.add(silent)
    for key in KEYS[::4]:  # replicas that differ are compared record by record
        cluster.forget("b", key)
    found = cluster.lookup(*KEYS, level="one")
    cluster.silent.clear()
    assert list(found) == [key for key in KEYS if key in found]
    assert list(cluster.lookup(*KEYS).items()) == [(key, key.upper()) for key in KEYS]


def test_batch_in_several_parts_keeps_the_order(cluster: Joined) -> None:
    cluster.session.keys_per_read = 7
    assert list(cluster.lookup(*KEYS)) == KEYS
    cluster.session.value_bytes = 10**6  # chunks of a few keys, and answers that are cut
    assert list(cluster.lookup(*KEYS)) == KEYS


def test_missing_keys_of_a_part_are_left_out(cluster: Joined) -> None:
    cluster.session.keys_per_read = 7
    cluster.delete(*KEYS[8:11])
    assert list(cluster.lookup(*KEYS)) == KEYS[:8] + KEYS[11:]


def test_keys_of_a_part_that_are_asked_for_again_keep_their_places(cluster: Joined) -> None:
    cluster.session.keys_per_read = 7
    cluster.forget("b", KEYS[0])
    cluster.forget("a", KEYS[20])
    found = cluster.lookup(*KEYS, level="all")
    assert list(found.items()) == [(key, key.upper()) for key in KEYS]


def test_keys_of_a_chunk_are_those_of_its_places(cluster: Joined) -> None:
    decode = TYPES.decode_values
    operation = BatchLookup(cluster.session, cluster.now + 5000, "i", KEYS, Level.QUORUM, decode)
    operation.more(cluster.now)
    for chunk in operation._open:
        keys = chunk.keys  # type: ignore[attr-defined]
        assert list(keys) == [KEYS[place] for place in keys.places]
        assert (keys[0], keys[1:3]) == (next(iter(keys)), list(keys)[1:3])
