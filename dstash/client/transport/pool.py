"""The channels of a blocking client: one for each call that runs at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from dstash.client.calls import Calls
from dstash.client.discovery import identity
from dstash.client.local.reads import LocalLookup, NoLocalReads, open_local_reads
from dstash.client.operations.base import Call
from dstash.client.session import Session
from dstash.client.transport.channel import Channel
from dstash.client.transport.lender import KEPT_CHANNELS, Lender
from dstash.client.transport.quick import NoQuickLookups, QuickLookup, QuickLookups
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
    local: LocalLookup
    lender: Lender


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
        #: Whether the client was closed; an attribute, because each call reads it twice.
        self.has_ended = False
        self._settings = settings
        self._types = types
        self._new_session = new_session
        self._states: dict[int, _State] = {}
        #: Look-ups without a request. In a forked child it is that of the parent, which answers no
        #: look-up, until the first request.
        self.local: LocalLookup = NoLocalReads()
        #: Look-ups of one key in one round trip; the same holds for a forked child.
        self.quick: QuickLookup = NoQuickLookups()
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
    def is_closed(self) -> bool:
        """Whether the client was closed."""
        return self.has_ended

    @property
    def is_open(self) -> bool:
        """Whether there are channels to close that no call uses."""
        return bool(self._state().lender.idle)

    def run(self, operation: Call) -> Any:
        """Run an operation on a channel; find the cluster first if it is lost.

        Raises:
            TimedOut: among others, if no channel became free by the deadline.
        """
        state = self._state()
        with _Lent(self, state.lender, operation.deadline) as channel:
            if state.session.is_lost:
                channel.run(state.calls.discovery(operation.deadline))
            return channel.run(operation, state.calls.discovery)

    def discover(self, deadline: int) -> None:
        """Refresh the view from the peers."""
        with _Lent(self, self._state().lender, deadline) as channel:
            channel.run(self.calls.discovery(deadline))

    def close(self) -> None:
        """Close every connection. Calls in other threads fail; wait for them for at most 2 s."""
        state = self._state()
        self.has_ended = True
        state.lender.close()
        # A call that a signal handler interrupted in this thread cannot end before this returns.
        is_inside = state.lender.is_used_by(threading.get_ident())
        state.local.close()
        state.context.close(0 if is_inside else _CLOSE_TIMEOUT_S)

    def drop(self) -> None:
        """Close every connection, from any thread."""
        self.close()

    # -- inside

    def _state(self) -> _State:
        """Return the state of this process."""
        process = os.getpid()
        state = self._states.get(process)
        if state is None:
            state = self._states.setdefault(process, self._new_state())
            self.local = state.local
            self.quick = self._quick_lookups(state)
            for parent in [number for number in list(self._states) if number != process]:
                self._states.pop(parent, None)
        return state

    def _quick_lookups(self, state: _State) -> QuickLookup:
        settings = self._settings
        if settings.tracing:
            return NoQuickLookups()
        level = state.calls.read_level(None)
        lend = partial(_Lent, self, state.lender)
        return QuickLookups(
            state.session, self._types, level, settings.timeout, lend, state.calls.discovery
        )

    def _new_state(self) -> _State:
        session = self._new_session()
        lender = Lender(session, len(self._settings.peers))
        context = Context(keys=identity(self._settings), make_room=lender.close_idle)
        lender.new_channel = partial(Channel, context, session)
        calls = Calls(self._settings, session, self._types)
        local = open_local_reads(self._settings, session, self._types)
        return _State(context, session, calls, local, lender)


class _Lent:
    """Lends a channel to the calling thread; keeps it for the next call unless it broke.

    A class, because a generator as context manager takes longer than sending a request.

    Args:
        pool: of the client.
        lender: of this process.
        deadline: of the call, by the wall clock of the session.
    """

    __slots__ = ("_channel", "_deadline", "_lender", "_pool")

    def __init__(self, pool: ChannelPool, lender: Lender, deadline: int) -> None:
        self._pool = pool
        self._lender = lender
        self._deadline = deadline

    def __enter__(self) -> Channel:
        lender = self._lender
        if self._pool.has_ended:
            raise ClosedError("the client was closed")
        try:
            channel = lender.idle.pop()
        except IndexError:
            channel = lender.open_or_wait(self._deadline)
        channel.thread = threading.get_ident()
        self._channel = channel
        return channel

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: object
    ) -> None:
        channel, lender = self._channel, self._lender
        if kind is not None and not issubclass(kind, DStashError):
            lender.discard(channel)  # interrupted in the middle of a message
            return
        idle = lender.idle
        if lender.waiting or len(idle) >= KEPT_CHANNELS:
            lender.give_back(channel)
        else:
            channel.thread = 0
            idle.append(channel)
            if lender.waiting:  # a call began to wait after the first look
                lender.serve()
        if self._pool.has_ended:  # ``close`` may have missed this channel
            lender.close()
            if kind is not None:
                raise ClosedError("the client was closed") from None
