"""A call of one thread that waits for other threads, without a lock that several of them hold."""

from __future__ import annotations

import threading


class WaitingThread:
    """A call that waits until another thread wakes its own.

    Args:
        thread: that makes it.
    """

    __slots__ = ("_claim", "thread", "woken")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        #: Released to wake the thread.
        self.woken = threading.Lock()
        self._claim = [None]

    def claim(self) -> bool:
        """Decide what happens with the call; true for the first of several threads."""
        try:
            self._claim.pop()  # the interpreter does this in one step
        except IndexError:
            return False
        return True
