"""conf/consul: the policies allow what peers and clients need, and no more."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from dstash.cluster.membership.consul.membership import ConsulMembership
from dstash.errors import DStashError
from tests.harness.consul import ConsulAgent
from tests.harness.membership import announcement
from tests.harness.waiting import wait_until

POLICIES: Final = Path(__file__).resolve().parent.parent / "conf" / "consul"
MASTER: Final = "5e1f0000-0000-4000-8000-000000000001"
PATIENCE: Final = 20.0

Membership = Callable[[str], ConsulMembership]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """A Consul whose default policy is to deny."""
    rules = {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}}
    options = ["-dev", "-hcl", json.dumps({"primary_datacenter": "dc1", "acl": rules})]
    agent = ConsulAgent(tmp_path_factory.mktemp("acl"), options, token=MASTER)
    agent.start()
    try:
        agent.wait_ready()
        yield agent
    finally:
        agent.stop()


def ask(agent: ConsulAgent, path: str, body: object = None) -> Any:
    """Send a request to Consul with the master token."""
    request = urllib.request.Request(  # noqa: S310  # our own agent
        f"{agent.url}/v1/{path}",
        None if body is None else json.dumps(body).encode(),
        {"X-Consul-Token": MASTER},
        method="GET" if body is None else "PUT",
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
        return json.loads(answer.read())


@pytest.fixture
def member(agent: ConsulAgent) -> Iterator[Membership]:
    """The membership with a token that has one of the policies."""
    opened = []

    def open_as(role: str) -> ConsulMembership:
        name = f"dstash-{role}"
        rules = (POLICIES / f"{role}-policy.hcl").read_text()
        if all(policy["Name"] != name for policy in ask(agent, "acl/policies")):
            ask(agent, "acl/policy", {"Name": name, "Rules": rules})
        token = ask(agent, "acl/token", {"Policies": [{"Name": name}]})["SecretID"]
        opened.append(ConsulMembership(agent.url, "c", token=token))
        return opened[-1]

    wait_until(lambda: _answers(agent), PATIENCE, "Consul knows its master")
    yield open_as
    for membership in opened:
        membership.close()


def _answers(agent: ConsulAgent) -> bool:
    try:
        return bool(ask(agent, "acl/policies"))
    except OSError:
        return False


def test_peer_policy_allows_what_a_peer_does(agent: ConsulAgent, member: Membership) -> None:
    peer = member("peer")
    peer.announce(announcement("p1"))
    assert list(peer.alive()) == ["p1"]
    assert peer.read().topology is None
    (found,) = ask(agent, "health/service/dstash?passing")
    assert found["Service"]["Port"] > 0
    assert {check["Status"] for check in found["Checks"]} == {"passing"}
    client = member("client")
    assert list(client.alive()) == ["p1"]


def test_client_policy_allows_only_reads(member: Membership) -> None:
    client = member("client")
    assert client.read().topology is None
    with pytest.raises(DStashError, match="Permission denied"):
        client.announce(announcement("p2"))
