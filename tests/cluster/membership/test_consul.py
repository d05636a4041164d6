"""Tests of the membership on Consul: agents that fail, elections, tokens, TLS."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import structlog

from dstash.cluster.membership.consul import session
from dstash.cluster.membership.consul.http import READ_TIMEOUT_S, checked_url, read_timeout
from dstash.cluster.membership.consul.membership import ConsulMembership
from dstash.cluster.membership.consul.session import _pause
from dstash.cluster.membership.interface import NOTHING, StoredTopology, may_pass
from dstash.cluster.topology.topology import Topology
from dstash.errors import ConfigError, MembershipError, MembershipUnreachable, PeerIdInUse
from tests.harness.consul import ConsulAgent, ConsulCluster
from tests.harness.membership import Actor, Place, announcement
from tests.harness.ports import free_port
from tests.harness.waiting import PATIENCE, stays_true, wait_until

SECRET = "6a7e0f55-secret"  # noqa: S105
TOPOLOGY = Topology(cluster="c", cluster_id="id", epoch=1)


def new_cluster() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ConsulAgent]:
    """A separate agent, which tests disturb."""
    agent = ConsulAgent(tmp_path)
    agent.start()
    try:
        agent.wait_ready()
        yield agent
    finally:
        agent.stop()


@pytest.fixture
def membership(agent: ConsulAgent) -> Iterator[ConsulMembership]:
    membership = ConsulMembership(agent.url, new_cluster())
    yield membership
    membership.close()


def every_call(membership: ConsulMembership) -> list[Callable[[], object]]:
    """Every call that sends requests to Consul, except those that need an announced peer."""
    return [
        membership.read,
        lambda: membership.compare_and_set(TOPOLOGY, NOTHING),
        lambda: membership.announce(announcement("p1")),
        membership.alive,
        lambda: membership.watch(20),
    ]


class TestUnreachableConsul:
    def test_calls_fail_soon_when_consul_is_unreachable(self) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        membership = ConsulMembership(url, "c")
        for call in every_call(membership):
            began = time.monotonic()
            with pytest.raises(MembershipUnreachable) as caught:
                call()
            assert str(caught.value) == f"Consul at {url}: Connection refused"
            assert time.monotonic() - began < READ_TIMEOUT_S
        assert not membership.is_announced()
        assert not membership.acquire("conductor")
        membership.resign()
        membership.close()

    def test_watch_pauses_between_errors(self) -> None:
        membership = ConsulMembership(f"http://127.0.0.1:{free_port()}", "c")
        began, errors = time.monotonic(), 0
        while time.monotonic() - began < 1.5:
            with pytest.raises(MembershipUnreachable):
                membership.watch(20)
            errors += 1
        membership.close()
        assert errors < 8

    def test_calls_fail_on_replies_of_another_server(self, tmp_path: Path) -> None:
        with spying_server() as server:
            membership = ConsulMembership(server.url, "c", token=SECRET)
            for call in every_call(membership):
                with pytest.raises(MembershipUnreachable, match="not from Consul") as caught:
                    call()
                assert SECRET not in str(caught.value)
                assert may_pass(caught.value), "the server in place of Consul may be replaced"
            membership.close()


class TestFrozenAgent:
    @pytest.fixture
    def membership(self, agent: ConsulAgent) -> Iterator[ConsulMembership]:
        """With a shorter timeout than usual."""
        membership = ConsulMembership(agent.url, new_cluster(), patience=1.0)
        yield membership
        membership.close()

    def test_frozen_agent_blocks_no_caller(
        self, agent: ConsulAgent, membership: ConsulMembership
    ) -> None:
        membership.announce(announcement("p1"))
        assert membership.watch(PATIENCE)
        agent.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(MembershipUnreachable, match="no reply in time"):
                membership.read()
            assert time.monotonic() - began < 3 * READ_TIMEOUT_S
            wait_until(lambda: not membership.is_announced(), PATIENCE, "the lock is not certain")
            began = time.monotonic()
            assert not membership.watch(0.3)
            assert time.monotonic() - began < READ_TIMEOUT_S
        finally:
            agent.thaw()
        # The old session may end late, and release the new lock.
        wait_until(
            lambda: membership.is_announced() and list(membership.alive()) == ["p1"],
            PATIENCE,
            "announced again",
        )

    def test_frozen_agent_delays_close_only_briefly(self, agent: ConsulAgent) -> None:
        membership = ConsulMembership(agent.url, new_cluster())
        membership.announce(announcement("p1"))
        assert membership.watch(PATIENCE)
        agent.freeze()
        try:
            began = time.monotonic()
            membership.close()
            assert time.monotonic() - began < READ_TIMEOUT_S, "it waits for no answer"
        finally:
            agent.thaw()


class TestRestartedAgent:
    def test_announcement_is_restored(
        self, agent: ConsulAgent, membership: ConsulMembership
    ) -> None:
        with structlog.testing.capture_logs() as lines:
            membership.announce(announcement("p1", 5077))
            assert membership.compare_and_set(TOPOLOGY, NOTHING)
            assert membership.acquire("conductor")
            agent.restart()
            wait_until(lambda: lines[-1]["event"] == "announced again", PATIENCE, "announced again")
        assert [line["event"] for line in lines] == ["announced", "lock lost", "announced again"]
        assert membership.is_announced()
        assert membership.read() == StoredTopology(None, NOTHING), "that is for others to put back"
        assert membership.alive() == {"p1": announcement("p1", 5077)}
        assert membership.acquire("conductor")
        assert [service["ServicePort"] for service in agent.get("catalog/service/dstash")] == [5077]

    def test_changed_announcement_is_restored(
        self, agent: ConsulAgent, membership: ConsulMembership
    ) -> None:
        membership.announce(announcement("p1", 5077))
        agent.stop()
        with pytest.raises(MembershipUnreachable):
            membership.announce(announcement("p1", 5078, "member"))
        agent.restart()
        wait_until(lambda: answer_of(membership.alive), PATIENCE, "announced again")
        assert membership.alive() == {"p1": announcement("p1", 5078, "member")}
        assert [service["ServicePort"] for service in agent.get("catalog/service/dstash")] == [5078]

    def test_topology_watch_restarts_from_first_index(
        self, agent: ConsulAgent, membership: ConsulMembership
    ) -> None:
        other = ConsulMembership(agent.url, membership.cluster)
        for _ in range(30):  # an index far above the first index of the restarted agent
            other.compare_and_set(TOPOLOGY, other.read().token)
            agent.put("kv/elsewhere", str(time.monotonic()))
        assert membership.watch(PATIENCE)
        agent.restart()
        wait_until(lambda: watch_quietly(membership), PATIENCE, "the topology is gone")
        wait_until(lambda: not watch_quietly(membership), PATIENCE, "no more news")
        assert other.compare_and_set(TOPOLOGY, NOTHING)
        assert membership.watch(PATIENCE)
        other.close()


def watch_quietly(membership: ConsulMembership) -> bool:
    try:
        return membership.watch(0.5)
    except MembershipUnreachable:
        return False


class TestLostLock:
    """Locks that operators or accidents release."""

    @pytest.fixture
    def peer(self, consul_agent: ConsulAgent) -> Iterator[ConsulMembership]:
        peer = ConsulMembership(consul_agent.url, new_cluster())
        peer.announce(announcement("p1"))
        yield peer
        peer.close()

    def key(self, consul_agent: ConsulAgent, peer: ConsulMembership) -> dict[str, Any]:
        found = consul_agent.get(f"kv/dstash/{peer.cluster}/peers/p1")
        return dict(found[0]) if found else {}

    def service(self, consul_agent: ConsulAgent, peer: ConsulMembership) -> str:
        services = consul_agent.get("agent/services").values()
        found = [
            service["ID"] for service in services if f"cluster={peer.cluster}" in service["Tags"]
        ]
        assert len(found) == 1
        return str(found[0])

    @pytest.mark.parametrize("harm", ["session", "key", "service"])
    def test_lost_lock_is_acquired_again(
        self, consul_agent: ConsulAgent, peer: ConsulMembership, harm: str
    ) -> None:
        before = self.key(consul_agent, peer)["Session"]
        if harm == "session":
            consul_agent.put(f"session/destroy/{before}")
        elif harm == "service":
            consul_agent.put(f"agent/service/deregister/{self.service(consul_agent, peer)}")
        else:
            requests.delete(f"{consul_agent.url}/v1/kv/dstash/{peer.cluster}?recurse", timeout=5)
        wait_until(
            lambda: self.key(consul_agent, peer).get("Session") not in (None, before),
            PATIENCE,
            "the lock is held by another session",
        )
        wait_until(peer.is_announced, PATIENCE, "announced")
        assert list(peer.alive()) == ["p1"]
        self.service(consul_agent, peer)

    def test_lock_of_another_peer_is_kept_and_retaken_later(
        self, consul_agent: ConsulAgent, peer: ConsulMembership
    ) -> None:
        ours = self.key(consul_agent, peer)["Session"]
        thief = consul_agent.put("session/create", '{"LockDelay": "0s"}')["ID"]
        place = f"kv/dstash/{peer.cluster}/peers/p1"
        consul_agent.put(f"{place}?release={ours}")
        assert consul_agent.put(f"{place}?acquire={thief}")
        wait_until(lambda: not peer.is_announced(), PATIENCE, "it is lost")
        stays_true(lambda: not peer.is_announced(), 1.0, "it is lost")
        consul_agent.put(f"session/destroy/{thief}")
        wait_until(peer.is_announced, PATIENCE, "announced again")


class TestService:
    def test_service_is_registered_and_deregistered(self, consul_agent: ConsulAgent) -> None:
        cluster = new_cluster()
        peer = ConsulMembership(consul_agent.url, cluster)
        peer.announce(announcement("p1", 5011))
        mine = f"health/service/dstash?tag=cluster={cluster}"
        stays_true(
            lambda: (
                [c["Status"] for s in consul_agent.get(mine) for c in s["Checks"]]
                == ["passing", "passing"]
            ),
            2.5,
            "the node and the check pass",
        )
        service = consul_agent.get(mine)[0]["Service"]
        assert service["ID"].startswith(f"dstash-{cluster}-p1-")
        assert (service["Address"], service["Port"]) == ("127.0.0.1", 5011)
        assert "peer=p1" in service["Tags"]
        peer.close()
        wait_until(lambda: consul_agent.get(mine) == [], PATIENCE, "it is deregistered")
        assert consul_agent.get(f"kv/dstash/{cluster}/?recurse") is None
        sessions = [session["Name"] for session in consul_agent.get("session/list")]
        assert not [name for name in sessions if cluster in name]

    def test_service_of_a_crashed_run_is_removed_by_the_next(
        self, consul_agent: ConsulAgent
    ) -> None:
        cluster = new_cluster()
        actor = Actor(Place("consul", consul_agent.url, cluster))
        assert actor.announce("p1") == ""
        actor.close()
        peer = ConsulMembership(consul_agent.url, cluster)
        peer.announce(announcement("p1"))
        services = consul_agent.get("agent/services").values()
        assert (
            len([service for service in services if f"cluster={cluster}" in service["Tags"]]) == 1
        )
        peer.close()

    def test_rejected_announcer_registers_no_service(
        self, consul_agent: ConsulAgent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session, "TAKE_TIMEOUT_S", 0.5)
        cluster = new_cluster()
        first = ConsulMembership(consul_agent.url, cluster)
        first.announce(announcement("p1"))
        second = ConsulMembership(consul_agent.url, cluster)
        with ThreadPoolExecutor(1) as pool:
            refused = pool.submit(second.announce, announcement("p1"))
            while not refused.done():
                services = consul_agent.get("agent/services").values()
                assert (
                    len(
                        [service for service in services if f"cluster={cluster}" in service["Tags"]]
                    )
                    == 1
                )
            with pytest.raises(PeerIdInUse):
                refused.result()
        second.close()
        first.close()


class TestElection:
    def test_membership_survives_leader_election(self, tmp_path: Path) -> None:
        cluster = ConsulCluster(tmp_path)
        cluster.start()
        members: list[ConsulMembership] = []
        try:
            leader, name = cluster.leader(), new_cluster()
            members = [ConsulMembership(agent.url, name) for agent in cluster.followers()]
            for number, membership in enumerate(members):
                membership.announce(announcement(f"p{number}"))
            assert members[0].compare_and_set(TOPOLOGY, NOTHING)
            leader.stop()
            survives_election(members)
        finally:
            for membership in members:
                membership.close()
            cluster.stop()


def survives_election(members: list[ConsulMembership]) -> None:
    stored = wait_until(lambda: answer_of(members[0].read), PATIENCE, "a new leader answers")
    assert isinstance(stored, StoredTopology)
    assert stored.topology == TOPOLOGY
    assert members[1].compare_and_set(TOPOLOGY.next(), stored.token)
    for membership in members:
        wait_until(membership.is_announced, PATIENCE, "announced")
    for membership in members:
        assert sorted(membership.alive()) == ["p0", "p1"]


def answer_of(call: Callable[[], object]) -> object:
    try:
        return call()
    except MembershipUnreachable:
        return None


class TestToken:
    def test_token_is_sent_as_header_and_not_in_url(self) -> None:
        with spying_server() as server:
            membership = ConsulMembership(server.url, "c", token=SECRET)
            for call in every_call(membership):
                with pytest.raises(MembershipUnreachable):
                    call()
            membership.close()
        assert {seen.method for seen in server.seen} == {"GET", "PUT"}
        assert {seen.token for seen in server.seen} == {SECRET}
        assert not [seen for seen in server.seen if SECRET in seen.path or "token" in seen.path]

    def test_token_is_not_sent_to_a_redirect_target(self) -> None:
        with spying_server() as elsewhere, spying_server(elsewhere.url) as server:
            membership = ConsulMembership(server.url, "c", token=SECRET)
            with pytest.raises(MembershipUnreachable):
                membership.read()
            membership.close()
        assert len(server.seen) == 1
        assert elsewhere.seen == []

    def test_token_is_not_read_from_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONSUL_HTTP_TOKEN", SECRET)
        monkeypatch.setenv("CONSUL_HTTP_ADDR", "http://127.0.0.1:1")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        with spying_server() as server:
            membership = ConsulMembership(server.url, "c")
            with pytest.raises(MembershipUnreachable):
                membership.read()
            membership.close()
        assert [seen.token for seen in server.seen] == [None]

    def test_token_gives_access(self, tmp_path: Path) -> None:
        rules = {"enabled": True, "default_policy": "deny", "tokens": {"master": SECRET}}
        options = ["-dev", "-hcl", json.dumps({"primary_datacenter": "dc1", "acl": rules})]
        agent = ConsulAgent(tmp_path, options, token=SECRET)
        agent.start()
        try:
            agent.wait_ready()
            check_token(agent)
        finally:
            agent.stop()


def check_token(agent: ConsulAgent) -> None:
    known = ConsulMembership(agent.url, "c", token=SECRET)
    stranger = ConsulMembership(agent.url, "c")
    wait_until(lambda: answer_of(known.read), PATIENCE, "the token is known")
    known.announce(announcement("p1"))
    assert list(known.alive()) == ["p1"]
    stays_true(known.is_announced, 1.5, "announced")
    with pytest.raises(MembershipUnreachable, match="Permission denied"):
        stranger.announce(announcement("p2"))
    known.close()
    stranger.close()


class TestTls:
    def test_only_configured_ca_is_trusted(self, tmp_path: Path) -> None:
        assert shutil.which("openssl"), "the test needs openssl"
        cert, key = make_certificate(tmp_path)
        with spying_server(tls=(cert, key)) as server:
            assert server.url.startswith("https:")
            for ca_file, reason in ((cert, "not from Consul"), (None, "CERTIFICATE_VERIFY")):
                membership = ConsulMembership(
                    server.url, "c", ca_file=ca_file, cert_file=cert, key_file=key
                )
                with pytest.raises(MembershipUnreachable, match=reason):
                    membership.read()
                membership.close()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    curve = "ec -pkeyopt ec_paramgen_curve:P-256"
    names = "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    command = f"openssl req -x509 -newkey {curve} -nodes -days 2 {names}".split()
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


class TestSettings:
    @pytest.mark.parametrize(
        ("url", "full"),
        [
            ("http://127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("https://consul.example/proxy/", "https://consul.example/proxy"),
            ("127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("http://[::1]:8500", "http://[::1]:8500"),
            ("[::1]:8500", "http://[::1]:8500"),
            ("http://[10.0.0.1]:8500", "http://10.0.0.1:8500"),
        ],
    )
    def test_valid_consul_url_is_accepted(self, url: str, full: str) -> None:
        assert checked_url(url) == full

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "ftp://x",
            "http://",
            "http://x:99999",
            "http://u:pw@x",
            "http://x?token=1",
            "::1:8500",
        ],
    )
    def test_invalid_consul_url_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigError) as caught:
            ConsulMembership(url, "c")
        assert "pw" not in str(caught.value)

    def test_missing_ca_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no file .*ca\.pem"):
            ConsulMembership("http://x", "c", ca_file=tmp_path / "ca.pem")
        with pytest.raises(ConfigError, match="needs a certificate"):
            ConsulMembership("http://x", "c", key_file=tmp_path / "key.pem")

    def test_read_timeout_is_above_the_wait(self) -> None:
        assert read_timeout(None) == read_timeout([("recurse", "1")]) == READ_TIMEOUT_S
        assert read_timeout([("index", "7"), ("wait", "32.000s")]) == 34 + READ_TIMEOUT_S

    def test_backoff_grows_to_its_limit_with_jitter(self) -> None:
        assert _pause(0) == 0.5
        assert all(0 < _pause(failures) <= 2 for failures in range(1, 10_000, 97))
        assert len({_pause(3) for _ in range(10)}) > 1

    def test_garbage_stored_as_topology_is_reported(self, consul_agent: ConsulAgent) -> None:
        cluster = new_cluster()
        consul_agent.put(f"kv/dstash/{cluster}/topology", "{}")
        membership = ConsulMembership(consul_agent.url, cluster)
        with pytest.raises(MembershipError, match=rf"dstash/{cluster}/topology: not a topology"):
            membership.read()
        membership.close()


class Seen(NamedTuple):
    method: str
    path: str
    token: str | None


class spying_server:  # noqa: N801 - reads as a context manager
    """An HTTP server that records requests, and answers with a page or a redirect."""

    def __init__(self, redirect: str = "", tls: tuple[Path, Path] | None = None) -> None:
        self.seen: list[Seen] = []
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen.append(Seen(self.command, self.path, self.headers.get("X-Consul-Token")))
                self.send_response(302 if redirect else 200)
                self.send_header("Location", redirect + self.path)
                self.end_headers()
                self.wfile.write(b"<html>")

            do_GET = do_PUT = do_DELETE = answer  # noqa: N815 - the base class's names

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"
        if tls is not None:
            self._wrap(*tls)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def _wrap(self, cert: Path, key: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        context.load_verify_locations(cert)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> spying_server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
