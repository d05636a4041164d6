"""Resolution of host names, on threads that handle no messages.

libzmq resolves a name on its only I/O thread: while DNS does not answer, all connections of the
process stall. Therefore libzmq gets numeric addresses only. Each name is resolved on its own
thread. The last good answer is kept and used at once while a new lookup runs.
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
from dstash.logger import Logger

_log = Logger("dstash.connections")

#: Seconds for which an answer, addresses or a failure, is used without a new lookup.
_FRESH_S: Final = 1.0

#: Shortest and longest pause before all addresses of a name are tried again.
_MIN_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 1.0

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
    """Return host and port of an endpoint; None if its host is not a name."""
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
    """Return the addresses of a name in the system's order of preference. May block.

    Raises:
        OSError: the name does not resolve.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def listening_places(endpoint: str) -> list[str]:
    """Return the numeric endpoints of an endpoint to listen on.

    Raises:
        UsageError: its host name does not resolve.
    """
    place = named_place(endpoint)
    if place is None:
        return [endpoint]
    try:
        return [place.at(number) for number in look_up(place.host)]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen on {endpoint}: {failure_of(place.host, error)}") from None


def failure_of(host: str, error: Exception) -> str:
    """Return the text of a failed lookup."""
    return f"the name {host!r} does not resolve ({getattr(error, 'strerror', None) or error})"


class Answer(NamedTuple):
    """The last good addresses of a name, and the failure of the last lookup, if it failed."""

    numbers: tuple[str, ...]
    failure: str = ""


class Resolver:
    """Resolves names, each on its own thread, and caches the answers.

    Any thread and any signal handler may call it: there is no lock. A lookup that hangs occupies
    one thread; no other lookup of that name begins meanwhile.

    Args:
        look_up: returns the addresses of a name, or raises OSError.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, look_up: LookUp = look_up, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look_up = look_up
        self._clock = clock
        self._answers: dict[str, Answer] = {}
        self._answered_at: dict[str, float] = {}
        #: By name, the functions to call when the running lookup ends.
        self._in_flight: dict[str, deque[Callable[[], None]]] = {}

    def known(self, host: str) -> Answer | None:
        """Return the last answer for a name; None if there is none yet."""
        return self._answers.get(host)

    def ask(self, host: str, on_answer: Callable[[], None]) -> Answer | None:
        """Return the last answer for a name, and resolve it again unless the answer is fresh.

        Args:
            host: the name.
            on_answer: called on another thread after a new lookup; not if the answer is fresh.
        """
        if self._clock() - self._answered_at.get(host, float("-inf")) > _FRESH_S:
            self._begin(host, on_answer)
        return self._answers.get(host)

    def forget_threads(self) -> None:
        """Discard running lookups after a fork: their threads exist in the parent only."""
        self._in_flight = {}

    def _begin(self, host: str, on_answer: Callable[[], None]) -> None:
        own = deque([on_answer])
        waiting = self._in_flight.setdefault(host, own)  # atomic: one caller begins the lookup
        if waiting is own:
            work = threads.thread(self._work, host, own, name=f"name {host}", may_end=lambda: True)
            work.start()
            return
        waiting.append(on_answer)
        if self._in_flight.get(host) is not waiting:  # it ended just now, perhaps unseen
            on_answer()

    def _work(self, host: str, waiting: deque[Callable[[], None]]) -> None:
        before = self._answers.get(host)
        try:
            answer = Answer(tuple(self._look_up(host)))
        except Exception as error:  # callers wait for an answer, so no exception may escape
            answer = Answer(before.numbers if before else (), failure_of(host, error))
        if answer.failure:
            _log.debug(answer.failure, name=host)
        else:
            _log.debug("name resolved", name=host, addresses=list(answer.numbers))
        self._answers[host] = answer
        self._answered_at[host] = self._clock()
        self._in_flight.pop(host, None)
        for on_answer in tuple(waiting):
            on_answer()


class Search:
    """The connection attempts to a peer whose address has a host name.

    A round tries all addresses of the name one after the other. During the first round messages
    wait; later they are refused until a connection is up, as for a numeric address.
    """

    def __init__(self, address: str, place: Place) -> None:
        self.address = address
        self.place = place
        self.waiting: list[list[bytes]] = []
        self.is_first_round = True
        self._untried: list[str] = []
        self._pause = _MIN_PAUSE_S
        self._not_before = 0.0

    def begin_round(self, answer: Answer) -> None:
        """Begin to try every address of an answer once."""
        self._untried = [self.place.at(number) for number in answer.numbers]

    def next_place(self) -> str | None:
        """Return the next endpoint to try; None at the end of a round."""
        return self._untried.pop(0) if self._untried else None

    def is_due(self, now: float) -> bool:
        """Whether another round may begin; ``now`` in seconds."""
        return now >= self._not_before

    def failed(self, now: float) -> None:
        """End a round. The pause before the next round grows."""
        self.is_first_round = False
        self.waiting.clear()
        self._not_before = now + self._pause
        self._pause = min(_MAX_PAUSE_S, 2 * self._pause)

    def succeeded(self) -> None:
        """End the first round: a connection is up."""
        self.is_first_round = False
        self._pause = _MIN_PAUSE_S


#: The resolver of this process.
RESOLVER: Final = Resolver()

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=RESOLVER.forget_threads)
