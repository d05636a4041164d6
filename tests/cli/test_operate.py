"""``dstash status``, ``health`` and ``where``: their texts, and runs against real peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dstash import Client
from dstash.cli.console.verdict import (
    next_steps,
    set_aside,
    shortfalls,
    status_word,
    unhealthy_because,
    verdict,
)
from dstash.client.describe import DIFFERS_MS, describe_cluster, describe_missing
from dstash.cluster.topology.topology import Change, Member, State, Topology
from dstash.cluster.topology.view import View
from tests.cli.terminal import Terminal
from tests.harness.devcluster import DevCluster, InProcess


def cluster(**member: Any) -> dict[str, Any]:
    good = {"id": "peer1", "alive": True, "answers": True, "synced": True}
    members = [good, good | {"id": "peer2"} | member]
    quorum: dict[str, Any] = {"replicas": 2, "quorum_lost": 0, "alerts": []}
    return {"formed": True, "min_peers": 3, "members": members} | quorum


def view(*members: Member, alive: str, **more: Any) -> View:
    return View(
        Topology("c", "id", 1, 3, **{"formed": True} | more, members=members), alive={*alive}
    )


def member(name: str, **more: Any) -> Member:
    return Member(name, "tcp://h:1", f"store-{name}", "z", **more)


READY: dict[str, Any] = {"why_not_ready": ""}
TRIO = (member("a"), member("b"), member("c"))


def described(known: View, answering: str) -> dict[str, Any]:
    return describe_cluster(known, {peer: dict(READY) for peer in answering})


def test_verdict_has_the_words_of_the_dashboard_for_quorums() -> None:
    broken = described(view(*TRIO, alive="a"), "a")
    assert (broken["quorum_lost"], broken["lacking_replicas"], broken["copies"]) == (4096, 0, 3)
    assert verdict(unhealthy_because(broken), word=status_word(broken)) == (
        "broken: quorum lost for 4,096 of 4,096 partitions: reads and writes of their keys fail "
        "until a replica is back; b is not alive; c is not alive"
    )
    assert list(next_steps(broken)) == ["start b and c; remove no member while a quorum is lost"]


def test_verdict_of_a_lost_copy_is_degraded() -> None:
    degraded = described(view(*TRIO, alive="ab"), "ab")
    assert (degraded["quorum_lost"], degraded["lacking_replicas"]) == (0, 4096)
    assert status_word(degraded) == "degraded"
    assert unhealthy_because(degraded) == [
        "c is not alive",
        "4,096 of 4,096 partitions lack a replica; they still have a quorum",
    ]
    [step] = next_steps(degraded)
    assert step == (
        'start c; if it never comes back, start a new peer with join = "manual": '
        "dstash cluster replace c NEW"
    )


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ("a", "1 of 3 copies: 2 peers are missing; start 2 more"),
        ("ab", "2 of 3 copies: 1 peer is missing; start 1 more"),
        ("abc", None),
        ("abcd", None),
    ],
)
def test_fewer_members_than_replicas_are_never_healthy(members: str, said: str | None) -> None:
    known = described(view(*map(member, members), alive=members), members)
    assert unhealthy_because(known) == ([said] if said else [])
    assert status_word(known) == ("degraded" if said else "healthy")
    assert known["copies"] == len(members)


def test_missing_copies_name_the_peers_that_can_be_added() -> None:
    known = described(view(member("a"), alive="apq"), "a")
    assert known["candidates"] == ["p", "q"]
    assert unhealthy_because(known) == [
        "1 of 3 copies: 2 peers are missing; add them: dstash cluster add p q"
    ]
    joining = (member("a"), member("b", state=State.JOINING), member("c", state=State.JOINING))
    known = described(view(*joining, alive="abc", change=Change(1)), "abc")
    assert "1 of 3 copies: 2 peers are missing; a topology change adds them" in (
        unhealthy_because(known)
    )


def test_member_that_is_not_ready_does_not_count_as_a_copy() -> None:
    answers = {"a": READY, "b": READY | {"why_not_ready": "the disk is full"}, "c": READY}
    assert describe_cluster(view(*TRIO, alive="abc"), answers)["lacking_replicas"] == 4096
    streaming = view(member("a"), member("b", synced=False), member("c"), alive="abc")
    assert described(streaming, "abc")["lacking_replicas"] == 4096
    assert described(view(*TRIO, alive="abc"), "ab")["lacking_replicas"] == 4096


def test_next_steps_before_the_cluster_has_formed() -> None:
    forming = described(view(member("a"), alive="a", formed=False, min_peers=3), "a")
    assert forming["alerts"] == []
    assert status_word(forming) == "broken"
    assert unhealthy_because(forming) == ["1 of 3 peers have joined"]
    assert list(next_steps(forming)) == ["start 2 more: requests are served once 3 have joined"]


def test_next_steps_for_members_that_are_silent_streaming_or_replaceable() -> None:
    assert list(next_steps(cluster(answers=False))) == [
        "look at the log of peer2, and at the network to it"
    ]
    assert list(next_steps(cluster(synced=False))) == [
        "wait until all data is streamed; the table shows how far it is"
    ]
    spare = described(view(*TRIO, member("d"), alive="abc"), "abc")
    assert list(next_steps(spare)) == ["start d; if it never comes back: dstash cluster forget d"]


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
    known = view(member("a"), member("b"), alive="ab")
    short = {"maintenance": {"differing": 7, "differing_ms": DIFFERS_MS - 1}}
    long = {"maintenance": {"differing": 5, "differing_ms": DIFFERS_MS}}
    assert describe_cluster(known, {"a": short, "b": long})["differing"] == 5
    assert describe_cluster(known, {"a": short, "b": {}})["differing"] == 0


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


@pytest.mark.parametrize("columns", [60, 80])
def test_status_of_unhealthy_cluster_fits_on_a_narrow_screen(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    asked = Client.status
    why = "the clock is 5000 ms behind the cluster's; set it by NTP"
    busy = {"streaming": 5, "streaming_of": 10, "corrupt": 12, "hints": {"peer1": 99999}}

    def status(client: Client, **options: Any) -> Any:
        status = asked(client, **options)
        first, second, third = status["members"]
        first |= {"zone": "a-long-name-of-a-machine.example.org", "maintenance": busy}
        members = [first, second | {"why_not_ready": why}, third | {"alive": False}]
        return status | {"members": members, "candidates": ["p4"], "waits": [f"peer2: {why}"]}

    monkeypatch.setattr(Client, "status", status)
    done = inside.run("status", "--check", environ={"COLUMNS": str(columns)})
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 8
    assert max(map(len, lines)) <= columns
    text = " ".join(line.strip() for line in lines)
    assert text.startswith(f"degraded: peer2 is not ready: {why}; peer3 is not alive")
    assert "candidate: p4 waits to be added: dstash cluster add p4" in text
    assert "next: start peer3; if it never comes back" in text
    assert "peer1: streaming 50%, 12 corrupt, 99999 hints kept" in text
    rows = [line.split() for line in lines[-4:-1]] if columns == 60 else []
    assert [row[0] for row in rows] == ["peer1", "peer2", "peer3"][: len(rows)]


def test_status_check_of_healthy_cluster_succeeds(inside: InProcess) -> None:
    inside.out("health", "--wait", "30")
    assert inside.out("status", "--check", "-o", "json").count("\n") == 1


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
