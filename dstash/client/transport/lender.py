"""The channels of one process: how many there are, and which call uses which.

Each channel has its own sockets to every peer that it was used for, with four descriptors for each
peer. So the number of channels has a bound, above which calls wait in the order in which they came,
and channels that were idle for a while are closed.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from dstash.client.session import Session
from dstash.client.transport.channel import Channel
from dstash.client.transport.waiting import WaitingThread
from dstash.errors import ClosedError, TimedOut
from dstash.waker import open_files_limit

#: The most channels, unless calls are nested. More calls at the same time are hardly faster,
#: because they share the interpreter's lock.
MAX_CHANNELS: Final = 32
#: The fewest, however few descriptors there are.
_MIN_CHANNELS: Final = 2
#: Descriptors of a connection: the socket, its monitor (two) and the TCP connection.
_DESCRIPTORS_PER_CONNECTION: Final = 4
#: Idle channels that are kept.
KEPT_CHANNELS: Final = 4
#: Other channels are closed when they were idle for this long.
MAX_IDLE_S: Final = 30.0
#: How often a waiting call looks for a free channel itself: an interrupt may prevent a hand-over.
_CHECK_INTERVAL_S: Final = 0.25


class _WaitingCall(WaitingThread):
    """A call that waits for a channel.

    Args:
        thread: that makes it.
    """

    __slots__ = ("channel",)

    def __init__(self, thread: int) -> None:
        super().__init__(thread)
        #: The channel for it; None if the client was closed.
        self.channel: Channel | None = None
        self.woken.acquire()


class Lender:
    """Lends the channels of one process.

    It has no locks but those on which calls wait: a signal handler may make a call while it
    interrupts a call of the same thread. It refers to a channel that is in use only weakly, so a
    channel that an interrupt kept from being returned is closed by the garbage collector.

    Args:
        session: the state that the calls share.
        seeds: number of addresses in the settings, to which a channel connects if every member is
            suspect; 0 if the client finds the members in another way.
    """

    def __init__(self, session: Session, seeds: int) -> None:
        self._session = session
        self._seeds = seeds
        #: Opens a channel; set once there is a context.
        self.new_channel: Callable[[], Channel]
        #: Channels that no call uses now; those that were used last are at the end.
        self.idle: list[Channel] = []
        #: Calls that wait for a channel, and some that do not wait any more.
        self.waiting: deque[_WaitingCall] = deque()
        self._channels: dict[weakref.ref[Channel], None] = {}
        self._is_closed = False

    # -- for calls; see ``_Lent``, which takes idle channels and returns them itself

    def open_or_wait(self, deadline: int) -> Channel:
        """Return a new channel, or the next that becomes free.

        Raises:
            TimedOut: none became free by the deadline.
            ClosedError: the client was closed.
        """
        channel = None if self.waiting else self._opened()
        if channel is not None:
            return channel
        thread = threading.get_ident()
        if self._is_nested(thread):  # to wait for its own thread would never end
            return self._added()
        call = _WaitingCall(thread)
        try:
            return self._await(call, deadline)
        except BaseException:  # an interrupt too: a channel that was handed over must not get lost
            if not call.claim() and call.channel is not None:
                self.give_back(call.channel)
            raise

    def give_back(self, channel: Channel) -> None:
        """Take a channel from a call: for the call that waits longest, or for later ones."""
        channel.thread = 0
        if len(self._channels) > self._bound():  # a nested call has added one
            self.discard(channel)
            return
        call = self._next()
        if call is not None:
            self._hand_over(channel, call)
            return
        channel.idle_since = time.monotonic()
        self.idle.append(channel)
        self.serve()  # a call that began to wait in the meantime
        self._close_surplus(channel.idle_since - MAX_IDLE_S)

    def discard(self, channel: Channel) -> None:
        """Close a channel that cannot be used again."""
        channel.close()
        self._channels.pop(weakref.ref(channel), None)
        self.serve()

    def serve(self) -> None:
        """Give free channels to the calls that wait, in their order."""
        while self.waiting:
            try:
                channel: Channel | None = self.idle.pop()
            except IndexError:
                channel = self._opened()
            if channel is None:
                return
            call = self._next()
            if call is not None:
                self._hand_over(channel, call)
            else:
                self.idle.append(channel)

    # -- for the client

    def is_used_by(self, thread: int) -> bool:
        """Whether a call of a thread has a channel."""
        channels = [reference() for reference in list(self._channels)]
        return any(channel is not None and channel.thread == thread for channel in channels)

    def close_idle(self) -> bool:
        """Close the channels that no call uses now; return whether there were any."""
        is_any = False
        with suppress(IndexError):  # none is left, or another thread has taken it
            while True:
                channel = self.idle.pop()
                is_any = True
                channel.close()
                self._channels.pop(weakref.ref(channel), None)
        return is_any

    def close(self) -> None:
        """Close the channels that no call uses now; calls that wait fail."""
        self._is_closed = True
        self.close_idle()
        while (call := self._next()) is not None:
            call.woken.release()

    # -- inside

    def _await(self, call: _WaitingCall, deadline: int) -> Channel:
        self.waiting.append(call)
        while True:
            self.serve()
            left = (deadline - self._session.wall()) / 1000
            if call.woken.acquire(timeout=max(0.0, min(left, _CHECK_INTERVAL_S))):
                break
            if self._is_closed or (left <= 0 and call.claim()):
                break
            if left <= -_CHECK_INTERVAL_S:  # an interrupt has prevented the hand-over
                break
        if call.channel is not None:
            return call.channel
        if self._is_closed:
            raise ClosedError("the client was closed")
        raise TimedOut(
            f"no answer in time: the call waited for other calls of this client, of which "
            f"{self._bound()} run at a time; no request was sent"
        )

    def _is_nested(self, thread: int) -> bool:
        """Whether a call interrupts another one of its thread, as in a signal handler."""
        waits = any(call.thread == thread for call in self.waiting.copy())
        return waits or self.is_used_by(thread)

    def _next(self) -> _WaitingCall | None:
        """Return the call that has waited longest, and is now this thread's to decide."""
        while self.waiting:
            try:
                call = self.waiting.popleft()
            except IndexError:  # another thread took it
                return None
            if call.claim():
                return call
        return None

    def _hand_over(self, channel: Channel, call: _WaitingCall) -> None:
        channel.thread = call.thread
        call.channel = channel
        call.woken.release()

    def _bound(self) -> int:
        """Return how many channels there may be: they use at most half of the descriptors."""
        limit = open_files_limit()
        if limit < 0:
            return MAX_CHANNELS
        view = self._session.view
        members = max(1, len(view.topology.members) if view is not None else 0)
        connections = members + (self._seeds or members)
        affordable = limit // 2 // (connections * _DESCRIPTORS_PER_CONNECTION)
        return min(MAX_CHANNELS, max(_MIN_CHANNELS, affordable))

    def _opened(self) -> Channel | None:
        """Return a new channel; None if there are as many as there may be."""
        bound = self._bound()
        if len(self._channels) >= bound:
            return None
        channel = self._added()
        reference = weakref.ref(channel)
        if reference in list(self._channels)[:bound]:  # several threads may have added one
            return channel
        self._channels.pop(reference, None)
        return None

    def _added(self) -> Channel:
        """Return a new channel."""
        channel, channels = self.new_channel(), self._channels
        channels[weakref.ref(channel, lambda gone: channels.pop(gone, None))] = None
        return channel

    def _close_surplus(self, latest: float) -> None:
        """Close channels that were idle since that time, but a few.

        The last used is used first, so that the others are at the start, in the order of time.
        """
        idle = self.idle
        with suppress(IndexError):  # none is left, or another thread has taken it
            while idle[KEPT_CHANNELS].idle_since < latest:
                channel = idle.pop(KEPT_CHANNELS)
                self._channels.pop(weakref.ref(channel), None)
                channel.close()
