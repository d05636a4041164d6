"""Host names as numbers, looked up apart from the threads that move messages.

libzmq resolves a name in its one I/O thread: while DNS does not answer, no connection of the
process moves. So libzmq is given numbers only. A name is looked up on a thread of its own; its last
good answer is kept and used at once, while a new answer is on its way.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from dstash import threads
from dstash.errors import UsageError

#: How long (seconds) an answer is good without another look, be it addresses or a failure.
_FRESH: Final = 1.0

_TCP: Final = re.compile(r"tcp://(\[[^\]]*\]|[^:/\s]+):(\d+|\*)")

LookUp = Callable[[str], list[str]]


class Place(NamedTuple):
    """A TCP endpoint whose host is a name."""

    host: str
    port: str

    def at(self, number: str) -> str:
        """Return the endpoint at one of the host's addresses."""
        bracketed = f"[{number}]" if ":" in number else number
        return f"tcp://{bracketed}:{self.port}"


def named_place(endpoint: str) -> Place | None:
    """Return host and port of an endpoint, or None when there is no name in it to look up."""
    found = _TCP.fullmatch(endpoint)
    if found is None or _is_number(found[1].strip("[]")) or found[1] == "*":
        return None
    return Place(found[1], found[2])


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def look_up(host: str) -> list[str]:
    """Return the addresses of a name in the system's order of preference; it may block.

    Raises:
        OSError: there is none.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def listening_places(endpoint: str) -> list[str]:
    """Return the numeric endpoints that an endpoint to listen on may mean.

    Raises:
        UsageError: its name does not resolve.
    """
    place = named_place(endpoint)
    if place is None:
        return [endpoint]
    try:
        return [place.at(number) for number in look_up(place.host)]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen on {endpoint}: {failure_of(place.host, error)}") from None


def failure_of(host: str, error: Exception) -> str:
    """Return why a name has no address, for people."""
    return f"the name {host!r} does not resolve ({getattr(error, 'strerror', None) or error})"


class Answer(NamedTuple):
    """The addresses of a name, the last good ones if the last look-up failed; and why it failed."""

    numbers: tuple[str, ...]
    failure: str = ""


class Resolver:
    """Looks names up, each on a thread of its own, and remembers the answers.

    Any thread may call it, and a signal handler too: there is no lock. A look-up that hangs keeps
    its one thread, and no other look-up of that name begins meanwhile.

    Args:
        look_up: returns the addresses of a name, or raises OSError.
        clock: returns seconds, never going back.
    """

    def __init__(
        self, look_up: LookUp = look_up, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look_up = look_up
        self._clock = clock
        self._answers: dict[str, Answer] = {}
        self._answered_at: dict[str, float] = {}
        #: By name, what to call when the look-up that is in flight has ended.
        self._in_flight: dict[str, deque[Callable[[], None]]] = {}

    def known(self, host: str) -> Answer | None:
        """Return the last answer for a name; None while there is none."""
        return self._answers.get(host)

    def ask(self, host: str, heard: Callable[[], None]) -> Answer | None:
        """Return what is known of a name, and look it up again unless that is fresh.

        Args:
            host: the name.
            heard: called on another thread when there is a new answer; not if the last is fresh.
        """
        if self._clock() - self._answered_at.get(host, float("-inf")) > _FRESH:
            self._begin(host, heard)
        return self._answers.get(host)

    def forget_threads(self) -> None:
        """Take note that the process was forked: look-ups in flight stayed in the parent."""
        self._in_flight = {}

    def _begin(self, host: str, heard: Callable[[], None]) -> None:
        mine = deque([heard])
        waiting = self._in_flight.setdefault(host, mine)  # atomic: one caller begins the look-up
        if waiting is mine:
            work = threads.thread(self._work, host, mine, name=f"name {host}", may_end=lambda: True)
            work.start()
            return
        waiting.append(heard)
        if self._in_flight.get(host) is not waiting:  # it ended just now, perhaps without a look
            heard()

    def _work(self, host: str, waiting: deque[Callable[[], None]]) -> None:
        before = self._answers.get(host)
        try:
            answer = Answer(tuple(self._look_up(host)))
        except Exception as error:  # whatever a resolver raises, callers wait for an answer
            answer = Answer(before.numbers if before else (), failure_of(host, error))
        self._answers[host] = answer
        self._answered_at[host] = self._clock()
        self._in_flight.pop(host, None)
        for heard in tuple(waiting):
            heard()


#: The resolver of this process.
RESOLVER: Final = Resolver()

os.register_at_fork(after_in_child=RESOLVER.forget_threads)
