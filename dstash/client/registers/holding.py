"""Holding a register with a time to live: acquire, renew, release; see ``steps.py``.

A lock is such a register, a semaphore a group of them. The value names the holder, so that a holder
recognises a register of which it does not know whether its request created it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dstash.client.calls import Calls, steady
from dstash.client.operations.registers.arguments import check_version, new_ttl
from dstash.client.operations.registers.wanted import Wanted
from dstash.client.registers.leases import Lease, check_lease_ttl, check_seconds
from dstash.client.registers.names import check_name, key_within
from dstash.client.registers.steps import Pause, Place, Steps, lookup_entry
from dstash.errors import Conflict, DStashError, LimitError, TimedOut, Unavailable
from dstash.limits import Ttl
from dstash.types import Level
from dstash.wire.keys import Key
from dstash.wire.registers import ChangeKind

_MAX_PLACES: Final = 10_000
_HOLDER_BYTES: Final = 8
#: Pauses between attempts: they double from the first to the longest, less a random part.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.8
#: The shortest timeout of a call: a silent home costs a second before another replica is asked.
_SHORTEST_TIMEOUT_S: Final = 1.0
#: Timeout of a call that deletes what an interrupted acquisition has created, and of all of them.
_ABANDON_TIMEOUT_S: Final = 1.0
_ABANDON_LIMIT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Want:
    """What is to be held.

    Attributes:
        what: names it in errors.
        index: of the registers.
        keys: of which one is to be held.
        ttl: seconds.
        wait: seconds.
    """

    what: str
    index: str
    keys: Sequence[Key]
    ttl: float
    wait: float


def lock_want(index: str, name: Key, ttl: Ttl, wait: float) -> Want:
    """Return what a lock needs, with checked arguments."""
    check_name(name)
    ttl, wait = check_lease_ttl(ttl), check_seconds("wait", wait, 0)
    return Want(f"lock {name!r}", index, [name], ttl, wait)


def semaphore_want(index: str, name: Key, limit: int, ttl: Ttl, wait: float) -> Want:
    """Return what a place of a semaphore needs, with checked arguments."""
    check_name(name)
    ttl, wait = check_lease_ttl(ttl), check_seconds("wait", wait, 0)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= _MAX_PLACES:
        raise LimitError(f"limit is {limit!r}; allowed are integers from 1 to {_MAX_PLACES:,}")
    keys = [key_within(name, place) for place in range(limit)]
    return Want(f"a place of semaphore {name!r}", index, keys, ttl, wait)


class Held(NamedTuple):
    """A register that is held."""

    key: Key
    token: int
    lease: Lease


class Attempts:
    """The attempts of one acquisition."""

    def __init__(self, calls: Calls, want: Want) -> None:
        self.calls = calls
        self.want = want
        holder = calls.session.random_bytes(_HOLDER_BYTES)
        self.value = {"holder": f"{socket.gethostname()}:{os.getpid()}", "id": holder}
        self.until = steady() + want.wait
        #: The key of the latest request.
        self.latest: Key | None = None
        #: When a request was sent of which the outcome is unknown, by key.
        self.unknown: dict[Key, float] = {}

    def place(self, key: Key, timeout: float | None = None) -> Place:
        """Return the register of a key, with the timeout of a call."""
        seconds = _call_timeout(self.calls, self.want.ttl) if timeout is None else timeout
        return Place(self.calls, self.want.index, key, seconds)


def _call_timeout(calls: Calls, ttl: float) -> float:
    """Return the timeout of one call: that of the client, but at most a third of a lease."""
    return max(_SHORTEST_TIMEOUT_S, min(ttl / 3, calls.timeout))


def acquire(attempts: Attempts) -> Steps[Held]:
    """Create one of the registers.

    Raises:
        Conflict: others held all of them until the wait was over.
    """
    calls = attempts.calls
    number = 0
    while True:
        for key in (yield from _candidates(attempts)):
            held = yield from _try(attempts, key)
            if held is not None:
                return held
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * (1 << min(number, 10)))
        pause = longest * (1 - calls.session.random_share() / 2)
        left = attempts.until - steady()
        if left <= 0:
            raise (yield from _held_by_others(attempts))
        yield Pause(min(pause, left))
        number += 1


def _candidates(attempts: Attempts) -> Steps[Sequence[Key]]:
    """Return the keys to try, in random order: of several keys, those that seem to be free."""
    want, calls = attempts.want, attempts.calls
    if len(want.keys) == 1:
        return want.keys
    try:
        found = yield calls.lookup(want.index, want.keys, None, Level.QUORUM)
    except (TimedOut, Unavailable):
        if steady() >= attempts.until:
            raise
        return []
    ours = [key for key in attempts.unknown if key in found]
    free = [(calls.session.random_share(), key) for key in want.keys if key not in found]
    return ours + [key for _, key in sorted(free, key=lambda pair: pair[0])]


def _try(attempts: Attempts, key: Key) -> Steps[Held | None]:
    """Create a register; None if it exists, or if it is not known whether it was created."""
    asked, place, want = steady(), attempts.place(key), attempts.want
    attempts.latest = key
    try:
        wanted = Wanted(ChangeKind.PUT, new_ttl(want.ttl), expected=0, is_add=True)
        pairs = [(key, attempts.value)]
        result = yield place.calls.change("a lock", want.index, pairs, wanted, place.timeout)
        result.raise_first()
        if key in result.versions:
            return _held(want, key, result.versions[key], asked)
        if key not in attempts.unknown:
            return None
        entry = yield from lookup_entry(place)
        if entry is not None and entry.value == attempts.value:
            return _held(want, key, entry.version, attempts.unknown[key])
        del attempts.unknown[key]
    except TimedOut:
        attempts.unknown.setdefault(key, asked)
        if steady() >= attempts.until:
            raise
    except Unavailable:
        if steady() >= attempts.until:
            raise
    return None


def abandon(attempts: Attempts) -> Steps[None]:
    """Delete what an interrupted acquisition may have created, the latest first.

    Each call may take a second, and no key is begun after three. What is left then expires.
    """
    until = steady() + _ABANDON_LIMIT_S
    latest = () if attempts.latest is None else (attempts.latest,)
    for key in dict.fromkeys((*latest, *attempts.unknown)):
        if steady() >= until:
            return
        place = attempts.place(key, _ABANDON_TIMEOUT_S)
        with suppress(DStashError):  # the home of another key may answer
            entry = yield from lookup_entry(place)
            if entry is not None and entry.value == attempts.value:
                yield from _delete(place, entry.version)


def _delete(place: Place, version: int) -> Steps[Any]:
    """Delete a register that has a version."""
    wanted = Wanted(ChangeKind.DELETE, expected=check_version(version))
    result: Any = yield place.calls.change(
        "a lock", place.index, [(place.key, None)], wanted, place.timeout
    )
    result.raise_first()
    return result


def _held(want: Want, key: Key, token: int, asked: float) -> Held:
    lease = Lease(want.what, want.ttl)
    lease.begin(asked)
    return Held(key, token, lease)


def _held_by_others(attempts: Attempts) -> Steps[Conflict]:
    """Return the error for an acquisition that others prevented."""
    want = attempts.want
    text, version = f"{want.what} is held by others", 0
    if len(want.keys) == 1:
        entry = yield from lookup_entry(attempts.place(want.keys[0]))
        if entry is not None and isinstance(entry.value, dict):
            text = f"{want.what} is held by {entry.value.get('holder')}"
            version = entry.version
    return Conflict(f"{text}; waited {want.wait:g} s", version=version)


def renew(calls: Calls, index: str, held: Held) -> Steps[None]:
    """Renew a register, once; the lease says what came of it."""
    lease, asked = held.lease, steady()
    # A long lease must not make the holder wait for an answer when it releases.
    timeout = min(lease.left(asked), max(_SHORTEST_TIMEOUT_S, calls.timeout))
    if timeout <= 0:
        return
    wanted = Wanted(ChangeKind.TOUCH, new_ttl(lease.ttl), expected=check_version(held.token))
    try:
        result = yield calls.change("a lock", index, [(held.key, None)], wanted, timeout)
        result.raise_first()
    except Conflict:
        lease.lose("it expired, or was deleted")
    except DStashError as error:
        if not error.retryable:
            lease.lose(str(error))
        lease.retry(steady())
    else:
        if result.version_of(held.key):
            lease.begin(asked)
        else:
            lease.lose("it expired, or was deleted")


def release(calls: Calls, index: str, held: Held) -> Steps[None]:
    """Delete a register that is held.

    Raises:
        LockLost: it was not held any more.
    """
    lease = held.lease
    lease.check(steady())
    try:
        place = Place(calls, index, held.key, _call_timeout(calls, lease.ttl))
        yield from _delete(place, held.token)
    except Conflict:
        lease.lose("it expired, or was deleted")
        lease.check(steady())


#: Returns the source of operations; another one after a fork.
FindCalls = Callable[[], Calls]
