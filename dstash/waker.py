"""Wakes a thread that waits for sockets or descriptors."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from socket import socketpair
from typing import Final

from dstash.errors import DStashError, Unavailable

#: Error numbers if the process, or the machine, has no free descriptor.
NO_DESCRIPTOR: Final = frozenset((errno.EMFILE, errno.ENFILE))
#: Wakes that one read takes from a socket pair.
_READ_BYTES: Final = 4096


def open_files_limit() -> int:
    """Return the limit of open files of this process; -1 if there is none, or it is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return -1
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return -1 if soft == resource.RLIM_INFINITY else soft


def no_descriptor(number: int | None) -> DStashError:
    """Return the error for a system call that failed because no descriptor was free.

    Args:
        number: the error number of the system call, one of ``NO_DESCRIPTOR``.
    """
    if number == errno.ENFILE:
        return Unavailable("no free descriptor on this machine: raise fs.file-max")
    limit = open_files_limit()
    now = f" (now {limit})" if limit >= 0 else ""
    return Unavailable(
        f"no free descriptor in this process: raise its limit of open files{now}, or close files"
    )


class _EventCounter:
    """A descriptor that is readable after ``set`` (Linux)."""

    def __init__(self) -> None:
        self.handle = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        os.eventfd_write(self.handle, 1)

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.handle)

    def close(self) -> None:
        os.close(self.handle)


class _SocketPair:
    """A descriptor that is readable after ``set``, for systems without eventfd."""

    def __init__(self) -> None:
        self._reader, self._writer = socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.handle = self._reader.fileno()

    def set(self) -> None:
        with suppress(BlockingIOError):  # full: it is readable anyway
            self._writer.send(b"\0")

    def clear(self) -> None:
        with suppress(BlockingIOError):
            while len(self._reader.recv(_READ_BYTES)) == _READ_BYTES:
                pass

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class Waker:
    """Wakes a thread that waits in a ``Poller`` or an event loop.

    ``wake`` may be called from any thread, and from a signal handler.

    Raises:
        Unavailable: no descriptor is free.
    """

    def __init__(self) -> None:
        try:
            self._signal = _EventCounter() if hasattr(os, "eventfd") else _SocketPair()
        except OSError as error:
            if error.errno in NO_DESCRIPTOR:
                raise no_descriptor(error.errno) from None
            raise
        self.handle = self._signal.handle
        # Reentrant: a signal handler may interrupt a wake of its own thread.
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """Return the descriptor, which is readable after a wake."""
        return self.handle

    def wake(self) -> None:
        """Make the waiting thread continue now, or at once when it waits the next time."""
        with self._lock:
            if self.handle >= 0:
                self._signal.set()

    def clear(self) -> None:
        """Discard the calls so far."""
        self._signal.clear()

    def close(self) -> None:
        """Release the descriptor."""
        with self._lock:
            handle, self.handle = self.handle, -1
            if handle >= 0:
                self._signal.close()
