"""Combining: few threads work at a time, each for all calls that wait then.

Calls of many threads on one client share the interpreter's lock, so one request for the calls of
ten threads is faster than ten requests. The method is flat combining, from Hendler et al., "Flat
Combining and the Synchronization-Parallelism Tradeoff" (2010).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from dstash.client.local.batches import ASK
from dstash.client.transport.waiting import WaitingThread

#: Two threads work at the same time, so that few calls wait; only one while that many others wait.
_MOST_LEADERS: Final = 2
_CROWD: Final = 4
#: The most calls that are combined.
_MOST_CALLS: Final = 64
#: A thread that leads for longer (seconds) was interrupted, or waits for a peer.
_MAX_LEAD_S: Final = 0.5


class WaitingCall(WaitingThread):
    """A call of one thread.

    Args:
        wanted: its arguments.
        thread: that makes it.
    """

    __slots__ = ("leads", "outcome", "wanted")

    def __init__(self, wanted: Any, thread: int) -> None:
        super().__init__(thread)
        self.wanted = wanted
        #: What it returns; ``ASK`` if it must be made in another way.
        self.outcome: Any = ASK
        #: Whether its thread was woken to lead.
        self.leads = False


class Combiner:
    """Combines the calls of the threads of one process.

    It has no locks but those on which threads wait for their own calls: a signal handler may make a
    call while it interrupts a call of the same thread. Therefore the limits are not exact.

    Args:
        work: sets the outcomes of calls; it is called by several threads at the same time.
        patience: seconds after which a call that no thread has taken is left to its own thread.
    """

    def __init__(self, work: Callable[[list[WaitingCall]], None], patience: float) -> None:
        self._work = work
        self._patience = patience
        self._waiting: deque[WaitingCall] = deque()
        #: When each thread that works has begun, by its id.
        self._leaders: dict[int, float] = {}
        #: How many threads may work now.
        self._most = _MOST_LEADERS

    def call(self, wanted: Any, alone: Callable[[Any], Any]) -> Any:
        """Make a call: at once by ``alone`` if few threads work, else together with other calls.

        Returns:
            The outcome; ``ASK`` if the call must be made in another way.
        """
        thread, leaders = threading.get_ident(), self._leaders
        if thread in leaders:  # a signal handler interrupts a call of this thread
            return alone(wanted)
        if len(leaders) < self._most:
            leaders[thread] = time.monotonic()
            try:
                return alone(wanted)
            finally:
                self._end(thread)
        return self._join(WaitingCall(wanted, thread))

    # -- inside

    def _join(self, call: WaitingCall) -> Any:
        call.woken.acquire()
        self._waiting.append(call)
        # A thread that stops leading looks for waiting calls after that.
        if len(self._leaders) < self._most and call.claim():
            return self._lead(call)
        try:
            if not call.woken.acquire(timeout=self._patience):
                if call.claim():
                    self._forget_lost_leaders()
                    return ASK
                call.woken.acquire(timeout=self._patience)  # another thread works on it
        except BaseException:  # an interrupt
            if not call.claim() and call.leads:
                self._end(call.thread)
            raise
        return self._lead(call) if call.leads else call.outcome

    def _lead(self, own: WaitingCall) -> Any:
        """Work on a call and those that wait, then wake their threads."""
        self._leaders[own.thread] = time.monotonic()
        calls = [own]
        try:
            while len(calls) < _MOST_CALLS and (other := self._next()) is not None:
                calls.append(other)
            self._work(calls)
        finally:
            for other in calls[1:]:
                other.woken.release()
            self._end(own.thread)
        return own.outcome

    def _end(self, thread: int) -> None:
        """Stop leading; wake the thread of a waiting call to lead."""
        self._leaders.pop(thread, None)
        self._most = 1 if len(self._waiting) >= _CROWD else _MOST_LEADERS
        if self._waiting and len(self._leaders) < self._most:
            heir = self._next()
            if heir is not None:
                heir.leads = True
                self._leaders[heir.thread] = time.monotonic()
                heir.woken.release()

    def _next(self) -> WaitingCall | None:
        """Return the call that has waited longest, and is now this thread's to decide."""
        while self._waiting:
            try:
                call = self._waiting.popleft()
            except IndexError:  # another thread took it
                return None
            if call.claim():
                return call
        return None

    def _forget_lost_leaders(self) -> None:
        """Forget threads that were interrupted before they could note their end."""
        latest = time.monotonic() - _MAX_LEAD_S
        for thread, since in list(self._leaders.items()):
            if since < latest:
                self._leaders.pop(thread, None)
