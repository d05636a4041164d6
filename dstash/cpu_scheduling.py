"""CPU scheduling hints: how long a thread of a peer runs at a time.

Since Linux 6.12 a thread may request the length of its time slices (``sched_runtime``, 0.1 to
100 ms; EEVDF: Stoica and Abdel-Wahab, "Earliest Eligible Virtual Deadline First", 1995). The length
does not change the thread's share of the CPU. But a thread with short slices that wakes up preempts
a thread in a longer slice at once, instead of waiting for the end of that slice. A message changes
threads six times on its way to a record and back (see ARCHITECTURE.md), and may wait each time.

Earlier kernels ignore the length, and other systems have no such setting. Only the daemon of a peer
sets it; a client leaves the threads of its process as they are.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Seconds: for threads that only pass messages on, within microseconds.
BRIEF: Final = 0.0001
#: Seconds: for threads whose work no request waits for at the moment.
LONG: Final = 0.01

_NORMAL, _BATCH = 0, 3  # SCHED_OTHER and SCHED_BATCH: other policies have no time slices
#: Numbers of sched_setattr and sched_getattr, which the C library does not wrap.
_CALLS: Final = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}


class _Attributes(ctypes.Structure):
    """``struct sched_attr``, first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),  # nanoseconds
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def current_time_slice(thread: int = 0) -> float | None:
    """Return the time slice of a thread in seconds, None where the kernel does not report it.

    Args:
        thread: the kernel's id of the thread; 0 for the calling thread.
    """
    attributes = _read(thread)
    return attributes.runtime / 1e9 if attributes is not None and attributes.runtime else None


def use_time_slice(seconds: float | None) -> bool:
    """Request a time slice for the calling thread, and for the threads that it starts later.

    With ``LONG`` or more, the thread also does not preempt others when it wakes up (SCHED_BATCH).

    Args:
        seconds: length of the time slice; None for the default of the kernel.

    Returns:
        whether the kernel accepted it.
    """
    attributes = _read(0)
    if attributes is None or attributes.policy not in (_NORMAL, _BATCH):
        return False
    attributes.runtime = round((seconds or 0) * 1e9)
    attributes.policy = _BATCH if seconds is not None and seconds >= LONG else _NORMAL
    set_, _ = _CALLS[platform.machine()]
    return _call(set_, 0, ctypes.byref(attributes), 0) and (seconds in (None, current_time_slice()))


@contextmanager
def time_slice(seconds: float) -> Iterator[None]:
    """Use a time slice within a block; threads that are started in the block keep it."""
    before = current_time_slice()
    if before is None:
        yield
        return
    use_time_slice(seconds)
    try:
        yield
    finally:
        use_time_slice(before)


def _read(thread: int) -> _Attributes | None:
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return None
    attributes = _Attributes()
    attributes.size = ctypes.sizeof(_Attributes)
    _, get = _CALLS[platform.machine()]
    return attributes if _call(get, thread, ctypes.byref(attributes), attributes.size, 0) else None


def _call(number: int, thread: int, attributes: object, *more: int) -> bool:
    """Make a system call; return False if the kernel or a sandbox rejects it."""
    return bool(ctypes.CDLL(None).syscall(number, thread, attributes, *more) == 0)
