"""Tests of records with equal versions and different content: digests and comparison."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dstash.cluster.repair.antientropy import compare_with
from dstash.cluster.repair.exchange import exchange_large
from dstash.cluster.replication import handlers
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.streaming import stream
from dstash.cluster.replication.tasks import Merge
from dstash.limits import PARTITIONS
from dstash.store.digest import DigestKind
from dstash.store.record import head, keyspace
from dstash.store.sealing import seal
from dstash.version import WRITER_BYTES, pack, stamp_at
from dstash.wire.replication import BucketsRequest, DigestsRequest, VersionsRequest
from tests.cluster.virtual import ANSWERS, KEY, NOW, PARTITION, Cluster

SPACE = keyspace(b"index", frozenset(range(PARTITIONS)))


def write(cluster: Cluster, peer: str, value: bytes) -> None:
    version = pack(stamp_at(NOW), bytes(WRITER_BYTES))
    cluster.commit(peer, Merge(seal(SPACE, [KEY], head(version), [value])))


def held(cluster: Cluster, peer: str) -> bytes:
    [(_, record)] = cluster.peers[peer].local_partitions.walk(PARTITION)
    return record[-1:]


def answer_as_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all peers answer like a version without content digests."""

    def digests(local_partitions: LocalPartitions, question: DigestsRequest, now: int) -> Any:
        answer: Any = yield from handlers.digests(local_partitions, replace(question, kind=0), now)
        return replace(answer, kind=0)

    def buckets(local_partitions: LocalPartitions, question: BucketsRequest, now: int) -> Any:
        answer: Any = yield from handlers.buckets(local_partitions, replace(question, kind=0), now)
        return replace(answer, kind=0)

    def versions(local_partitions: LocalPartitions, question: VersionsRequest, now: int) -> Any:
        return (
            yield from handlers.versions(local_partitions, replace(question, checksums=False), now)
        )

    for kind, answer in (
        (DigestsRequest, digests),
        (BucketsRequest, buckets),
        (VersionsRequest, versions),
    ):
        monkeypatch.setitem(ANSWERS, kind, answer)


@pytest.mark.parametrize("values", [(b"\x01", b"\x02"), (b"\x02", b"\x01")])
@pytest.mark.parametrize("is_large", [False, True])
def test_comparison_brings_the_higher_bytes_to_both_replicas(
    values: tuple[bytes, bytes], is_large: bool
) -> None:
    cluster = Cluster(joins=False)
    for peer, value in zip("ab", values, strict=True):
        write(cluster, peer, value)
    cluster.now += 10_000  # the partition is at rest
    # In each pair of replicas, each starts the comparison of half of the partitions.
    for peer, other in (("a", "b"), ("b", "a")):
        replica = cluster.peers[peer]
        task = (
            exchange_large(replica, PARTITION, other) if is_large else compare_with(replica, other)
        )
        cluster.run(peer, task)
    assert held(cluster, "a") == held(cluster, "b") == b"\x02"


def test_gaining_peer_takes_the_higher_bytes_of_its_sources() -> None:
    cluster = Cluster()
    for peer, value in zip("abc", (b"\x01", b"\x02", b"\x02"), strict=True):
        write(cluster, peer, value)
    write(cluster, "d", b"\x01")
    cluster.run("d", stream(cluster.peers["d"], [PARTITION], lambda partition: None))
    assert held(cluster, "d") == b"\x02"


def test_content_digest_differs_where_version_digest_is_equal() -> None:
    cluster = Cluster()
    for peer, value in zip("ab", (b"\x01", b"\x02"), strict=True):
        write(cluster, peer, value)
    for kind, differ in ((DigestKind.VERSIONS, False), (DigestKind.CONTENT, True)):
        for _ in range(2):  # computed once, then cached
            mine, theirs = (
                cluster.run(
                    peer, cluster.peers[peer].local_partitions.digests.of(PARTITION, kind=kind)
                )
                for peer in "ab"
            )
            assert (mine != theirs) is differ
        assert (
            cluster.run("a", cluster.peers["a"].local_partitions.digests.buckets(PARTITION, kind))
            != cluster.run(
                "b", cluster.peers["b"].local_partitions.digests.buckets(PARTITION, kind)
            )
        ) is differ


def test_peers_of_version_1_are_compared_by_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_as_version_1(monkeypatch)
    cluster = Cluster(joins=False)
    for peer in "ab":
        write(cluster, peer, b"\x01")
    cluster.run("a", compare_with(cluster.peers["a"], "b"))
    cluster.run("b", compare_with(cluster.peers["b"], "a"))
    assert cluster.peers["a"].differed == cluster.peers["b"].differed == 0
    version = pack(stamp_at(NOW + 1), bytes(WRITER_BYTES))
    cluster.commit("b", Merge(seal(SPACE, [KEY], head(version), [b"\x03"])))
    cluster.now += 10_000  # the partition is at rest
    cluster.run("a", compare_with(cluster.peers["a"], "b"))
    cluster.run("b", compare_with(cluster.peers["b"], "a"))
    assert held(cluster, "a") == b"\x03"


def test_streaming_from_peers_of_version_1_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_as_version_1(monkeypatch)
    cluster = Cluster()
    for peer in "abcd":
        write(cluster, peer, b"\x01")
    done: list[int] = []
    cluster.run("d", stream(cluster.peers["d"], [PARTITION], done.append))
    assert done == [PARTITION]
    assert cluster.asked[VersionsRequest] == 0
