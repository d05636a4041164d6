"""Peers that move to other addresses while calls wait, and a peer that joins a single peer."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dstash import AsyncClient
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import wait_until


def test_waiting_calls_follow_moved_peers(tmp_path: Path) -> None:
    async def test(peers: Peers) -> None:
        seeds = [peer.address for peer in peers.all.values()]
        async with AsyncClient(*seeds, timeout=60) as client:
            await client.put("index", "key", 1)
            for name in "abc":
                peers[name].kill()
            calls = [asyncio.create_task(client.lookup("index", "key")) for _ in range(3)]
            # One peer keeps its address and reports the new addresses of the others.
            for name in "bc":
                peers[name].move()
            for name in "abc":
                peers[name].start()
            assert await asyncio.gather(*calls) == [1, 1, 1]
            await client.put("index", "key", 2, write="all")

    with Peers.local(tmp_path) as peers:
        peers.form("a", "b", "c")
        asyncio.run(test(peers))


def test_peer_with_lower_id_joins_a_single_peer(tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("b")
        client = peers.client()
        client.put("index", "key", 1)
        peers.start("a")
        wait_until(lambda: peers.members(client) == {"a", "b"}, PATIENCE, "a is a member")
        peers.settle(client)
        assert client.lookup("index", "key", read="all") == 1
