"""Tests of the sightings of stores that a client reports to peers."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from dstash.client.operations.writes import PutOperation
from dstash.client.sightings import Sightings
from dstash.cluster.replication.lineage import MOST_CLAIMS
from dstash.types import Level
from dstash.version import newest_stamp
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Hello, Put, Welcome
from tests.harness.joined import Joined


@pytest.fixture
def sightings() -> Sightings:
    return Sightings()


def claims_about(sightings: Sightings, store_id: str) -> list[tuple[int, int]]:
    return [(number, stamp) for store, number, _, stamp in sightings.claims() if store == store_id]


def test_claim_has_the_newest_acked_stamp(sightings: Sightings) -> None:
    sighting = sightings.learn(["s", 3, 1000, 70])
    assert sighting is not None
    sighting.acked(90)
    sighting.acked(80)
    assert sightings.claims() == [["s", 3, 1000, 90]]
    assert sightings.learn(["s", 3, 1000, 85]) is sighting
    assert sightings.claims() == [["s", 3, 1000, 90]]


def test_life_without_acked_write_is_not_claimed(sightings: Sightings) -> None:
    assert sightings.learn(["s", 3, 1000, 0]) is not None
    assert sightings.claims() == []


@pytest.mark.parametrize("store", [[], ["s"], ["s", "3", 1, 2], [1, 1, 1, 1], ["s", 1, 2, 3, 4]])
def test_welcome_with_invalid_store_is_ignored(sightings: Sightings, store: Any) -> None:
    assert sightings.learn(store) is None


def test_lives_per_store_are_limited_and_newest_write_is_kept(sightings: Sightings) -> None:
    sightings.learn(["s", 5, 1000, 500])
    for number in range(20):
        sightings.learn(["s", 5 + number, 2000, 10 + number])
    assert claims_about(sightings, "s") == [(5, 500), (22, 27), (23, 28), (24, 29)]


def test_threads_that_learn_and_ack_at_once_lose_nothing(sightings: Sightings) -> None:
    acked: list[int] = []
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(1, 3000):
                sighting = sightings.learn(["s", 3, 1000, 0])
                assert sighting is not None
                sighting.acked(10 * number + thread)
                acked.append(10 * number + thread)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not failures
    assert sightings.claims() == [["s", 3, 1000, max(acked)]]


def test_claims_are_limited_to_most_recently_seen_stores(sightings: Sightings) -> None:
    for number in range(3 * MOST_CLAIMS):
        sightings.learn([f"store-{number}", 1, 1, 1])
    kept = [claim[0] for claim in sightings.claims()]
    assert kept == [f"store-{number}" for number in range(2 * MOST_CLAIMS, 3 * MOST_CLAIMS)]


def test_hello_without_claims_equals_that_of_earlier_versions() -> None:
    assert encode(Envelope(1, 0, 0, Hello("c", seen=[]))) == encode(Envelope(1, 0, 0, Hello("c")))
    [frame] = encode(Envelope(1, 0, 0, Hello("c", seen=[["s", 1, 2, 3]])))
    assert decode([frame]).message == Hello("c", seen=[["s", 1, 2, 3]])


def put(joined: Joined, stores: dict[str, Any]) -> PutOperation:
    items: list[Any] = [("k", b"k", b"\x01")]
    operation = PutOperation(joined.session, joined.now + 5000, "i", Level("all"), items, None)
    operation.stores = stores
    joined.run(operation)
    return operation


def test_acked_write_is_claimed_of_the_stores_that_acked_it() -> None:
    joined = Joined()
    stores = {
        name: joined.session.sightings.learn([f"store-{name}", 1, 1, 0]) for name in "ab"
    }  # the third is unknown
    put(joined, stores)
    newest = joined.stores["a"].high_water
    sent = [envelope.message for _, envelope in joined.asked]
    stamps = {newest_stamp(put.version) for put in sent if isinstance(put, Put)}
    assert stamps == {newest}
    assert sorted(joined.session.sightings.claims()) == [
        ["store-a", 1, 1, newest],
        ["store-b", 1, 1, newest],
    ]
    assert decode(joined.session.greeting()).message == Hello(
        seen=[["store-a", 1, 1, newest], ["store-b", 1, 1, newest]]
    )


def test_welcome_has_the_life_and_newest_stamp_of_the_store() -> None:
    joined = Joined()
    stores: dict[str, Any] = {}
    put(joined, stores)
    frames = encode(Envelope(7, 0, 0, Hello("c")))
    answer = decode(joined.peers["a"].receive(b"x", frames, joined.now)[0].frames).message
    assert isinstance(answer, Welcome)
    store_id, number, began, stamp = answer.store
    assert (store_id, number, stamp) == ("store-a", 1, joined.stores["a"].high_water)
    assert began == joined.peers["a"].local_partitions.lineage.current.began
