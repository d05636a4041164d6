"""Look-ups at level one in the stores of peers of this machine, without a request."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dstash import AsyncClient, Client
from dstash.errors import ClosedError, UsageError
from dstash.store.directory import DATA_FILE
from dstash.store.sharing import reading  # now, because another user may not read the modules
from dstash.store.sharing.heartbeat import HEARTBEAT_FILE
from tests.harness.peers import PATIENCE, Peer, Peers
from tests.harness.waiting import wait_until

SHARES = {"DSTASH_SHARE_READS": "true"}
KEYS = [f"key-{number}" for number in range(200)]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Three peers that share their stores; no test stops them."""
    with _sharing(tmp_path_factory.mktemp("trio")) as peers:
        peers.form("a", "b", "c")
        yield peers


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Peers]:
    """Three peers for one test."""
    with _sharing(tmp_path) as peers:
        peers.form("a", "b", "c")
        yield peers


def _sharing(folder: Path, *options: str) -> Peers:
    peers = Peers.local(folder, *options)
    peers.environ |= SHARES
    return peers


def _requests(peers: Peers) -> int:
    """Return how many look-ups the peers have received; a forked child may ask, too."""
    pages = [peer.page("/status").get("counts", {}) for peer in peers.all.values()]
    return sum(int(counts.get("Lookup", 0)) for counts in pages)


def _local(peers: Peers, read: Callable[[], Any]) -> Any:
    """Return the result of a read, once it needs no request."""
    found = []

    def is_local() -> bool:
        before = _requests(peers)
        found.append(read())
        return _requests(peers) == before

    wait_until(is_local, PATIENCE, "reads are local")
    return found[-1]


def _read_all(client: Client, index: str) -> dict[str, Any]:
    return {key: client.lookup(index, key) for key in KEYS}


def test_lookup_is_answered_without_a_request(trio: Peers) -> None:
    client = trio.client(read="one", write="all")
    client.batch_put("plain", {key: [key, 1.5] for key in KEYS[:100]})
    found = _local(trio, lambda: _read_all(client, "plain"))
    assert found == {key: [key, 1.5] if key in KEYS[:100] else None for key in KEYS}
    assert client.lookup("plain", "missing", "default") == "default"


def test_local_reads_across_compactions_see_every_acked_write(own: Peers) -> None:
    client = own.client(read="one", write="all")
    client.batch_put("moved", dict.fromkeys(KEYS, 0))
    _local(own, lambda: _read_all(client, "moved"))
    files = {name: (peer.data / DATA_FILE).stat().st_ino for name, peer in own.all.items()}
    written = count(1)
    for name in own.all:
        assert client.admin.compact(name)["compaction"]["running"]
    while any(peer.page("/status")["compaction"]["ended"] == 0 for peer in own.all.values()):
        for key in KEYS[:50]:
            value = next(written)
            client.put("moved", key, value)
            assert client.lookup("moved", key) == value
    assert _local(own, lambda: client.lookup("moved", KEYS[-1])) == 0
    assert all((own[name].data / DATA_FILE).stat().st_ino != file for name, file in files.items())


def test_lookup_at_other_levels_and_of_registers_asks_peers(trio: Peers) -> None:
    client = trio.client(read="one", write="all")
    client.put("levels", "key", 1)
    client.put("@levels", "key", 2)
    _local(trio, lambda: client.lookup("levels", "key"))
    before = _requests(trio)
    assert client.lookup("levels", "key", read="quorum") == 1
    assert _requests(trio) > before
    before = _requests(trio)
    # A majority has it, at any level of the write; the replica that is asked may not.
    assert client.lookup("@levels", "key", read="one") in (2, None)
    assert _requests(trio) > before
    off = trio.client(read="one", local_reads="off")
    before = _requests(trio)
    assert off.lookup("levels", "key") == 1
    assert _requests(trio) > before


def test_deleted_and_expired_records_are_missing(trio: Peers) -> None:
    client = trio.client(read="one", write="all")
    client.batch_put("ends", dict.fromkeys(KEYS, 1))
    assert _local(trio, lambda: _read_all(client, "ends")) == dict.fromkeys(KEYS, 1)
    client.batch_delete("ends", KEYS[:50])
    client.batch_put("ends", dict.fromkeys(KEYS[50:100], 2), ttl=0.05)
    client.batch_put("ends", dict.fromkeys(KEYS[100:150], 3), ttl=600)
    time.sleep(0.06)  # longer than these keys live
    expected = [None] * 100 + [3] * 50 + [1] * 50
    assert _local(trio, lambda: list(_read_all(client, "ends").values())) == expected


def test_wrong_arguments_have_the_errors_of_a_request(trio: Peers) -> None:
    client = trio.client(read="one", write="all")
    client.put("wrong", "key", 1)
    _local(trio, lambda: client.lookup("wrong", "key"))
    for arguments in [("wrong", ""), ("wrong", "x" * 401), ("wrong", 1.5), ("", "key"), (7, "key")]:
        with pytest.raises(ValueError, match=r"key|index"):
            client.lookup(*arguments)  # type: ignore[arg-type]
    for timeout in (0, -1, float("nan"), True, "1"):
        with pytest.raises(ValueError, match="timeout"):
            client.lookup("wrong", "key", timeout=timeout)  # type: ignore[arg-type]
    client.close()
    with pytest.raises(ClosedError):
        client.lookup("wrong", "key")


def test_killed_peer_is_not_read_for_long(own: Peers) -> None:
    client = own.client(read="one", write="quorum")
    client.batch_put("i", dict.fromkeys(KEYS, 0), write="all")
    _local(own, lambda: _read_all(client, "i"))
    own["a"].kill()
    client.batch_put("i", dict.fromkeys(KEYS, 1))
    began = time.monotonic()
    wait_until(
        lambda: set(_read_all(client, "i").values()) == {1}, PATIENCE, "other replicas are read"
    )
    assert time.monotonic() - began < PATIENCE / 2
    own["a"].start()
    own["a"].wait_ready()
    client.batch_put("i", dict.fromkeys(KEYS, 2), write="all")
    assert set(_local(own, lambda: _read_all(client, "i")).values()) == {2}


def test_frozen_peer_is_not_read_for_long(own: Peers) -> None:
    client = own.client(read="one", write="quorum")
    client.batch_put("i", dict.fromkeys(KEYS, 0), write="all")
    _local(own, lambda: _read_all(client, "i"))
    own["a"].freeze()
    client.batch_put("i", dict.fromkeys(KEYS, 1))
    wait_until(
        lambda: set(_read_all(client, "i").values()) == {1}, PATIENCE, "other replicas are read"
    )
    own["a"].thaw()


def test_partitions_that_move_are_read_where_they_are(tmp_path: Path) -> None:
    """With one replica, a read from the peer that a key has left would miss it, or its changes."""
    with _sharing(tmp_path, "--replicas", "1") as peers:
        peers.form("a")
        client, faults, ends = peers.client(read="one", write="one"), list[Any](), threading.Event()
        client.batch_put("i", dict.fromkeys(KEYS, 0))
        _local(peers, lambda: _read_all(client, "i"))
        written = dict.fromkeys(KEYS, 0)

        def read() -> None:
            reader = peers.client(read="one")
            while not ends.is_set():
                for key in KEYS:
                    least = written[key]
                    found = reader.lookup("i", key)
                    if found is None or found < least:
                        faults.append((key, least, found))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        writer = peers.client(write="one")
        peers.start("b")
        for number in count(1):
            for key in KEYS[::4]:
                writer.put("i", key, number)
                written[key] = number
            if peers.members(writer) == {"a", "b"} and writer.topology().change is None:
                break
        peers["b"].wait_ready()
        for key in KEYS:
            writer.put("i", key, number + 1)
            written[key] = number + 1
        assert set(_local(peers, lambda: _read_all(client, "i")).values()) == {number + 1}
        ends.set()
        for thread in threads:
            thread.join()
        assert faults == []


def test_replaced_store_is_not_taken_for_the_old_one(own: Peers) -> None:
    client = own.client(read="one", write="all")
    client.batch_put("i", dict.fromkeys(KEYS, 1))
    _local(own, lambda: _read_all(client, "i"))
    own["a"].stop()
    for name in (DATA_FILE, "lock.mdb", HEARTBEAT_FILE):
        (own["a"].data / name).unlink()
    assert set(_read_all(client, "i").values()) == {1}
    own["a"].start()
    while not own["a"].page("/readyz").get("ready"):
        assert set(_read_all(client, "i").values()) == {1}, "an empty store was read"

    def is_written() -> bool:  # not as long as the client takes a for a peer without its data
        return client.batch_put("i", dict.fromkeys(KEYS, 2), on_error="return").ok

    wait_until(is_written, PATIENCE, "all replicas count")
    assert set(_local(own, lambda: _read_all(client, "i")).values()) == {2}


def test_corrupt_record_is_answered_by_a_peer_that_repairs_it(own: Peers) -> None:
    client = own.client(read="one", write="all")
    value = "a text that the data file has as it is"
    client.put("i", "key", value)
    assert _local(own, lambda: client.lookup("i", "key")) == value
    _corrupt(own["a"], value.encode())  # its store is read, if there are several
    assert client.lookup("i", "key") == value

    def repaired() -> int:
        return int(own["a"].page("/status")["maintenance"]["corrupt_repaired"])

    wait_until(lambda: repaired() == 1, PATIENCE, "the record is repaired")
    assert _local(own, lambda: client.lookup("i", "key")) == value


def _corrupt(peer: Peer, content: bytes) -> None:
    file = peer.data / DATA_FILE
    with file.open("r+b") as data:
        place = data.read().find(content)
        while place >= 0:
            data.seek(place)
            data.write(b"A")
            data.seek(0)
            place = data.read().find(content)


def test_threads_see_what_a_peer_has_acked(trio: Peers) -> None:
    client, ends, faults = trio.client(read="one", write="all"), threading.Event(), list[Any]()
    client.put("threads", "key", 0)
    _local(trio, lambda: client.lookup("threads", "key"))
    acked = [0]

    def read() -> None:
        while not ends.is_set():
            least = acked[0]
            if (found := client.lookup("threads", "key")) < least:
                faults.append((least, found))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 100):
        client.put("threads", "key", number)
        acked[0] = number
    ends.set()
    for thread in threads:
        thread.join()
    assert faults == []


def test_forked_child_reads_by_itself(trio: Peers) -> None:
    client = trio.client(read="one", write="all")
    client.put("forks", "key", 1)
    _local(trio, lambda: client.lookup("forks", "key"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if client.lookup("forks", "key") == 1:
                while _requests(trio) != (before := _requests(trio)):
                    pass
                wait_until(
                    lambda: client.lookup("forks", "key") == 1 and _requests(trio) == before,
                    PATIENCE,
                    "the child reads by itself",
                )
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    before = _requests(trio)
    assert client.lookup("forks", "key") == 1
    assert _requests(trio) == before


def test_async_client_reads_without_a_request_and_lets_others_run(trio: Peers) -> None:
    async def test() -> None:
        seeds = [peer.address for peer in trio.all.values()]
        async with AsyncClient(*seeds, read="one", write="all", timeout=20) as client:
            await client.batch_put("loops", {key: [key] for key in KEYS[:100]})
            expected = {key: [key] for key in KEYS[:100]}

            async def all_local() -> bool:
                before = await asyncio.to_thread(_requests, trio)
                found = {key: await client.lookup("loops", key) for key in KEYS}
                assert found == {key: expected.get(key) for key in KEYS}
                assert await client.batch_lookup("loops", KEYS) == expected
                return await asyncio.to_thread(_requests, trio) == before

            async with asyncio.timeout(PATIENCE):
                while not await all_local():
                    pass
            ran = asyncio.Event()
            asyncio.get_running_loop().call_soon(ran.set)
            for _ in range(1000):
                await client.lookup("loops", KEYS[0])
            assert ran.is_set(), "no other task ran during the look-ups"
        with pytest.raises(ClosedError):
            await client.lookup("loops", KEYS[0])

    asyncio.run(test())


def test_async_client_made_before_a_fork_reads_without_a_request(trio: Peers) -> None:
    seeds = [peer.address for peer in trio.all.values()]
    client = AsyncClient(*seeds, read="one", write="all", timeout=20)

    async def use() -> None:
        await client.put("preloaded", "key", 1)
        async with client, asyncio.timeout(PATIENCE):
            while True:
                before = await asyncio.to_thread(_requests, trio)
                for _ in range(50):
                    assert await client.lookup("preloaded", "key") == 1
                if await asyncio.to_thread(_requests, trio) == before:
                    return

    child = os.fork()
    if child == 0:
        status = 1
        try:
            asyncio.run(use())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    asyncio.run(client.close())


def test_async_client_on_another_loop_is_refused_as_before(trio: Peers) -> None:
    seeds = [peer.address for peer in trio.all.values()]
    client = AsyncClient(*seeds, read="one", write="all", timeout=20)

    async def use() -> None:
        await client.put("another", "key", 1)
        for _ in range(50):
            assert await client.lookup("another", "key") == 1

    with asyncio.Runner() as first:
        first.run(use())
        with pytest.raises(UsageError, match="another event loop"):
            asyncio.run(client.lookup("another", "key"))  # type: ignore[arg-type]
        first.run(client.close())


def test_batch_reads_what_it_can_and_asks_for_the_rest(tmp_path: Path) -> None:
    """Only one of two peers shares its store, and each key is on one of them."""
    with Peers.local(tmp_path, "--replicas", "1") as peers:
        peers.environ |= SHARES
        peers.start("a", "--min-peers", "2")
        peers.environ.clear()
        peers.start("b", "--min-peers", "2")
        peers["a"].wait_ready()
        peers["b"].wait_ready()
        client = peers.client(read="one")
        entries = {key: [key] for key in KEYS[:150]}
        client.batch_put("i", entries)

        def asked() -> tuple[int, int]:
            return peers["a"].lookups(), peers["b"].lookups()

        def only_b_is_asked() -> bool:
            before = asked()
            found = client.batch_lookup("i", KEYS)
            assert list(found.items()) == list(entries.items())
            after = asked()
            return after[0] == before[0] and after[1] > before[1]

        wait_until(only_b_is_asked, PATIENCE, "the store of a is read")
        many = [f"{number}" for number in range(6000)]
        assert client.batch_lookup("i", many) == {}
        with pytest.raises(ValueError, match="on_error"):
            client.batch_lookup("i", KEYS, on_error="ignore")  # type: ignore[arg-type]


def test_user_without_rights_asks_peers_and_is_warned_once(trio: Peers, tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert reading.use is not None
            sys.modules.pop("structlog", None)  # another test may have made it write elsewhere
            logging.basicConfig(filename=log, force=True)
            os.setuid(65534)
            client = trio.client(read="one", write="all")
            for number in range(100):
                client.put("rights", f"{number}", number)
                if client.lookup("rights", f"{number}") != number:
                    break
            else:
                status = 0
        except BaseException:
            logging.exception("the child failed")
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, log.read_text()
    lines = log.read_text().splitlines()
    assert len([line for line in lines if "local reads are not used" in line]) <= 3
    assert "Permission denied" in lines[0]


def test_peer_that_does_not_share_is_always_asked(tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a")
        client = peers.client(read="one")
        client.put("i", "key", 1)
        before = _requests(peers)
        for _ in range(10):
            assert client.lookup("i", "key") == 1
        assert _requests(peers) == before + 10
        assert not (peers["a"].data / HEARTBEAT_FILE).exists()
