"""Runs ``dstash-peer`` on a disk that fails: after SIGUSR1 the kernel answers each sync with EIO.

A seccomp filter does this, so everything above the kernel is unchanged::

    python -m tests.harness.failing_disk dstash-peer DATA ...
"""

from __future__ import annotations

import ctypes
import errno
import platform
import signal
import sys
from typing import Any, Final

from dstash.peer.main import main

#: seccomp, and the system calls that sync data to disk.
_CALLS: Final = {"x86_64": (317, (74, 75, 26)), "aarch64": (277, (82, 83, 227))}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _ALL_THREADS = 38, 1, 1


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def fail_syncs(*_: Any) -> None:
    """Make every sync of this process fail from now on."""
    seccomp, calls = _CALLS[platform.machine()]
    steps = [_Instruction(_LOAD, 0, 0, 0)]
    for left, call in zip(range(len(calls), 0, -1), calls, strict=True):
        steps.append(_Instruction(_JUMP_IF_EQUAL, left, 0, call))
    steps += [_Instruction(_RETURN, 0, 0, _ALLOW), _Instruction(_RETURN, 0, 0, _ERRNO | errno.EIO)]
    program = _Program(len(steps), (_Instruction * len(steps))(*steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "no filter of system calls")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, fail_syncs)
    sys.argv = sys.argv[1:]
    main()
