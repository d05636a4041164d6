"""Whether a history of calls on one register is linearizable.

The algorithm is that of Wing and Gong, "Testing and Verifying Concurrent Objects" (1993), with the
memory of Lowe, "Testing for linearizability" (2017): a set of calls and a state are examined once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

#: The answer of a call whose outcome is unknown: it may have had its effect, at any time since.
UNKNOWN = object()
#: The value of an absent register.
ABSENT = None


@dataclass(frozen=True)
class Call:
    """One call.

    ``kind`` and ``argument``: ``read``; ``put`` (value; answers None); ``add`` (value; whether it
    was absent); ``swap`` (value; the value before); ``compare`` ((expected, value); whether it was
    as expected); ``increment`` (amount; the value after); ``delete`` (whether it existed).
    ``version``: the version of the value that it stored; 0 if it stored none, or that is unknown.
    """

    began: float
    ended: float
    kind: str
    argument: Any = None
    answer: Any = UNKNOWN
    version: int = 0

    @property
    def is_unknown(self) -> bool:
        """Whether its outcome is unknown."""
        return self.answer is UNKNOWN


class Effect(NamedTuple):
    """What a call does to a value: the value after it, and its answer."""

    value: Any
    answer: Any


def effect(kind: str, argument: Any, value: Any) -> Effect:
    """Return what a call does."""
    if kind == "read":
        return Effect(value, value)
    if kind == "put":
        return Effect(argument, None)
    if kind == "add":
        return Effect(argument, True) if value is ABSENT else Effect(value, False)
    if kind == "swap":
        return Effect(argument, value)
    if kind == "compare":
        expected, wanted = argument
        return Effect(wanted, True) if value == expected else Effect(value, False)
    if kind == "increment":
        return Effect((value or 0) + argument, (value or 0) + argument)
    if kind == "delete":
        return Effect(ABSENT, value is not ABSENT)
    raise ValueError(f"unknown kind of call {kind!r}")


def is_linearizable(calls: Sequence[Call], value: Any = ABSENT) -> bool:
    """Whether some order of the calls explains all answers, and respects real time.

    Args:
        calls: on one register, in any order. Those with an unknown outcome may have had no effect.
        value: of the register at the beginning; values must be hashable.
    """
    ordered = sorted(calls, key=lambda call: call.began)
    ends = [inf if call.is_unknown else call.ended for call in ordered]
    required = sum(1 << place for place, call in enumerate(ordered) if not call.is_unknown)
    seen = {(0, value)}
    stack = [(0, value)]
    while stack:
        done, value = stack.pop()
        if done & required == required:
            return True
        for place in _minimal(ordered, ends, done):
            call = ordered[place]
            after = effect(call.kind, call.argument, value)
            if not call.is_unknown and after.answer != call.answer:
                continue
            state = (done | 1 << place, after.value)
            if state not in seen:
                seen.add(state)
                stack.append(state)
    return False


def _minimal(ordered: Sequence[Call], ends: Sequence[float], done: int) -> Iterator[int]:
    """Yield the places of calls that no other remaining call precedes in real time."""
    first_end = min(end for place, end in enumerate(ends) if not done >> place & 1)
    for place, call in enumerate(ordered):
        if call.began > first_end:
            return
        if not done >> place & 1:
            yield place
