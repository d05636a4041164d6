"""``dstash status``, ``health`` and ``where``: their texts, and runs against real peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dstash import Client
from dstash.cli.commands.operate import set_aside, shortfalls, unhealthy_because, verdict
from dstash.client.describe import DIFFERS_MS, describe_cluster, describe_missing
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from tests.cli.terminal import Terminal
from tests.harness.devcluster import DevCluster, InProcess


def cluster(**member: Any) -> dict[str, Any]:
    good = {"id": "peer1", "alive": True, "answers": True, "synced": True}
    return {"formed": True, "min_peers": 3, "members": [good, good | {"id": "peer2"} | member]}


@pytest.mark.parametrize(
    ("member", "reasons"),
    [
        ({}, []),
        ({"alive": False, "answers": False}, ["peer2 is not alive"]),
        ({"answers": False}, ["peer2 does not answer"]),
        ({"synced": False}, ["peer2 is not synced"]),
        ({"why_not_ready": "disk is full"}, ["peer2 is not ready: disk is full"]),
        ({"why_not_ready": ""}, []),
    ],
)
def test_unhealthy_because_lists_reasons(member: dict[str, Any], reasons: list[str]) -> None:
    assert unhealthy_because(cluster(**member)) == reasons


def test_unhealthy_because_reports_missing_peers_while_forming() -> None:
    assert unhealthy_because(cluster() | {"formed": False}) == ["2 of 3 peers have joined"]


def test_set_aside_stores_are_named_with_their_size() -> None:
    members = cluster(set_aside={"set-aside-1": 3 * 1024 * 1024})["members"]
    assert set_aside(members) == [
        "peer2 has set aside a store: set-aside-1 (3.0 MiB); delete it when it is not needed"
    ]


def test_verdict_lists_reasons() -> None:
    assert verdict(unhealthy_because(cluster(alive=False))) == "unhealthy: peer2 is not alive"
    assert verdict(unhealthy_because(cluster())) == "healthy"


@pytest.mark.parametrize(
    ("keys", "partitions", "said"),
    [
        (61_106, 0, "61,106 keys still missing on peer3"),
        (1, 0, "1 key still missing on peer3"),
        (0, 1, "some keys of 1 partition still missing on peer3"),
        (5, 4096, "5 keys and some keys of 4,096 partitions still missing on peer3"),
    ],
)
def test_verdict_counts_keys_missing_on_a_peer(keys: int, partitions: int, said: str) -> None:
    missing = [{"peer": "peer3", "keys": keys, "partitions": partitions}]
    notes = shortfalls({"missing": missing, "differing": 0})
    assert verdict([], notes) == f"healthy, {said}"
    reasons = ["peer3 is not alive"]
    assert verdict(reasons, notes) == f"unhealthy: peer3 is not alive, {said}"


def test_verdict_counts_differing_partitions() -> None:
    notes = shortfalls({"missing": [], "differing": 1200})
    assert verdict([], notes) == "healthy, 1,200 partitions differ between replicas"
    assert shortfalls({"missing": [], "differing": 1}) == ["1 partition differs between replicas"]
    assert verdict([], shortfalls({"missing": [], "differing": 0})) == "healthy"


def test_status_counts_partitions_differing_for_long() -> None:
    members = tuple(Member(name, "tcp://h:1", f"store-{name}", "z") for name in "ab")
    view = View(Topology("c", "id", 1, 3, formed=True, members=members))
    short = {"maintenance": {"differing": 7, "differing_ms": DIFFERS_MS - 1}}
    long = {"maintenance": {"differing": 5, "differing_ms": DIFFERS_MS}}
    assert describe_cluster(view, {"a": short, "b": long})["differing"] == 5
    assert describe_cluster(view, {"a": short, "b": {}})["differing"] == 0


def test_missing_keys_sum_up_all_hints() -> None:
    said = {
        "peer1": {
            "maintenance": {"hints": {"peer3": 7, "peer2": 0}, "dirty_partitions": {"peer3": 2}}
        },
        "peer2": {"maintenance": {"hints": {"peer3": 4}, "dirty_partitions": {"peer3": 1}}},
        "peer3": {},
        "of an earlier version": {"maintenance": {"hints": {"peer3": 2}}},
    }
    assert describe_missing(said) == [{"peer": "peer3", "keys": 10, "partitions": 2}]


def test_status_lists_members(inside: InProcess) -> None:
    status = json.loads(inside.out("-o", "json", "status"))
    assert status["formed"] is True
    assert status["replicas"] == 3
    assert [member["id"] for member in status["members"]] == ["peer1", "peer2", "peer3"]
    verdict, first, head, *rows = inside.out("status").splitlines()
    assert verdict == "healthy"
    assert first.startswith("cluster dstash: formed, 3 of 3 members alive, 3 replicas, epoch ")
    assert head.split()[:3] == ["id", "address", "zone"]
    assert [row.split()[0] for row in rows] == ["peer1", "peer2", "peer3"]
    assert all(" ok " in row for row in rows)


def test_status_fits_on_the_screen(dev: DevCluster, tmp_path: Path) -> None:
    screen = Terminal(dev, tmp_path, "status", lines=10)
    try:
        assert screen.end() == 0
    finally:
        screen.close()
    lines = screen.seen.splitlines()
    assert len(lines) < 10
    assert lines[0] == "healthy"
    assert lines[-1] == "and 1 more, all ok"


@pytest.mark.parametrize("uptime", [0, 337, 86_399, 9999 * 86_400])
def test_status_line_fits_on_a_narrow_screen(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch, uptime: int
) -> None:
    asked = Client.status

    def status(client: Client, **options: Any) -> Any:
        status = asked(client, **options)
        members = [member | {"uptime_s": uptime} for member in status["members"]]
        return status | {"members": members}

    monkeypatch.setattr(Client, "status", status)
    lines = inside.out("status").splitlines()
    assert lines[2].endswith(" up")
    assert max(map(len, lines)) <= 80


def test_health_of_healthy_cluster_succeeds(inside: InProcess) -> None:
    assert inside.out("health", "--wait", "30") == "healthy\n"
    assert (
        inside.out("-o", "json", "health")
        == '{"healthy":true,"reasons":[],"missing":[],"differing":0}\n'
    )


def test_where_lists_replicas(inside: InProcess) -> None:
    place = json.loads(inside.out("-o", "json", "where", "any", "key"))
    assert 0 <= place["partition"] < 4096
    assert sorted(replica["id"] for replica in place["replicas"]) == ["peer1", "peer2", "peer3"]
    first, _, *rows = inside.out("where", "other", "key").splitlines()
    assert first == f"partition {place['partition']}"
    assert [row.split()[:2] for row in rows] == [
        [str(rank), replica["id"]] for rank, replica in enumerate(place["replicas"], start=1)
    ]
