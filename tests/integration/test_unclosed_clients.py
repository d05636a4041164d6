"""Clients that were never closed: they free their resources and block nothing."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstash import AsyncClient, Client
from tests.harness.peers import Peers
from tests.harness.waiting import PATIENCE, wait_until

#: A hanging client would block the garbage collector, and so the test, for ever.
pytestmark = pytest.mark.timeout(60)


def held() -> tuple[int, int]:
    """Return the number of files and threads of this process, including those of ZeroMQ."""
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


def check_nothing_is_kept(use: Callable[[], None], warning: str) -> None:
    """Expect a warning, and that everything opened meanwhile is closed."""

    def use_and_collect() -> None:
        use()
        gc.collect()

    gc.collect()
    before = held()
    with pytest.warns(ResourceWarning, match=warning):
        use_and_collect()
    wait_until(lambda: held() <= before, PATIENCE, "files and threads are given back")


def drop(client: Client) -> None:
    """Drop the last reference to a client."""


def tie(client: Client) -> None:
    """Drop a client in a reference cycle, which the garbage collector frees."""
    circle: list[Any] = [client]
    circle.append(circle)


@pytest.mark.parametrize("collected", [False, True], ids=["young", "old"])
@pytest.mark.parametrize("forget", [drop, tie])
def test_unclosed_client_is_reported_and_freed(
    trio: Peers, forget: Callable[[Client], None], collected: bool
) -> None:
    def use() -> None:
        client = Client(trio["a"].address, timeout=20)
        if collected:  # of a cycle, the collector finalizes younger objects first: the sockets
            gc.collect(0)
        client.put("forgotten", "key", 1)
        assert client.lookup("forgotten", "key") == 1
        forget(client)

    check_nothing_is_kept(use, "a Client was never closed")


async def ask(address: str) -> AsyncClient:
    client = AsyncClient(address, timeout=20)
    await client.put("forgotten", "key", 1)
    assert await client.lookup("forgotten", "key") == 1
    return client


def test_unclosed_async_client_on_running_loop_is_reported_and_freed(trio: Peers) -> None:
    async def use() -> None:
        await ask(trio["a"].address)
        await asyncio.sleep(0)  # its connections are closed on the loop

    check_nothing_is_kept(lambda: asyncio.run(use()), "an AsyncClient was never closed")


def test_unclosed_async_client_on_closed_loop_is_reported_and_freed(trio: Peers) -> None:
    def use() -> None:
        client = asyncio.run(ask(trio["a"].address))
        del client

    check_nothing_is_kept(use, "an AsyncClient was never closed")


def test_unclosed_client_does_not_block_process_exit(trio: Peers) -> None:
    program = (
        "import threading\n"
        "from dstash import Client\n"
        f"client = Client({trio['a'].address!r}, timeout=20)\n"
        "client.put('forgotten', 'key', 1)\n"
        "asked = threading.Event()\n"
        "def ask():\n"
        "    while True:\n"
        "        client.lookup('forgotten', 'key')\n"
        "        asked.set()\n"
        "threading.Thread(target=ask, daemon=True).start()\n"
        "asked.wait()\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_failed_construction_of_client_leaks_nothing() -> None:
    with pytest.raises(Exception, match="nonsense"):
        Client("tcp://127.0.0.1:1", nonsense=1)
    with pytest.raises(Exception, match="nonsense"):
        AsyncClient("tcp://127.0.0.1:1", nonsense=1)
    gc.collect()


def test_unused_client_causes_no_warning() -> None:
    for kind in (Client, AsyncClient):
        kind("tcp://127.0.0.1:1")
        gc.collect()
