"""Clients whose process has few descriptors, or none."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.harness.peers import Peers

pytestmark = pytest.mark.usefixtures("no_leaks")

ROOT = Path(__file__).parents[2]

#: The start of every program.
_BEGINNING = """
import asyncio, faulthandler, os, resource, signal, sys, threading, time
from dstash import AsyncClient, Client, DStashError

faulthandler.dump_traceback_later(100, exit=True)
LIMIT = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
pids = [int(pid) for pid in sys.argv[2].split(",")]
seeds = sys.argv[3:]

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def at_once(count, call):
    errors = []
    def caught():
        try:
            call()
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=caught) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors

def check(errors):
    for error in errors:
        assert isinstance(error, DStashError), repr(error)
        assert error.retryable, repr(error)

def take_all(free=0):
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    give(held, free)
    return held

def give(held, count):
    for _ in range(min(count, len(held))):
        os.close(held.pop())

def fails(call):
    try:
        call()
    except DStashError as error:
        assert error.retryable, repr(error)
        text = f"no free descriptor in this process: raise its limit of open files (now {LIMIT})"
        assert text in str(error), repr(error)
    else:
        raise AssertionError("it has found a descriptor")
"""


def run(peers: Peers, program: str, limit: int) -> None:
    """Run a program in a process of its own with a limit of open files."""
    processes = [peer.process for peer in peers.all.values()]
    pids = ",".join(str(process.pid) for process in processes if process is not None)
    seeds = [peer.address for peer in peers.all.values()]
    done = subprocess.run(
        [sys.executable, "-c", _BEGINNING + textwrap.dedent(program), str(limit), pids, *seeds],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_calls_of_many_threads_use_half_of_the_descriptors(trio: Peers) -> None:
    run(
        trio,
        """
        from dstash.client.transport import lender
        lender.MAX_IDLE_S = 0.5
        client = Client(*seeds, timeout=60)
        client.put("many", "k", 1)
        client.batch_put("many", ((number, "x") for number in range(3000)))
        before, most = descriptors(), [0]

        def call():
            for _ in range(2):
                assert len(client.batch_lookup("many", range(3000))) == 3000
                most[0] = max(most[0], descriptors())

        assert at_once(100, call) == []
        assert before < most[0] < before + LIMIT // 2, most
        time.sleep(1)  # longer than a channel may be idle here
        assert client.lookup("many", "k", read="all", timeout=9) == 1
        wanted = before + lender.KEPT_CHANNELS * 12
        for _ in range(200):  # ZeroMQ closes sockets in the background
            if descriptors() <= wanted:
                break
            time.sleep(0.05)
        assert descriptors() <= wanted, (before, most, descriptors())
        client.close()
        """,
        limit=384,
    )


def test_client_recovers_from_an_outage_during_calls_of_many_threads(own: Peers) -> None:
    run(
        own,
        """
        client = Client(*seeds)
        client.put("outage", "k", 1)
        most = [0]

        def call():
            try:
                client.lookup("outage", "k", timeout=3)
            finally:
                most[0] = max(most[0], descriptors())

        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            errors = at_once(100, call)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert len(errors) == 100
        check(errors)
        assert any("waited for other calls of this client" in str(error) for error in errors)
        assert most[0] < 0.8 * LIMIT, most
        assert client.lookup("outage", "k", timeout=20) == 1
        client.put("outage", "k", 2, timeout=20)
        assert client.lookup("outage", "k", read="all") == 2
        client.close()
        """,
        limit=512,
    )


@pytest.mark.parametrize("free", [0, 1, 2, 3, 6, 12])
def test_lack_of_descriptors_is_one_retryable_error(trio: Peers, free: int) -> None:
    run(
        trio,
        f"""
        client, named = Client(*seeds), Client(seeds[0].replace("127.0.0.1", "localhost"))
        held = take_all({free})
        fails(lambda: client.put("lack", "k", 1, timeout=0.5))
        fails(lambda: client.lookup("lack", "k", timeout=0.5))
        fails(lambda: client.batch_lookup("lack", range(10), timeout=0.5))
        # The name cannot be resolved either, which may be the reason.
        check(at_once(1, lambda: named.lookup("lack", "k", timeout=0.5)))
        give(held, LIMIT)
        client.put("lack", "k", 1, timeout=20)
        assert client.lookup("lack", "k", read="all", timeout=20) == 1
        assert named.lookup("lack", "k", read="all", timeout=20) == 1
        client.close()
        named.close()
        """,
        limit=128,
    )


@pytest.mark.parametrize("free", [0, 1, 6, 12])
def test_lack_of_descriptors_is_one_retryable_error_of_async_client(trio: Peers, free: int) -> None:
    run(
        trio,
        f"""
        async def main():
            client = AsyncClient(*seeds)
            held = take_all({free})
            for _ in range(2):
                try:
                    await client.lookup("lack", "k", timeout=0.5)
                except DStashError as error:
                    fails(lambda: (_ for _ in ()).throw(error))
                else:
                    raise AssertionError
            give(held, LIMIT)
            await client.put("lack", "k", 1, timeout=20)
            assert await client.lookup("lack", "k", timeout=20) == 1
            await client.close()

        asyncio.run(main())
        """,
        limit=128,
    )


def test_call_succeeds_when_descriptors_become_free(trio: Peers) -> None:
    run(
        trio,
        """
        client = Client(*seeds)
        held = take_all(3)
        threading.Timer(0.5, give, [held, LIMIT]).start()
        client.put("freed", "k", 1, timeout=20)
        assert client.lookup("freed", "k", timeout=20) == 1
        client.close()
        """,
        limit=128,
    )


def test_idle_channels_are_closed_for_a_call_without_descriptors(trio: Peers) -> None:
    run(
        trio,
        """
        client = Client(*seeds, timeout=30)
        client.batch_put("room", ((number, "x") for number in range(3000)))
        assert at_once(40, lambda: client.batch_lookup("room", range(3000))) == []
        lender = client._pool._state().lender
        assert len(lender.idle) > 2
        fresh = lender.new_channel()
        lender.idle.append(fresh)  # the next call uses it, and has to connect
        held = take_all()
        began = time.monotonic()
        assert len(client.batch_lookup("room", range(3000), timeout=9)) == 3000
        assert time.monotonic() - began < 5
        assert lender.idle == [fresh]
        give(held, LIMIT)
        client.close()
        """,
        limit=256,
    )


def test_half_open_connections_leave_nothing(trio: Peers) -> None:
    run(
        trio,
        """
        from dstash.wire.links import Links
        from dstash.wire.sockets import Context, Poller
        context = Context()
        context.socket(5).close()  # starts the threads
        time.sleep(0.5)  # until they have opened their descriptors, which is not observable
        links = Links(context, Poller(), lambda: [b"greeting"])
        before = descriptors()
        for free in range(4):
            held = take_all(free)
            for _ in range(20):
                assert not links.send(seeds[0], seeds[0], [b"x"]), free
                assert not links.send("a", seeds[0], [b"x"]), free
                for peer in (seeds[0], "a"):
                    assert "no free descriptor" in links.why_unsent(peer), peer
            give(held, LIMIT)
            for _ in range(200):
                if descriptors() == before:
                    break
                time.sleep(0.02)
            assert descriptors() == before, (free, before, descriptors())
        assert links.send(seeds[0], seeds[0], [b"x"])
        links.close()
        context.close()
        """,
        limit=96,
    )


def test_calls_within_calls_of_many_threads_end(trio: Peers) -> None:
    run(
        trio,
        """
        client = Client(*seeds, timeout=60)  # two calls at a time, besides those within them

        class Nested:
            pass

        def decode(data):
            assert client.lookup("within", "plain", timeout=30) == 1
            return Nested()

        client.types.register(Nested, code=7, encode=lambda value: b"", decode=decode)
        client.put("within", "plain", 1)
        client.put("@within", "n", 0)
        client.batch_put("within", ((number, Nested()) for number in range(9)))

        def change(value):
            return value + client.lookup("within", "plain")

        def call():
            assert len(client.batch_lookup("within", range(9))) == 9  # the decoder makes calls
            client.update("@within", "n", change)
            with client.lock("within", wait=60):
                assert client.lookup("within", "plain") == 1

        assert at_once(10, call) == []
        assert client.lookup("@within", "n") == 10
        client.close()
        """,
        limit=128,
    )
