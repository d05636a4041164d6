"""The metrics of a peer: a real scrape, and the names in dashboard and alerts."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dstash import DStashError
from tests.harness.peers import PATIENCE, Peer, Peers
from tests.harness.waiting import wait_until

CONF = Path(__file__).resolve().parents[3] / "conf"
DASHBOARD = CONF / "grafana" / "dashboard.json"
DOCUMENT = CONF.parent / "docs" / "dashboard.md"
ALERTS = CONF / "prometheus" / "alerts.yml"

#: Name and labels of a sample.
Series = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """The result of a scrape."""

    def __init__(self, text: str) -> None:
        self.families = {item.name: item for item in text_string_to_metric_families(text)}
        self.samples: dict[Series, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }
        self.names = {name for name, _ in self.samples}

    def get(self, name: str, **labels: str) -> float:
        """Return a sample; 0 if it is missing, as for a counter that never counted."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)


def scrape(peer: Peer) -> Scrape:
    """Scrape a peer."""
    url = f"http://127.0.0.1:{peer.http_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return Scrape(answer.read().decode())


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Peers, dict[str, Scrape]]]:
    """Two peers after writes and reads, with a scrape of each."""
    with Peers.local(tmp_path_factory.mktemp("metrics"), "--replicas", "2") as peers:
        peers.form("a", "b")
        client = peers.client()
        client.batch_put("numbers", {n: n for n in range(500)}, write="all").raise_for_failures()
        client.batch_lookup("numbers", range(500))
        client.delete("numbers", 1)
        yield peers, {name: scrape(peer) for name, peer in peers.all.items()}


@pytest.fixture(scope="module")
def peers(worked: tuple[Peers, dict[str, Scrape]]) -> Peers:
    """Return these peers, of which a test may have restarted one."""
    return worked[0]


def test_scrape_has_request_counters(worked: tuple[Peers, dict[str, Scrape]]) -> None:
    scrapes = worked[1]
    found = scrapes["a"]
    assert found.get("dstash_writes_total", kind="put", outcome="stored") >= 1
    put = {"kind": "put", "level": "", "outcome": "accepted"}
    assert found.get("dstash_requests_total", **put) >= 1
    quorum = {"kind": "lookup", "level": "quorum", "outcome": "answered"}
    lookups = [page.get("dstash_requests_total", **quorum) for page in scrapes.values()]
    assert sum(lookups) >= 2, "values from one replica, a digest from the other"
    reads = [page.get("dstash_read_keys_sum") for page in scrapes.values()]
    assert sum(reads) == 500, "each key from one replica"
    assert found.get("dstash_written_keys_sum") == 501
    assert 0 < found.get("dstash_commit_sync_seconds_sum") < found.get("dstash_commit_seconds_sum")
    assert found.get("dstash_records") >= 500
    assert found.get("dstash_commit_seconds_count") >= 1
    assert found.get("dstash_commit_seconds_sum") > 0
    assert found.get("dstash_commit_bytes_sum") > 500
    assert found.get("dstash_handling_seconds_count") >= 2


def test_scrape_has_state_of_peer_and_cluster(peers: Peers) -> None:
    found = scrape(peers["a"])
    assert found.get("dstash_ready") == 1
    assert found.get("dstash_responsive") == 1
    assert found.get("dstash_members", state="active") == 2
    assert found.get("dstash_members", state="joining") == 0
    assert found.get("dstash_replicas") == 2
    assert found.get("dstash_partitions") == 4096
    assert found.get("dstash_epoch") >= 1
    assert found.get("dstash_store_map_bytes") >= found.get("dstash_store_used_bytes") > 0
    assert found.get("dstash_disk_free_bytes") > 0
    assert found.get("dstash_store_pages", kind="leaf") > 0
    assert 0 < found.get("dstash_connections") < found.get("dstash_connections_limit")
    assert found.get("process_open_fds") > 0
    (info,) = [dict(labels) for name, labels in found.samples if name == "dstash_peer_info"]
    assert (info["peer"], info["cluster"]) == ("a", "dstash")


def test_scrape_has_rounds_of_registers(peers: Peers) -> None:
    peers.client().increment("@hits", "page")
    found = [scrape(peer) for peer in peers.all.values()]
    assert all(page.get("dstash_registers_waiting") == 0 for page in found)
    assert all(page.get("dstash_registers_concluded_total") == 0 for page in found)
    won = [
        dict(labels)
        for page in found
        for name, labels in page.samples
        if name == "dstash_register_rounds_total"
    ]
    assert {"phase": "accept", "outcome": "won"} in won


def test_refusals_are_counted_by_reason(peers: Peers) -> None:
    with pytest.raises(DStashError):
        peers.client(cluster="another", timeout=2.0).lookup("numbers", 1)
    found = sum(
        scrape(peer).get("dstash_requests_total", kind="hello", level="", outcome="wrong_cluster")
        for peer in peers.all.values()
    )
    assert found >= 1


def test_live_members_are_counted(peers: Peers) -> None:
    peers["b"].freeze()  # its lock stays: the peer counts as alive until it is released
    assert scrape(peers["a"]).get("dstash_members_alive") == 2
    peers["b"].thaw()
    peers["b"].kill()
    wait_until(
        lambda: scrape(peers["a"]).get("dstash_members_alive") == 1, PATIENCE, "one is alive"
    )
    peers["b"].start()
    peers["b"].wait_ready()
    wait_until(
        lambda: scrape(peers["a"]).get("dstash_members_alive") == 2, PATIENCE, "two are alive"
    )


def test_every_metric_has_help_and_a_conventional_name(peers: Peers) -> None:
    for name, family in scrape(peers["a"]).families.items():
        assert name.startswith(("dstash_", "process_")), name
        assert family.documentation.strip(), name
        assert family.type in {"counter", "gauge", "histogram"}, name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_documentation_lists_every_metric(peers: Peers) -> None:
    listed = set(re.findall(r"`(dstash_[a-z_]+)`", DOCUMENT.read_text()))
    families = scrape(peers["a"]).families.values()
    ours = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in families
        if family.name.startswith("dstash_")
    }
    assert listed == ours


def _names(expressions: list[str]) -> set[str]:
    return {
        name for text in expressions for name in re.findall(r"\b(?:dstash|process)_[a-z_]+", text)
    }


def _all_names(found: Scrape) -> set[str]:
    """Return the names of all families, including those without samples."""
    counters = {
        f"{family.name}_total" for family in found.families.values() if family.type == "counter"
    }
    return found.names | counters | set(found.families)


def _panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_grafana_dashboard_uses_existing_metrics(peers: Peers) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in _panels(dashboard) for target in panel["targets"]]
    expressions += [str(variable.get("query", "")) for variable in dashboard["templating"]["list"]]
    named = _names(expressions)
    assert len(named) >= 15
    assert named - _all_names(scrape(peers["a"])) == set()


def test_grafana_panels_do_not_overlap() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_alert_rules_use_existing_metrics(peers: Peers) -> None:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert _names([rule["expr"] for rule in rules]) - _all_names(scrape(peers["a"])) == set()
    for rule in rules:
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "action"}, rule["alert"]
    names = [rule["alert"] for rule in rules]
    assert len(names) == len(set(names)) >= 8
