"""The checker of histories, compared with trying every order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.linearizability import UNKNOWN, Call, effect, is_linearizable

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
