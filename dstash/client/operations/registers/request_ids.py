"""Request ids: the home of a register applies each request once, however often it is sent.

A request id is a caller and a number (rule D6 of ``docs/atomic.md``). A caller has one request open
at a time; its numbers grow. A home compares the numbers of different callers, too, so all of them
come from the cluster clock.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dstash.client.session import Session
from dstash.version import Clock, Stamp

_CALLER_BYTES: Final = 8


class Caller(NamedTuple):
    """Sends one request at a time. ``clock`` is shared by the callers of a generation."""

    name: bytes
    clock: Clock

    def next_number(self) -> Stamp:
        """Return a number above all that this caller has used."""
        return self.clock.tick()

    def move_past(self, number: Stamp) -> None:
        """Make later numbers higher than ``number``."""
        self.clock.observe(number)


class _Generation(NamedTuple):
    """The callers of one process that share a clock, which never goes back."""

    process: int
    clock: Clock
    #: Callers without an open request. There is no lock: ``append`` and ``pop`` are atomic.
    idle: list[bytes]


class RequestIds:
    """The callers of one client.

    After a fork, the child takes new callers and a new clock. So does a client whose clock followed
    a peer whose clock was wrong: homes refuse numbers that are far ahead of their clocks.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._generation = self._new_generation()

    def take(self) -> Caller:
        """Return a caller without an open request."""
        generation = self._current()
        try:
            name = generation.idle.pop()
        except IndexError:
            name = self._session.random_bytes(_CALLER_BYTES)
        return Caller(name, generation.clock)

    def give_back(self, caller: Caller) -> None:
        """Take back a caller whose request is decided: no copy of it can be applied any more."""
        if caller.clock is self._generation.clock:
            self._generation.idle.append(caller.name)

    def _current(self) -> _Generation:
        session, generation = self._session, self._generation
        is_forked = generation.process != session.process()
        if is_forked or session.is_from_the_future(generation.clock.last):
            generation = self._generation = self._new_generation()
        return generation

    def _new_generation(self) -> _Generation:
        session = self._session
        return _Generation(session.process(), Clock(session.cluster_time), [])
