"""How long threads run at a time, asked of the kernel itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from dstash.cpu_scheduling import BRIEF, LONG, _read, current_time_slice, time_slice, use_time_slice
from dstash.wire.router import Router
from dstash.wire.sockets import Context
from tests.harness.turns import KERNEL_KNOWS


def test_the_kernel_takes_notice_where_it_can() -> None:
    took: list[bool] = []
    thread = threading.Thread(target=lambda: took.append(use_time_slice(LONG)))
    thread.start()
    thread.join()
    assert took == [KERNEL_KNOWS]


def test_long_turns_interrupt_nobody() -> None:
    seen: list[int] = []

    def run() -> None:
        for seconds in (LONG, None):
            use_time_slice(seconds)
            seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    usual = os.sched_getscheduler(0)
    assert seen == [usual if _read(0) is None else os.SCHED_BATCH, usual]


def test_turns_are_as_before_after_a_block() -> None:
    before = current_time_slice()
    with time_slice(BRIEF):
        within = current_time_slice()
    assert within == (BRIEF if KERNEL_KNOWS else before)
    assert current_time_slice() == before


def test_threads_of_zeromq_are_brief_and_their_owner_is_not() -> None:
    before = current_time_slice()
    context = Context()
    router = Router(context, "tcp://127.0.0.1:*")
    try:
        names = {
            int(one.name): (one / "comm").read_text() for one in Path("/proc/self/task").iterdir()
        }
        turns = {current_time_slice(thread) for thread, name in names.items() if "ZMQbg/IO" in name}
        assert turns == ({BRIEF} if KERNEL_KNOWS else {before})
        assert current_time_slice(os.getpid()) == before
    finally:
        router.close_after(0)
        context.close()
