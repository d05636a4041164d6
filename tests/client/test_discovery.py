"""Tests of discovery while the membership is empty or does not answer."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from dstash import Client
from dstash.client.calls import Calls
from dstash.cluster.membership.consul.http import READ_TIMEOUT_S
from dstash.config import ClientSettings
from dstash.errors import NoPeers
from tests.harness.joined import TYPES, Joined


def test_discovery_asks_known_peers_when_the_membership_is_empty(tmp_path: Path) -> None:
    joined = Joined("abc")
    calls = Calls(ClientSettings(local_dir=tmp_path), joined.session, TYPES)
    assert calls.discovery(joined.now + 1000).seeds == ["tcp://a:1", "tcp://b:1", "tcp://c:1"]
    joined.session.view = None
    with pytest.raises(NoPeers, match="lists no peer"):
        calls.discovery(joined.now + 1000)


def test_discovery_with_silent_consul_ends_at_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        url = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        began = time.monotonic()
        with Client(consul=url, timeout=0.3) as client, pytest.raises(NoPeers, match="in time"):
            client.lookup("i", "k")
        assert time.monotonic() - began < READ_TIMEOUT_S  # which is the usual timeout of Consul
