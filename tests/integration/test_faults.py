"""Peers are killed, frozen, stopped and restarted under load; no acked write is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dstash.errors import TimedOut, Unavailable
from tests.harness.consul import ConsulAgent
from tests.harness.load import Load
from tests.harness.peers import Peers
from tests.harness.waiting import stays_true, wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")


def more(load: Load, operations: int) -> None:
    """Wait until this many more calls have returned."""
    goal = load.operations + operations
    wait_until(lambda: load.operations >= goal or load.errors, 60, f"{operations} more calls")
    assert not load.errors, load.errors


def placement(peers: Peers) -> list[list[str]]:
    """Return the replicas of some keys, in rank order."""
    with peers.client() as client:
        found = [client.where("i", f"key-{number}") for number in range(20)]
    return [[replica["id"] for replica in place["replicas"]] for place in found]


@pytest.mark.parametrize("attempt", range(3))
def test_three_peers_started_together_form_one_cluster(tmp_path: Path, attempt: int) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a", "b", "c")
        said = [peers.client().status() for _ in "abc"]
        assert len({status["cluster_id"] for status in said}) == 1
        assert said[0]["formed"]
        assert [member["id"] for member in said[0]["members"]] == ["a", "b", "c"]
        assert {member["state"] for member in said[0]["members"]} == {"active"}


def test_requests_below_min_peers_are_refused_with_reason(tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        lonely = peers.start("a", "--min-peers", "3")
        client = peers.client()
        expected = "has 1 of at least 3 peers (min_peers)"
        wait_until(lambda: expected in str(lonely.page("/readyz").get("why")), 30, "it says why")
        for call in (
            lambda: client.put("i", "k", 1, timeout=2),
            lambda: client.lookup("i", "k", timeout=2),
        ):
            with pytest.raises((Unavailable, TimedOut)) as caught:
                call()
            assert expected in str(caught.value)
        counts = lonely.page("/status")["counts"]
        assert counts["Put"] > 2, "it is asked again, after pauses that grow"
        assert counts["Lookup"] > 2
        for name in "bc":
            peers.start(name, "--min-peers", "3")
        client.put("i", "k", 1, timeout=30)


def test_restarted_peer_rejoins_without_moving_data(own: Peers) -> None:
    client = own.client()
    entries = {str(number): number for number in range(500)}
    client.batch_put("i", entries, write="all").raise_for_failures()
    before, epoch = placement(own), client.status()["epoch"]
    assert own["b"].stop() == 0
    client.put("i", "meanwhile", 1)
    own["b"].start()
    own["b"].wait_ready()
    assert placement(own) == before
    assert own.client().status()["epoch"] == epoch
    assert client.lookup("i", "meanwhile", read="all") == 1
    assert client.count("i") == 501


def test_peer_on_a_new_port_is_found(own: Peers) -> None:
    client = own.client()
    client.put("i", "k", 1)
    own["b"].stop()
    own["b"].move()
    own["b"].start()
    own["b"].wait_ready()
    assert client.lookup("i", "k", read="all", timeout=60) == 1


def test_kill_9_under_load_fails_no_request_and_loses_no_acked_write(own: Peers) -> None:
    with Load(own.client()) as load:
        more(load, 200)
        own["b"].kill()
        more(load, 400)
        own["b"].start()
        own["b"].wait_ready()
        more(load, 200)
    load.check(own.client())


def test_acked_writes_survive_kill_of_all_peers_under_load(own: Peers) -> None:
    with Load(own.client(timeout=60.0)) as load:
        more(load, 200)
        for name in "abc":
            own[name].kill()
        for name in "abc":
            own[name].start()
        more(load, 100)
    load.check(own.client())


def test_calls_fail_with_two_of_three_peers_down_and_recover(own: Peers) -> None:
    client = own.client()
    client.put("i", "k", 1)
    own["b"].kill()
    own["c"].kill()
    assert client.lookup("i", "k", read="one") == 1
    with pytest.raises((Unavailable, TimedOut), match=r"(b|c): "):
        client.put("i", "k", 2, timeout=1)
    with pytest.raises((Unavailable, TimedOut), match=r"(b|c): "):
        client.lookup("i", "k", timeout=1)
    own["b"].start()
    own["b"].wait_ready()
    client.put("i", "k", 3)
    assert client.lookup("i", "k") == 3


def test_frozen_peer_delays_only_the_first_call(own: Peers) -> None:
    client = own.client()
    client.batch_put("i", {str(number): number for number in range(200)}).raise_for_failures()
    own["a"].freeze()
    try:
        before = own["b"].lookups() + own["c"].lookups()
        for number in range(100):
            assert client.lookup("i", str(number)) == number
            client.put("i", str(number), -number)
        # Each call asks two replicas. If two of three calls asked the frozen peer first and then
        # another, there would be 67 more.
        assert own["b"].lookups() + own["c"].lookups() - before < 240
        assert client.batch_lookup("i", [str(n) for n in range(100)]) == {
            str(n): -n for n in range(100)
        }
    finally:
        own["a"].thaw()
    assert client.lookup("i", "5", read="all", timeout=60) == -5


def test_sigterm_under_load_fails_no_request_and_ends_in_ten_seconds(own: Peers) -> None:
    with Load(own.client()) as load:
        more(load, 200)
        began = time.monotonic()
        assert own["b"].stop() == 0
        assert time.monotonic() - began < 10
        more(load, 200)
        own["b"].start()
        own["b"].wait_ready()
        more(load, 100)
    load.check(own.client())
    assert "Traceback" not in own["b"].log.read_text()


def test_rolling_restart_under_load_fails_no_request(own: Peers) -> None:
    with Load(own.client()) as load:
        for name in "abc":
            more(load, 100)
            assert own[name].stop() == 0
            own[name].start()
            own[name].wait_ready()
        more(load, 100)
    load.check(own.client())


def test_consul_restart_without_data_fails_no_request(tmp_path: Path) -> None:
    """Also if a peer is killed meanwhile, which no peer can notice while Consul is down."""
    consul = ConsulAgent(tmp_path)
    consul.start()
    try:
        consul.wait_ready()
        with Peers.consul(tmp_path, consul.url, "away") as peers:
            peers.form("a", "b", "c")
            before = placement(peers)
            with Load(peers.client()) as load:
                more(load, 100)
                consul.stop()
                stays_true(lambda: not load.errors, 6, "no request fails while Consul is away")
                said = "the membership is out of reach"
                for page in ("/dashboard/cluster", "/readyz", "/status"):
                    wait_until(lambda: said in str(peers["a"].page(page)), 30, f"{page} says so")  # noqa: B023
                peers["c"].kill()
                more(load, 200)
                known = {
                    member["id"]: member["alive"] for member in peers.client().status()["members"]
                }
                assert known == {"a": True, "b": True, "c": True}
                consul.start()
                consul.wait_ready()
                peers["c"].start()
                peers["c"].wait_ready()
                wait_until(
                    lambda: (
                        len(peers.client().status()["members"]) == 3
                        and all(peers[name].is_ready() for name in "abc")
                    ),
                    30,
                    "the cluster is in Consul again",
                )
                more(load, 100)
            load.check(peers.client())
            assert placement(peers) == before
    finally:
        consul.stop()
