"""How long a thread runs at a time, and so how soon it lets others in.

Since Linux 6.12 a thread may say how long its turns on a processor should be (``sched_runtime``,
0.1 to 100 ms; EEVDF: Stoica and Abdel-Wahab, "Earliest Eligible Virtual Deadline First", 1995). It
gets no more and no less of the processor by that. But one with short turns that wakes is let in
at once, in the middle of the longer turn of another, and need not wait until that has ended: a
message changes hands six times on its way to a record and back, and may have to wait each time.

Earlier kernels take no notice of the length, and other systems of nothing.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Seconds: for threads that only hand messages on, in some microseconds.
BRIEF: Final = 0.0001
#: Seconds: for threads that work on nothing that somebody waits for at the moment.
LONG: Final = 0.01

_NORMAL, _BATCH = 0, 3  # SCHED_OTHER and SCHED_BATCH: the others have no such turns
#: The numbers of sched_setattr and sched_getattr, for which the C library has no functions.
_CALLS: Final = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}


class _Attributes(ctypes.Structure):
    """``struct sched_attr`` in its first version."""

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
    """Return the turns (seconds) of a thread by its kernel's id, 0 for the calling one.

    None where the kernel does not tell.
    """
    attributes = _read(thread)
    return attributes.runtime / 1e9 if attributes is not None and attributes.runtime else None


def use_time_slice(seconds: float | None) -> bool:
    """Say how long turns of the calling thread should be, None for what is usual.

    With ``LONG`` ones it also interrupts nobody when it wakes (SCHED_BATCH). Threads that it begins
    from now on take after it.

    Returns:
        whether the kernel took notice.
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
    """Take turns of a length until the end of a block; threads begun in it keep to them."""
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
    """Make a system call; False when the kernel, or who guards it, does not know or allow it."""
    return bool(ctypes.CDLL(None).syscall(number, thread, attributes, *more) == 0)
