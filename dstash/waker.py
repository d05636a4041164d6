"""Wakes a thread that waits for sockets or descriptors."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from socket import socketpair
from typing import Final

#: Wakes that one read takes from a socket pair.
_READ_BYTES: Final = 4096


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
    """

    def __init__(self) -> None:
        self._signal = _EventCounter() if hasattr(os, "eventfd") else _SocketPair()
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
