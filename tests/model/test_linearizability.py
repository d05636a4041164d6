"""The two checkers of histories, compared with each other and with trying every order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.linearizability import UNKNOWN, Call, effect, is_linearizable
from tests.harness.replay import contradiction

values = st.integers(1, 3)
kinds = st.one_of(
    st.tuples(st.just("read"), st.none()),
    st.tuples(st.sampled_from(["put", "add", "swap", "increment"]), values),
    st.tuples(st.just("compare"), st.tuples(st.none() | values, values)),
    st.tuples(st.just("delete"), st.none()),
)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    began = draw(st.integers(0, 8))
    kind, argument = draw(kinds)
    answers = st.none() | st.booleans() | st.integers(1, 4)
    answer = draw(st.just(UNKNOWN) | answers)
    return Call(began, began + draw(st.integers(0, 4)), kind, argument, answer)


@st.composite
def likely_histories(draw: st.DrawFn) -> list[Call]:
    """Return calls with the answers of some order, which most often overlap in time."""
    value: Any = None
    history = []
    for number in range(draw(st.integers(1, 5))):
        kind, argument = draw(kinds)
        value, answer = effect(kind, argument, value)
        began = number * 2 - draw(st.integers(0, 6))
        ended = number * 2 + draw(st.integers(0, 6))
        history.append(
            Call(began, ended, kind, argument, draw(st.sampled_from([answer, answer, UNKNOWN])))
        )
    return history


def is_explained(history: Sequence[Call]) -> bool:
    """Whether some order of some of the calls explains the history."""
    unknown = [call for call in history if call.is_unknown]
    known = [call for call in history if not call.is_unknown]
    return any(
        is_explained_by(order)
        for size in range(len(unknown) + 1)
        for chosen in combinations(unknown, size)
        for order in permutations([*known, *chosen])
    )


def is_explained_by(order: Sequence[Call]) -> bool:
    value = None
    for place, call in enumerate(order):
        if any(not later.is_unknown and later.ended < call.began for later in order[place + 1 :]):
            return False
        value, answer = effect(call.kind, call.argument, value)
        if not call.is_unknown and answer != call.answer:
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(st.lists(calls(), max_size=5) | likely_histories())
def test_checker_agrees_with_every_order(history: list[Call]) -> None:
    assert is_linearizable(history) == is_explained(history)


@settings(max_examples=50, deadline=None)
@given(likely_histories())
def test_history_of_sequential_calls_is_accepted(history: list[Call]) -> None:
    assert is_linearizable(history)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        # Two increments that both saw nothing.
        ([Call(0, 5, "increment", 1, 1), Call(1, 5, "increment", 1, 1)], False),
        ([Call(0, 5, "increment", 1, 1), Call(1, 5, "increment", 1, 2)], True),
        # A read that goes back in time.
        ([Call(0, 1, "put", 1, None), Call(2, 3, "read", None, None)], False),
        ([Call(0, 2, "put", 1, None), Call(2, 3, "read", None, None)], True),
        # An unknown write is seen, and later not.
        (
            [Call(0, 1, "put", 1), Call(2, 3, "read", None, 1), Call(4, 5, "read", None, None)],
            False,
        ),
        # An unknown write takes effect long after its end.
        (
            [Call(0, 1, "put", 1), Call(2, 3, "read", None, None), Call(4, 5, "read", None, 1)],
            True,
        ),
        # An unknown write that began after a read cannot explain it.
        ([Call(4, 5, "put", 1), Call(2, 3, "read", None, 1)], False),
        # Two calls add the same key.
        ([Call(0, 9, "add", 1, True), Call(0, 9, "add", 2, True)], False),
        ([Call(0, 9, "add", 1, True), Call(0, 9, "add", 2, False)], True),
    ],
)
def test_history_is_judged(history: list[Call], expected: bool) -> None:
    assert is_linearizable(history) is expected


def versioned(history: Sequence[Call], versions: Sequence[int]) -> list[Call]:
    """Give a version to each call that stored a value."""
    return [
        replace(call, version=version) if stores(call) else call
        for call, version in zip(history, versions, strict=False)
    ]


def stores(call: Call) -> bool:
    """Whether a call is known to have stored a value, or to have deleted one."""
    if call.is_unknown or call.kind == "read":
        return False
    return call.kind in ("put", "swap", "increment") or call.answer == 1  # or True, its equal


def in_order(history: Sequence[Call]) -> list[Call]:
    """Give versions that grow with the places of the calls."""
    return versioned(history, range(1, len(history) + 1))


@settings(max_examples=150, deadline=None)
@given(likely_histories())
def test_replay_explains_the_order_that_made_the_history(history: list[Call]) -> None:
    assert contradiction(in_order(history)) == ""


@settings(max_examples=300, deadline=None)
@given(st.lists(calls(), max_size=5) | likely_histories(), st.permutations(range(1, 6)))
def test_replayed_history_without_unknown_outcomes_is_linearizable(
    history: list[Call], versions: list[int]
) -> None:
    known = [call for call in history if not call.is_unknown]
    if contradiction(versioned(known, versions)) == "":
        assert is_linearizable(known)


@settings(max_examples=300, deadline=None)
@given(st.lists(calls(), min_size=1, max_size=4) | likely_histories())
def test_linearizable_history_is_explained_by_some_order_of_versions(
    history: list[Call],
) -> None:
    known = [call for call in history if not call.is_unknown]
    numbers = range(1, len(known) + 1)
    explained = any(
        contradiction(versioned(known, versions)) == "" for versions in permutations(numbers)
    )
    assert explained == is_linearizable(known)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([Call(0, 1, "put", 1, None, 5), Call(2, 3, "put", 2, None, 5)], "have the same version"),
        (
            [Call(0, 1, "put", 1, None, 6), Call(2, 3, "put", 2, None, 5)],
            "with a lower version began",
        ),
        (
            [Call(0, 1, "put", 1, None, 5), Call(2, 3, "swap", 2, 3, 6)],
            "does not fit to the version",
        ),
        ([Call(0, 1, "put", 1, None, 5), Call(2, 3, "read", None, None)], "fits nowhere"),
        # Reads that see two values in turn, of which each was stored once.
        (
            [
                Call(0, 1, "put", 1, None, 5),
                Call(0, 9, "put", 2, None, 6),
                Call(2, 3, "read", None, 2),
                Call(4, 5, "read", None, 1),
            ],
            "fits nowhere",
        ),
        # A read sees what an unknown call may have stored, and not what began later.
        ([Call(0, 1, "put", 1), Call(2, 3, "read", None, 1)], ""),
        ([Call(4, 5, "put", 1), Call(2, 3, "read", None, 1)], "fits nowhere"),
    ],
)
def test_replay_judges(history: list[Call], expected: str) -> None:
    found = contradiction(history)
    assert expected in found if expected else not found
