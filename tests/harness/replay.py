"""Whether the versions of a history of calls on one register explain its answers.

It is the second of two judges: ``linearizability.py`` searches for an order and knows no versions.
Here the order is that of the versions: it is replayed, and every other call must fit between two of
them. Without unknown outcomes, a history that passes is linearizable. A call with an unknown
outcome may have had its effect in several gaps, so with them this judge misses some errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf
from typing import Any

from tests.harness.linearizability import ABSENT, Call, effect


def contradiction(calls: Sequence[Call], value: Any = ABSENT) -> str:
    """Return what the versions do not explain; empty if they explain all answers.

    Args:
        calls: on one register. Those that changed it have a version, unless their outcome is
            unknown.
        value: of the register at the beginning; values must be hashable.
    """
    changes = sorted((call for call in calls if call.version), key=lambda call: call.version)
    unknown = [call for call in calls if call.is_unknown]
    others = [call for call in calls if not call.version and not call.is_unknown]
    for before, after in pairwise(changes):
        if before.version == after.version:
            return f"{before} and {after} have the same version"
    latest = -inf
    for change in changes:
        if change.ended < latest:
            return f"{change} ended before a change with a lower version began"
        latest = max(latest, change.began)
    states = [value]
    for change in changes:
        if not any(
            effect(change.kind, change.argument, before).answer == change.answer
            for before in _possible(states[-1], unknown, change)
        ):
            return f"the answer of {change} does not fit to the version before it"
        states.append(_stored(change))
    return _misplaced(changes, states, unknown, others)


def _stored(change: Call) -> Any:
    """Return the value that a change stored."""
    if change.kind == "increment":
        return change.answer
    if change.kind == "compare":
        return change.argument[1]
    return ABSENT if change.kind == "delete" else change.argument


def _possible(value: Any, unknown: Sequence[Call], seen_by: Call) -> set[Any]:
    """Return the values that a call may meet after a version: calls may have come between."""
    between = [call for call in unknown if call.began <= seen_by.ended]
    reached = {value}
    for _ in between:
        more = {effect(call.kind, call.argument, met).value for call in between for met in reached}
        if more <= reached:
            break
        reached |= more
    return reached


def _misplaced(
    changes: Sequence[Call], states: Sequence[Any], unknown: Sequence[Call], others: Sequence[Call]
) -> str:
    """Return the first call without a version that fits nowhere, taking the earliest places."""
    places: list[tuple[float, int]] = []
    for call in sorted(others, key=lambda call: call.began):
        first = max((place for ended, place in places if ended < call.began), default=0)
        for place in _places(changes, call, first):
            if any(
                effect(call.kind, call.argument, met) == (met, call.answer)
                for met in _possible(states[place], unknown, call)
            ):
                places.append((call.ended, place))
                break
        else:
            return f"{call} fits nowhere between the versions"
    return ""


def _places(changes: Sequence[Call], call: Call, first: int) -> Iterator[int]:
    """Yield the numbers of changes that may have come before a call, by real time."""
    before = [number for number, change in enumerate(changes, 1) if change.ended < call.began]
    after = [number for number, change in enumerate(changes) if change.began > call.ended]
    yield from range(max([first, *before]), min([*after, len(changes)]) + 1)
