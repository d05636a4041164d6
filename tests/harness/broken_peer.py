"""Runs ``dstash-peer`` with a defect or a fault, which SIGUSR1 starts and ends::

    python -m tests.harness.broken_peer FAULT dstash-peer DATA ...

``end:NAME`` ends the thread of that name (``end:http`` at its next connection). ``hang:NAME`` makes
it hang. ``iteration`` makes each iteration of the membership thread fail. ``unkept`` makes the
store refuse to keep a topology.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from typing import Any

from dstash.cluster.membership.local.membership import LocalMembership
from dstash.errors import DiskFull
from dstash.peer.http.server import _Server
from dstash.peer.main import main
from dstash.store.lmdb import LmdbStore

_on = threading.Event()


def _toggle(*_: Any) -> None:
    if _on.is_set():
        _on.clear()
    else:
        _on.set()


def _end(name: str) -> None:
    """Raise SystemExit in a thread, which no ``except Exception`` catches."""
    for thread in threading.enumerate():
        if thread.name == name and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )


def _hang(*_: Any) -> None:
    time.sleep(3600)


def _refuse_when_on(owner: type, method: str, error: type[BaseException]) -> None:
    right = getattr(owner, method)

    def wrong(self: Any, *arguments: Any) -> Any:
        if _on.is_set():
            raise error("a planted fault")
        return right(self, *arguments)

    setattr(owner, method, wrong)


def _hang_when_on(owner: type, method: str) -> None:
    right = getattr(owner, method)

    def wrong(self: Any, *arguments: Any) -> Any:
        while _on.is_set():
            time.sleep(0.01)
        return right(self, *arguments)

    setattr(owner, method, wrong)


def _plant(fault: str) -> None:
    handler: Any = _toggle
    if fault == "end:http":
        # This thread starts others, whose states have its number until they run (CPython 3.11): an
        # exception for it can reach one of them, and then it waits without end for its start.
        _refuse_when_on(_Server, "process_request", SystemExit)
    elif fault.startswith("end:"):
        handler = lambda *_: _end(fault.removeprefix("end:"))  # noqa: E731
    elif fault == "hang:MainThread":
        handler = _hang
    elif fault == "hang:membership":
        _hang_when_on(LocalMembership, "read")
    elif fault == "hang:committer":
        _hang_when_on(LmdbStore, "sync")
    elif fault == "iteration":
        _refuse_when_on(LocalMembership, "read", ZeroDivisionError)
    elif fault == "unkept":
        _refuse_when_on(LmdbStore, "mark", DiskFull)
    else:
        raise SystemExit(f"unknown fault {fault!r}")
    signal.signal(signal.SIGUSR1, handler)


if __name__ == "__main__":
    _plant(sys.argv[1])
    sys.argv = sys.argv[2:]
    main()
