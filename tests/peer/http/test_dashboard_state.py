"""The state and the alerts of the dashboard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dstash.cluster.topology.topology import Change, Member, State, Topology
from dstash.cluster.topology.view import View
from dstash.peer.http.dashboard import state
from dstash.peer.http.dashboard.alerts import alerts
from dstash.peer.http.dashboard.state import Known
from dstash.peer.telemetry.history import Sample
from dstash.peer.telemetry.observer import Sight

NOW = 1_700_000_000_000
WELL: dict[str, Any] = {"version": "1", "epoch": 7, "why_not_ready": "", "maintenance": {}}


def member(name: str, **more: Any) -> Member:
    return Member(name, f"tcp://{name}:1", "store", f"zone-{name}", **more)


def topology(*members: Member, **more: Any) -> Topology:
    return Topology("dstash", "id", 7, formed=True, members=members, **more)


def known(current: Topology | None, alive: str = "abc", **more: Any) -> Known:
    """Return the knowledge of peer a, which has just heard of the others."""
    view = None if current is None else View(current, frozenset(alive))
    others = [each.id for each in current.members if each.id != "a"] if current else []
    sights = {peer: Sight(dict(WELL), heard=NOW) for peer in others}
    return Known("a", "dstash", NOW, view, WELL, [], sights)._replace(**more)


TRIO = topology(member("a"), member("b"), member("c"))


def said(what: Known) -> list[tuple[int, str]]:
    return [(alert["badness"], alert["text"]) for alert in alerts(what, state.describe(what))]


def healths(what: Known) -> dict[str, str]:
    return {member["id"]: member["health"] for member in state.describe(what)["members"]}


def test_healthy_cluster_has_no_alerts() -> None:
    facts = state.describe(known(TRIO))
    assert said(known(TRIO)) == []
    assert [member["health"] for member in facts["members"]] == ["ok"] * 3
    assert sum(part["partitions"] for part in facts["sets"]) == 4096
    assert {member["held"] for member in facts["members"]} == {4096}
    assert facts["change"] is None


def test_down_peer_is_an_alert() -> None:
    (fewer, down) = said(known(TRIO, "ac"))
    assert fewer == (1, "4,096 of 4,096 partitions lack a replica; they still have a quorum")
    assert down[0] == 1
    assert down[1].startswith("b is down: ")


def test_two_of_three_peers_down_is_a_quorum_alert() -> None:
    badness, text = said(known(TRIO, "a"))[0]
    assert badness == 2
    assert text.startswith("quorum lost for 4,096 of 4,096 partitions")


def test_alert_reports_fewer_members_than_replicas() -> None:
    pair = topology(member("a"), member("b"))
    missing = "2 of 3 copies: 1 peer is missing;"
    assert said(known(pair, "ab")) == [(1, f"{missing} start 1 more")]
    waiting = said(known(pair, "abx"))
    assert waiting == [(1, f"{missing} add them: dstash cluster add x")]
    assert said(known(replace(pair, replicas=2), "ab")) == []


def test_held_lock_does_not_hide_lost_connection() -> None:
    what = known(TRIO)
    what.sights["b"].is_gone = True  # type: ignore[index]
    what.sights["c"].heard = NOW - 3500  # type: ignore[index]
    assert healths(what) == {"a": "ok", "b": "down", "c": "silent"}


def test_streaming_member_does_not_count_as_replica() -> None:
    lost = topology(member("a"), member("b", synced=False), member("c", synced=False))
    assert healths(known(lost)) == {"a": "ok", "b": "streaming", "c": "streaming"}
    assert said(known(lost))[0][1].startswith("quorum lost for 4,096")


def test_alert_names_every_affected_peer() -> None:
    away = "the membership is out of reach"
    what = known(TRIO, status=WELL | {"alerts": [away]})
    what.sights["c"].status["alerts"] = [away, "another"]  # type: ignore[index]
    assert said(what) == [(1, f"a, c: {away}"), (1, "c: another")]


def test_nearly_full_disk_is_an_alert_of_a_ready_peer() -> None:
    what = known(TRIO)
    what.sights["b"].status |= {"disk": "the disk is nearly full", "free_bytes": 7}  # type: ignore[index]
    expected = "b: the disk is nearly full (7 bytes are free); free disk space, or add a peer"
    assert said(what) == [(1, expected)]


def test_peer_that_has_not_joined_is_an_alert() -> None:
    assert said(known(None)) == [(2, "peer a has not joined a cluster")]
    ((_, text),) = said(known(topology(member("b"), member("c"), replicas=2)))
    assert "a is not a member; add it with: dstash cluster add a" in text
    forming = replace(TRIO, formed=False, min_peers=5)
    waiting = "3 of 5 peers have joined; requests are served once all have joined"
    assert said(known(forming))[0] == (2, waiting)


def test_join_is_shown_with_progress() -> None:
    joining = topology(*TRIO.members, member("d", state=State.JOINING), change=Change(7, rate=9))
    what = known(joining, "abcd")
    total = len([row for row in View(joining).writers if "d" in row])
    maintenance = {
        "streaming": 1,
        "streaming_of": total,
        "streaming_ms": 2000,
        "streamed_bytes": 5000,
    }
    what.sights["d"].status["maintenance"] = maintenance  # type: ignore[index]
    facts = state.describe(what)
    transfer = {item["peer"]: item for item in facts["change"]["transfers"]}["d"]
    assert (transfer["partitions"], transfer["done"], transfer["rate"]) == (total, total - 1, 2500)
    assert facts["change"]["joining"] == ["d"]
    assert sum(part["moving"] for part in facts["sets"]) == total
    assert alerts(what, facts) == []


def test_lag_is_the_sum_of_hints_for_the_peer() -> None:
    what = known(TRIO)
    for peer, count in (("b", 30), ("c", 12)):
        what.sights[peer].status["maintenance"] = {"hints": {"a": count}}  # type: ignore[index]
    assert {member["id"]: member["lag"] for member in state.describe(what)["members"]}["a"] == 42


def test_load_sums_all_peers() -> None:
    what = known(TRIO, samples=[Sample(NOW - 5000, 1, 3, 10, 30, 100, 200, 0, 0)])
    what.sights["b"].samples.append(Sample(NOW - 4400, 2, 3, 20, 30, 300, 900, 70, 80))  # type: ignore[index]
    what.sights["c"].samples.append(Sample(NOW, 9, 9, 9, 9, 9, 9, 9, 9))  # type: ignore[index]
    load = state.load(what, 60)
    assert load == {
        "at": [NOW // 1000 - 5],
        "reads": [3],
        "writes": [2],
        "read_keys": [30],
        "written_keys": [20],
        "handling_p50": [200],
        "handling_p99": [900],
        "commit_p50": [70],
        "commit_p99": [80],
    }


def test_large_cluster_is_shortened_to_first_peers() -> None:
    large = topology(*(member(f"p{number}") for number in range(15)))
    sets = state.describe(known(large))["sets"]
    short = state.shorten(sets)
    assert len(short) == 15 < 500 < len(sets)
    assert sum(part["partitions"] for part in short) == 4096
    assert state.shorten(sets[:10]) == sets[:10]


def test_hanging_peer_has_a_page() -> None:
    facts = state.unknown("a", "dstash", 12.3)
    assert facts.keys() == state.describe(known(TRIO)).keys() | {"alerts"}
    assert "a hangs: its event loop has not run for 12 s" in facts["alerts"][0]["text"]
