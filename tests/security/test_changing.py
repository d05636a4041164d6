"""docs/security.md, step by step: closing an open cluster, and a new key for a peer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dstash import Client
from dstash.errors import DStashError, NoPeers
from tests.harness.peers import Peer
from tests.harness.ports import free_port
from tests.harness.waiting import wait_until
from tests.security.closed import PATIENCE, Closed

NAMES = ("p1", "p2", "p3")


@contextmanager
def always_served(client: Client) -> Iterator[list[int]]:
    """Write and read all the time; nothing may fail."""
    stop = threading.Event()
    done, errors = [0], list[DStashError]()

    def work() -> None:
        while not stop.wait(0.01) and not errors:
            try:
                client.put("i", "count", done[0] + 1)
                assert client.lookup("i", "count") == done[0] + 1
                done[0] += 1
            except DStashError as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()
    assert not errors


def restart(closed: Closed, peer: Peer) -> None:
    """Restart a peer, and wait until the others know it as it is now."""
    assert peer.stop() == 0
    peer.start()
    peer.wait_ready()
    wait_until(
        lambda: len({one.page("/status").get("epoch") for one in closed.peers.all.values()}) == 1,
        PATIENCE,
        "all know the topology",
    )


@pytest.mark.timeout(300)
def test_an_open_cluster_is_closed_without_stopping(tmp_path: Path) -> None:
    with Closed(tmp_path) as closed:
        closed.peers.form(*NAMES)
        old = closed.peers.client(timeout=PATIENCE)
        old.put("i", "before", 1)
        with always_served(old) as calls:
            # 1. Keys for all, and the list of them.
            for name in NAMES:
                closed.grant(name, "peer")
            closed.grant("app", "write")
            # 2. Peer after peer takes CURVE at a new port, and goes on without at the old one.
            for name in NAMES:
                peer = closed.peers[name]
                both = tmp_path / f"{name}.toml"
                both.write_text(f"plain_port = {peer.port}\n")
                peer.port = free_port()
                peer.options += [*closed.options(name), "--config", str(both)]
                restart(closed, peer)
            members = old.topology(timeout=PATIENCE).members
            assert {one.key for one in members} == {closed.server_key(name) for name in NAMES}
            # 3. Clients get their keys.
            new = closed.client("app", "p2")
            assert new.lookup("i", "before") == 1
            wait_until(lambda: calls[0] > 3, PATIENCE, "the old client is served all the time")
        with always_served(new):
            # 4. Peer after peer gives up the old port.
            for name in NAMES:
                (tmp_path / f"{name}.toml").write_text("")
                restart(closed, closed.peers[name])
        assert {one.plain for one in new.topology().members} == {""}
        assert new.lookup("i", "before") == 1
        with pytest.raises((NoPeers, DStashError)):
            old.lookup("i", "before", timeout=2)
        with closed.peers.client(timeout=2) as stranger, pytest.raises(NoPeers):
            stranger.lookup("i", "before")
        new.close()


@pytest.mark.timeout(300)
def test_a_peer_gets_a_new_key_without_downtime(tmp_path: Path) -> None:
    with Closed(tmp_path) as closed:
        closed.grant("app", "write")
        closed.form(*NAMES)
        app, peer = closed.client("app", "p2"), closed.peers["p1"]
        with always_served(app):
            # 1. The new key stands in the list beside the old one. 2. The peer starts with it.
            closed.grant("p1-new", "peer")
            peer.options = [word.replace("/p1.key", "/p1-new.key") for word in peer.options]
            restart(closed, peer)
            members = {one.id: one.key for one in app.topology().members}
            assert members["p1"] == closed.server_key("p1-new")
            # 3. The old key goes, and is of no use to anybody.
            closed.revoke("p1")
            closed.await_shut_out("p1", "p2")
            app.batch_put("i", {f"k{n}": n for n in range(300)}).raise_for_failures()
        app.close()
