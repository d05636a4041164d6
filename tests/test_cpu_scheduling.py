"""CPU time slices of threads, as the kernel reports them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dstash import Client
from dstash.cpu_scheduling import BRIEF, LONG, _read, current_time_slice, time_slice, use_time_slice
from dstash.wire.router import Router
from dstash.wire.sockets import Context
from tests.harness.kernel import HAS_TIME_SLICES
from tests.harness.peers import Peers
from tests.harness.waiting import wait_until


def _zeromq_slices() -> set[float | None]:
    """Return the time slices of the I/O threads of ZeroMQ in this process."""

    def find() -> list[int]:
        tasks = list(Path("/proc/self/task").iterdir())
        return [int(task.name) for task in tasks if "ZMQbg/IO" in (task / "comm").read_text()]

    wait_until(find, 10, "ZeroMQ's threads have set their names")
    return {current_time_slice(thread) for thread in find()}


def test_use_time_slice_returns_whether_the_kernel_supports_it() -> None:
    accepted: list[bool] = []
    thread = threading.Thread(target=lambda: accepted.append(use_time_slice(LONG)))
    thread.start()
    thread.join()
    assert accepted == [HAS_TIME_SLICES]


def test_use_time_slice_with_long_slice_selects_batch_policy() -> None:
    seen: list[int] = []

    def run() -> None:
        for seconds in (LONG, None):
            use_time_slice(seconds)
            seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    default = os.sched_getscheduler(0)
    assert seen == [default if _read(0) is None else os.SCHED_BATCH, default]


def test_time_slice_restores_the_previous_one_after_the_block() -> None:
    before = current_time_slice()
    with time_slice(BRIEF):
        within = current_time_slice()
    assert within == (BRIEF if HAS_TIME_SLICES else before)
    assert current_time_slice() == before


@pytest.mark.parametrize("is_peer", [True, False])
def test_context_gives_its_threads_brief_slices_only_if_requested(is_peer: bool) -> None:
    before = current_time_slice()
    context = Context(brief_time_slices=is_peer)
    router = Router(context, "tcp://127.0.0.1:*")
    try:
        assert _zeromq_slices() == ({BRIEF} if is_peer and HAS_TIME_SLICES else {before})
        assert current_time_slice(os.getpid()) == before
    finally:
        router.close_after(0)
        context.close()


def test_client_leaves_the_threads_of_its_process_alone_and_peer_does_not(tmp_path: Path) -> None:
    default = current_time_slice()
    with Peers.local(tmp_path, "--replicas", "1") as peers:
        peers.form("a")
        with Client(peers["a"].address, timeout=20) as client:
            client.put("i", "key", 1)
            tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
            assert {current_time_slice(task) for task in tasks} == {default}
            assert _zeromq_slices() == {default}
        process = peers["a"].process
        assert process is not None
        tasks = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]
        slices = {current_time_slice(task) for task in tasks}
        assert slices == ({BRIEF, default, LONG} if HAS_TIME_SLICES else {default})
