"""Calls on registers as generators, so that both clients run the same code.

A generator yields an operation and receives its result, or its error; or it yields a ``Pause``. It
returns the result of the call. ``run_steps`` and ``run_steps_async`` drive it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from dstash.client.calls import Calls
from dstash.client.operations.base import Operation
from dstash.client.operations.registers.arguments import (
    check_amounts,
    check_fence,
    check_version,
    kept_ttl,
    new_ttl,
)
from dstash.client.operations.registers.wanted import Wanted
from dstash.client.results import ChangeResult, Entry
from dstash.errors import Conflict, DStashError, UsageError
from dstash.limits import Ttl
from dstash.wire.keys import Key
from dstash.wire.registers import MISSING, ChangeKind

T = TypeVar("T")

#: A default that was not given, or a value that does not exist.
NOT_GIVEN: Final = object()

#: The longest pause after a lost race, in seconds; pauses double up to it.
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.2

_ASYNC_FUNCTION: Final = (
    "change is an async function; allowed is a plain function that returns the new value"
)


class Pause(NamedTuple):
    """A pause of a call."""

    seconds: float


Steps = Generator[Operation | Pause, Any, T]


def run_steps(steps: Steps[T], run: Callable[[Operation], Any]) -> T:
    """Drive a call of a blocking client; ``run`` runs an operation."""
    answer: Any = None
    try:
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                answer = None
            else:
                try:
                    answer = run(step)
                except DStashError as error:
                    step = steps.throw(error)
                    continue
            step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def run_steps_async(steps: Steps[T], run: Callable[[Operation], Awaitable[Any]]) -> T:
    """Drive a call of an asyncio client; ``run`` runs an operation."""
    import asyncio  # slow to load, and blocking clients do not need it

    answer: Any = None
    try:
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                answer = None
            else:
                try:
                    answer = await run(step)
                except DStashError as error:
                    step = steps.throw(error)
                    continue
            step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


@dataclass(frozen=True, slots=True)
class Place:
    """A register that a call changes, and how long the call may take.

    Attributes:
        calls: creates operations.
        index: of the register.
        key: of the register.
        timeout: seconds for the whole call; None for the setting.
        fence: a fencing token, or None.
    """

    calls: Calls
    index: str
    key: Key
    timeout: float | None = None
    fence: int | None = None


def _change(
    place: Place, what: str, kind: ChangeKind, value: Any = None, **wanted: Any
) -> Steps[ChangeResult]:
    """Change a register; raise the error if it was not changed."""
    wish = Wanted(kind, fence=check_fence(place.fence), **wanted)
    pairs = [(place.key, value)]
    result: ChangeResult = yield place.calls.change(what, place.index, pairs, wish, place.timeout)
    result.raise_first()
    return result


def add(place: Place, value: Any, ttl: Ttl | None) -> Steps[bool]:
    """Store a value if the key does not exist; return whether this call stored it."""
    result = yield from _change(
        place, "add", ChangeKind.PUT, value, ttl=new_ttl(ttl), expected=MISSING, is_add=True
    )
    return place.key in result.versions


def compare_and_set(place: Place, value: Any, version: int, ttl: Ttl | None) -> Steps[int]:
    """Store a value if the key has a version; return the new version."""
    expected = check_version(version, MISSING)
    result = yield from _change(
        place, "compare_and_set", ChangeKind.PUT, value, ttl=kept_ttl(ttl), expected=expected
    )
    return result.versions[place.key]


def get_and_set(place: Place, value: Any, default: Any, ttl: Ttl | None) -> Steps[Any]:
    """Store a value; return the value before."""
    result = yield from _change(place, "get_and_set", ChangeKind.SWAP, value, ttl=kept_ttl(ttl))
    return place.calls.value_of(place.key, result, default)


def pop(place: Place, default: Any) -> Steps[Any]:
    """Delete a key; return the value that it had."""
    result = yield from _change(place, "pop", ChangeKind.POP)
    if place.key in result.values:
        return place.calls.value_of(place.key, result, default)
    if default is NOT_GIVEN:
        raise KeyError(place.key)
    return default


def increment(
    place: Place,
    by: int,
    initial: int,
    bounds: tuple[int | None, int | None],
    ttl: Ttl | None,
) -> Steps[int]:
    """Add to an integer; return the sum."""
    amounts = check_amounts(by, initial, *bounds)
    result = yield from _change(
        place, "increment", ChangeKind.INCREMENT, ttl=kept_ttl(ttl), amounts=amounts
    )
    total: int = result.values[place.key]
    return total


def decrement(
    place: Place,
    by: int,
    initial: int,
    bounds: tuple[int | None, int | None],
    ttl: Ttl | None,
) -> Steps[int]:
    """Subtract from an integer; return the difference."""
    amounts = check_amounts(by, initial, *bounds)
    return increment(place, -amounts.amount, initial, bounds, ttl)


def touch(place: Place, ttl: Ttl | None, version: int | None) -> Steps[bool]:
    """Set the time to live of a key; return whether it exists."""
    condition = {} if version is None else {"expected": check_version(version)}
    what = "touch with a version" if place.fence is None else "touch with a fencing token"
    result = yield from _change(place, what, ChangeKind.TOUCH, ttl=new_ttl(ttl), **condition)
    return bool(result.version_of(place.key))


def lookup_entry(place: Place, what: str = "lookup_entry") -> Steps[Entry | None]:
    """Read a register with its version and time to live; errors name the call ``what``."""
    found = yield place.calls.entries(what, place.index, [place.key], place.timeout)
    return place.calls.entry_of(place.key, found.get(place.key))


def update(place: Place, change: Callable[[Any], Any], default: Any, ttl: Ttl | None) -> Steps[Any]:
    """Replace the value of a key by a function of it, until no other change comes between."""
    if inspect.iscoroutinefunction(change):
        raise UsageError(_ASYNC_FUNCTION)
    session = place.calls.session
    deadline = place.calls.deadline(place.timeout)
    attempt = 0
    while True:
        left = Place(
            place.calls,
            place.index,
            place.key,
            max(1, deadline - session.wall()) / 1000,
            place.fence,
        )
        entry = yield from lookup_entry(left, "update")
        if entry is None and default is NOT_GIVEN:
            raise KeyError(place.key)
        value = change(default if entry is None else entry.value)
        if inspect.iscoroutine(value):
            value.close()  # else Python warns that it was never awaited
            raise UsageError(_ASYNC_FUNCTION)
        version = MISSING if entry is None else entry.version
        try:
            yield from compare_and_set(left, value, version, ttl)
        except Conflict as error:
            if error.details.get("version") == version:
                raise  # the fencing token is too low, and remains so
            pause = lost_race_pause(place.calls, attempt)
            if session.wall() + pause.seconds * 1000 >= deadline:
                raise
            yield pause
            attempt += 1
        else:
            return value


def lost_race_pause(calls: Calls, attempt: int) -> Pause:
    """Return a random pause, so that those who lost a race do not meet again."""
    longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * (1 << min(attempt, 10)))
    return Pause(longest * calls.session.random_share())
