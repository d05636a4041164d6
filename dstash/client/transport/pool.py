"""The channels of a blocking client: one for each call that runs at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from dstash.client.calls import Calls
from dstash.client.discovery import identity
from dstash.client.operations.base import Operation
from dstash.client.session import Session
from dstash.client.transport.channel import Channel
from dstash.config.client import ClientSettings
from dstash.errors import ClosedError, DStashError
from dstash.wire.sockets import Context
from dstash.wire.values import TypeRegistry

#: How long ``close`` waits for the failing calls of other threads.
_CLOSE_TIMEOUT_S: Final = 2.0


class _State(NamedTuple):
    """The state that the calls of a process share. A call uses it from start to end."""

    context: Context
    session: Session
    calls: Calls
    #: Channels that no call uses now. There is no lock (``append`` and ``pop`` are atomic),
    #: because a signal handler may make a call while it interrupts a call of the same thread.
    idle: list[Channel]
    #: The thread of the call that uses a channel, by channel.
    lent: dict[Channel, int]

    def close_idle(self) -> None:
        """Close the channels that no call uses now."""
        with suppress(IndexError):
            while True:
                self.idle.pop().close()


class ChannelPool:
    """Lends channels to calls. A forked child gets its own channels, session and locks.

    Args:
        settings: of the client.
        types: the registered types of the client.
        new_session: returns a session for a process.
    """

    def __init__(
        self, settings: ClientSettings, types: TypeRegistry, new_session: Callable[[], Session]
    ) -> None:
        self.is_closed = False
        self._settings = settings
        self._types = types
        self._new_session = new_session
        self._states: dict[int, _State] = {}
        self._state()  # reports invalid key files now, not on the first call

    @property
    def session(self) -> Session:
        """The session of this process."""
        return self._state().session

    @property
    def calls(self) -> Calls:
        """The source of operations of this process."""
        return self._state().calls

    @property
    def has_idle(self) -> bool:
        """Whether there are channels to close that no call uses."""
        return bool(self._state().idle)

    def run(self, operation: Operation) -> Any:
        """Run an operation on a channel; find the cluster first if it is lost."""
        with self._lend() as channel:
            calls, session = self.calls, self.session
            if session.is_lost:
                channel.run(calls.discovery(operation.deadline))
            return channel.run(operation, calls.discovery)

    def discover(self, deadline: int) -> None:
        """Refresh the view from the peers."""
        with self._lend() as channel:
            channel.run(self.calls.discovery(deadline))

    def close(self) -> None:
        """Close every connection. Calls in other threads fail; wait for them for at most 2 s."""
        state = self._state()
        self.is_closed = True
        state.close_idle()
        # A call that a signal handler interrupted in this thread cannot end before this returns.
        is_inside = threading.get_ident() in list(state.lent.values())
        state.context.close(0 if is_inside else _CLOSE_TIMEOUT_S)

    # -- inside

    def _state(self) -> _State:
        """Return the state of this process."""
        process = os.getpid()
        state = self._states.get(process)
        if state is None:
            state = self._states.setdefault(process, self._new_state())
            for parent in [number for number in list(self._states) if number != process]:
                self._states.pop(parent, None)
        return state

    def _new_state(self) -> _State:
        session = self._new_session()
        context = Context(keys=identity(self._settings))
        return _State(context, session, Calls(self._settings, session, self._types), [], {})

    @contextmanager
    def _lend(self) -> Iterator[Channel]:
        """Lend a channel to the calling thread; keep it for the next call unless it broke."""
        state = self._state()
        if self.is_closed:
            raise ClosedError("the client was closed")
        try:
            channel = state.idle.pop()
        except IndexError:
            channel = Channel(state.context, state.session)
        try:
            state.lent[channel] = threading.get_ident()
            yield channel
        except DStashError:
            self._give_back(state, channel)
            if self.is_closed:
                raise ClosedError("the client was closed") from None
            raise
        except BaseException:
            state.lent.pop(channel, None)
            channel.close()  # interrupted in the middle of a message
            raise
        self._give_back(state, channel)

    def _give_back(self, state: _State, channel: Channel) -> None:
        state.lent.pop(channel, None)
        state.idle.append(channel)
        if self.is_closed:  # ``close`` may have missed this channel
            state.close_idle()
