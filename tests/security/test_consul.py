"""A secured cluster on Consul with TLS and ACLs, as docs/security.md describes."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dstash import Client
from dstash.cluster.membership.consul.membership import ConsulMembership
from dstash.errors import MembershipUnreachable
from tests.harness.consul import ConsulAgent, consul_binary
from tests.harness.waiting import wait_until
from tests.security.closed import PATIENCE, Closed, text_of
from tests.security.manual import Site, chapter

MASTER = "5a1e7c9f-0b2d-4f6a-8c3e-9d7b6a5f4e3d"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ConsulAgent]:
    """A Consul that accepts only TLS and only requests with a token."""
    for words in ("ca create", "cert create -server"):
        command = [consul_binary(), "tls", *words.split()]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    settings = {
        "primary_datacenter": "dc1",
        "acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}},
        "cert_file": str(tmp_path / "dc1-server-consul-0.pem"),
        "key_file": str(tmp_path / "dc1-server-consul-0-key.pem"),
    }
    ca_file = (tmp_path / "consul-agent-ca.pem").rename(tmp_path / "consul-ca.pem")
    options = ["-dev", "-hcl", json.dumps(settings)]
    agent = ConsulAgent(tmp_path, options, token=MASTER, ca_file=ca_file)
    agent.start()
    try:
        agent.wait_ready()
        yield agent
    finally:
        agent.stop()


def new_token(agent: ConsulAgent, rules: str) -> str:
    agent.put("acl/policy", json.dumps({"Name": "dstash", "Rules": rules}))
    made = agent.put("acl/token", json.dumps({"Policies": [{"Name": "dstash"}]}))
    return str(made["SecretID"])


@pytest.mark.timeout(300)
def test_cluster_works_on_consul_with_tls_and_acls(agent: ConsulAgent, tmp_path: Path) -> None:
    rules, settings = chapter("Consul")
    token = new_token(agent, rules.text)
    token_file = tmp_path / "consul.token"
    token_file.write_text(f"{token}\n")
    token_file.chmod(0o600)
    text = Site(tmp_path).local(settings.text).replace("https://127.0.0.1:8501", agent.url)
    config = tmp_path / "consul.toml"
    config.write_text(text)
    where = {name: value for name, value in tomllib.loads(text).items() if name != "membership"}
    with Closed(tmp_path, "--config", str(config), local=False) as closed:
        closed.grant("app", "write")
        closed.form("p1", "p2")
        with found_by_consul(closed, where) as client:
            client.put("i", "k", "v")
            assert client.lookup("i", "k") == "v"
        # The membership works completely: a stopped peer is noticed and may return.
        closed.peers["p2"].kill()
        with closed.client("app") as client:
            wait_until(lambda: alive(client) == ["p1"], PATIENCE, "p2 is missed")
        # A member whose token was revoked starts from its disk, and says so.
        token_file.write_text("0" * 36)
        closed.peers["p2"].start()
        closed.peers["p2"].wait_ready()
        assert "ACL not found" in str(closed.peers["p2"].page("/readyz")["alerts"])
        closed.peers["p2"].kill()
        token_file.write_text(token)
        closed.peers["p2"].start()
        closed.peers["p2"].wait_ready()
        # Without the token no read or write succeeds, and no other server is accepted as Consul.
        assert_closed(agent, where)
        for peer in closed.peers.all.values():
            assert token not in text_of(peer)
    shown = Site(tmp_path).attempt(
        f"dstash --config {config} config show --kind peer; "
        f"DSTASH_CONSUL_TOKEN={token} dstash -o json config show --kind client"
    )
    assert (shown.returncode, token in shown.stdout + shown.stderr) == (0, False)
    assert "https://" in shown.stdout


def alive(client: Client) -> list[str]:
    return [member["id"] for member in client.status()["members"] if member["alive"]]


def found_by_consul(closed: Closed, where: dict[str, Any]) -> Client:
    """Return a client that finds the peers through Consul."""
    keys = {name: str(closed.folder / f"app.{end}") for name, end in FILES.items()}
    server_key = [closed.server_key(name) for name in ("p1", "p2")]
    return Client(curve=True, server_key=server_key, timeout=PATIENCE, **keys, **where)


FILES = {"cert_file": "key", "key_file": "key_secret"}


def assert_closed(agent: ConsulAgent, where: dict[str, Any]) -> None:
    ca_file = where["consul_ca_file"]
    for options, reason in [
        ({"ca_file": ca_file}, "Permission denied"),
        ({"ca_file": ca_file, "token": "0" * 36}, "ACL not found"),
        ({"token": MASTER}, "CERTIFICATE_VERIFY"),
    ]:
        membership = ConsulMembership(agent.url, "dstash", **options)
        try:
            with pytest.raises(MembershipUnreachable, match=reason):
                membership.read()
        finally:
            membership.close()
