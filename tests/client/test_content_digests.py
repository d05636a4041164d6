"""Tests of digests in quorum look-ups: they cover content, and ignore collected tombstones."""

from __future__ import annotations

import collections

import pytest

from dstash.client.operations.writes import PutOperation
from dstash.cluster.replication import tombstone_gc
from dstash.peer.background.maintenance import Pace
from dstash.store.record import build_record, open_record, partition_of
from dstash.types import Level
from dstash.wire.messages import Lookup
from dstash.wire.protocol import CONTENT_DIGESTS, LOWEST_PROTOCOL
from tests.harness.joined import TYPES, Joined


def lookups(joined: Joined) -> dict[str, int]:
    """Return the requests that the look-ups so far sent to each peer."""
    return {
        peer: envelope.message.want
        for peer, envelope in joined.asked
        if isinstance(envelope.message, Lookup)
    }


class TestContent:
    def make_tie(self) -> Joined:
        """Return replicas, of which one has other bytes with the same version."""
        joined = Joined()
        joined.put({"k": "one"}, "all")
        [payload] = TYPES.encode_many(["two"])
        for peer in "bc":
            joined.alter(
                peer,
                "k",
                lambda record: build_record(
                    b"i", b"k", open_record(record)._replace(payload=payload)
                ),
            )
        return joined

    @pytest.mark.parametrize("level", ["quorum", "all"])
    def test_equal_versions_with_different_content_are_reconciled(self, level: str) -> None:
        joined = self.make_tie()
        for first in "abc":
            for other in "abc".replace(first, ""):
                joined.session._suspects[other] = joined.now + 10**6
            assert joined.lookup("k", level=level) == {"k": "two"} or level == "quorum"
            joined.session._suspects.clear()
        assert joined.lookup("k", level="all") == {"k": "two"}
        assert len({joined.record(peer, "k") for peer in "abc"}) == 1

    def test_client_asks_for_content_only_if_all_peers_of_a_chunk_know_it(self) -> None:
        joined = Joined()
        joined.put({"k": 1}, "all")
        joined.asked.clear()
        joined.lookup("k", level="all")
        assert sorted(lookups(joined).values()) == [6, 6, 7]
        for forgotten in "abc":
            joined.session.forget_protocol(forgotten)
            joined.asked.clear()
            assert joined.lookup("k", level="all") == {"k": 1}
            assert sorted(lookups(joined).values()) == [2, 2, 3]
            joined.session.learn_protocol(forgotten, LOWEST_PROTOCOL, CONTENT_DIGESTS)


class TestAfterTombstoneGc:
    KEYS = tuple(f"k{number}" for number in range(30))

    @pytest.fixture(params=["expired", "deleted"])
    def joined(self, request: pytest.FixtureRequest) -> Joined:
        """Replicas that agreed on a horizon above deleted keys; a has collected the tombstones."""
        joined = Joined(pace=Pace(10**9, 10**9, 0))
        payloads = TYPES.encode_many([1] * len(self.KEYS))
        items = [
            (key, key.encode(), payload) for key, payload in zip(self.KEYS, payloads, strict=True)
        ]
        put = PutOperation(joined.session, joined.now + 5000, "i", Level.ALL, items, 1000)
        joined.run(put)
        if request.param == "deleted":
            joined.delete(*self.KEYS, level="all")
        joined.now += 60_000
        for core in joined.peers.values():
            for key in self.KEYS:
                list(core.local_partitions.digests.of(partition_of(key.encode())))
            core.scheduler.spawn("agree", tombstone_gc.agree_all(core.maintenance.replica, 30_000))
        for _ in range(20):
            joined.settle()
        collector = joined.peers["a"]
        collector.scheduler.spawn("gc", tombstone_gc.reap_all(collector.maintenance.replica))
        for _ in range(20):
            joined.settle()
        assert [len(store.records) for store in joined.stores.values()] == [0, 30, 30]
        joined.asked.clear()
        return joined

    @pytest.mark.parametrize("level", ["quorum", "all"])
    def test_lookup_needs_no_repair_after_tombstone_gc(self, joined: Joined, level: str) -> None:
        for key in self.KEYS:
            assert joined.lookup(key, level=level) == {}
            assert joined.exists(key, level=level) == {}
        kinds = collections.Counter(type(request.message).__name__ for _, request in joined.asked)
        assert kinds == {"Lookup": len(self.KEYS) * 2 * Level(level).needed(3)}

    def test_replica_after_tombstone_gc_is_not_lagging(self, joined: Joined) -> None:
        # A replica with an older horizon still returns tombstones.
        for key in self.KEYS:
            joined.peers["b"].local_partitions.horizons[partition_of(key.encode())] = 0
        assert joined.lookup(*self.KEYS, level="all") == {}
        assert joined.session.lagging == {}
