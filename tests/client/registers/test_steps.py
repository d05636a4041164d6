"""Calls on registers, against a home in memory."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest

from dstash.client.registers import batches, steps
from dstash.client.registers.steps import NOT_GIVEN, Place
from dstash.errors import (
    AnswerLost,
    BatchError,
    Busy,
    Conflict,
    DStashError,
    LimitError,
    TimedOut,
    UsageError,
)
from dstash.types import Outcome
from dstash.wire.registers import Change
from dstash.wire.shapes import Message
from tests.client.registers.home import Home

NO_BOUNDS = (None, None)


@pytest.fixture
def home() -> Home:
    return Home()


def at(home: Home, key: Any = "k", index: str = "@i", **options: Any) -> Place:
    return Place(home.calls, index, key, **options)


def read(home: Home, key: str = "k") -> Any:
    """Return (value, version, ttl) of a key, or None."""
    return home.drive(steps.lookup_entry(at(home, key)))


def test_add_stores_a_value_once(home: Home) -> None:
    assert home.drive(steps.add(at(home), {"a": 1}, None)) is True
    assert home.drive(steps.add(at(home), 2, None)) is False
    assert read(home).value == {"a": 1}


def test_compare_and_set_needs_the_version_of_the_last_change(home: Home) -> None:
    first = home.drive(steps.compare_and_set(at(home), 1, 0, None))
    second = home.drive(steps.compare_and_set(at(home), 2, first, None))
    assert read(home) == (2, second, None)
    for wrong in (first, 0):
        with pytest.raises(Conflict) as caught:
            home.drive(steps.compare_and_set(at(home), 3, wrong, None))
        assert caught.value.details == {"version": second}
    assert read(home).value == 2


def test_get_and_set_returns_the_value_before(home: Home) -> None:
    assert home.drive(steps.get_and_set(at(home), None, "default", None)) == "default"
    assert home.drive(steps.get_and_set(at(home), 2, "default", None)) is None
    assert home.drive(steps.get_and_set(at(home), 3, "default", None)) == 2


def test_pop_returns_the_value_and_deletes_it(home: Home) -> None:
    home.drive(steps.add(at(home), None, None))
    assert home.drive(steps.pop(at(home), NOT_GIVEN)) is None
    assert home.drive(steps.pop(at(home), "default")) == "default"
    with pytest.raises(KeyError, match="k"):
        home.drive(steps.pop(at(home), NOT_GIVEN))


def test_increment_and_decrement_stay_in_their_bounds(home: Home) -> None:
    def add(by: int, bounds: tuple[int | None, int | None] = NO_BOUNDS) -> int:
        return home.drive(steps.increment(at(home), by, 10, bounds, None))

    assert [add(1), add(5), add(-2)] == [11, 16, 14]
    assert home.drive(steps.decrement(at(home), 4, 0, NO_BOUNDS, None)) == 10
    with pytest.raises(Conflict, match="the sum would be out of its bounds"):
        add(1, (None, 10))
    with pytest.raises(Conflict, match="the sum would be out of its bounds"):
        home.drive(steps.decrement(at(home), 1, 0, (10, None), None))
    with pytest.raises(Conflict, match=r"'k' of index '@i' .* leave the range of 64-bit integers$"):
        add(2**63 - 1)
    with pytest.raises(Conflict, match=r"out of its bounds \(at_least is 0\), or of 64 bits$"):
        add(2**63 - 1, (0, None))
    with pytest.raises(Conflict, match=r"out of its bounds \(at_least is 0, at_most is 9\)$"):
        add(2**63 - 1, (0, 9))
    home.drive(steps.get_and_set(at(home), "text", None, None))
    with pytest.raises(UsageError, match=r"^key 'k' of index '@i': the value is not an integer"):
        add(1)


def test_changes_keep_the_time_to_live_unless_one_is_given(home: Home) -> None:
    home.drive(steps.add(at(home), 1, 60))
    home.drive(steps.increment(at(home), 1, 0, NO_BOUNDS, None))
    assert read(home).ttl == 60
    home.drive(steps.increment(at(home), 1, 0, NO_BOUNDS, 30))
    assert read(home).ttl == 30


def test_touch_changes_the_time_to_live_only(home: Home) -> None:
    assert home.drive(steps.touch(at(home), 60, None)) is False
    home.drive(steps.add(at(home), 1, None))
    version = read(home).version
    assert home.drive(steps.touch(at(home), 60, version)) is True
    assert home.drive(steps.touch(at(home), 60, None)) is True  # the same expiry
    assert read(home) == (1, version, 60)
    assert home.drive(steps.touch(at(home), None, None)) is True
    assert read(home).ttl is None
    with pytest.raises(Conflict):
        home.drive(steps.touch(at(home), 60, version + 1))


def test_lower_fencing_token_is_refused(home: Home) -> None:
    home.drive(steps.get_and_set(at(home, fence=7), 1, None, None))
    with pytest.raises(Conflict, match="a fencing token above 6"):
        home.drive(steps.get_and_set(at(home, fence=6), 2, None, None))
    home.drive(steps.get_and_set(at(home, fence=7), 3, None, None))
    assert read(home).value == 3


class TestUpdate:
    def test_function_is_called_again_after_another_change(self, home: Home) -> None:
        home.drive(steps.add(at(home), [1], None))
        seen = []

        def change(present: list[int]) -> list[int]:
            seen.append(present)
            if len(seen) == 1:
                home.drive(steps.get_and_set(at(home), [1, 2], None, None))
            return [*present, 3]

        assert home.drive(steps.update(at(home), change, NOT_GIVEN, None)) == [1, 2, 3]
        assert seen == [[1], [1, 2]]
        assert len(home.pauses) == 1

    def test_default_stands_for_a_missing_key(self, home: Home) -> None:
        with pytest.raises(KeyError, match="k"):
            home.drive(steps.update(at(home), lambda present: present, NOT_GIVEN, None))
        assert home.drive(steps.update(at(home), lambda present: present + 1, 5, None)) == 6

    def test_fencing_token_that_is_too_low_is_a_conflict_at_once(self, home: Home) -> None:
        home.drive(steps.get_and_set(at(home, fence=7), 1, None, None))
        seen: list[Any] = []
        low = at(home, fence=6)
        with pytest.raises(Conflict, match=r"key 'k' of index '@i' was .* fencing token above 6"):
            home.drive(steps.update(low, lambda value: seen.append(value), NOT_GIVEN, None))
        assert (seen, home.pauses) == ([1], [])
        home.drive(steps.pop(at(home), NOT_GIVEN))
        with pytest.raises(Conflict, match="a fencing token above 6"):
            home.drive(steps.update(low, lambda value: value, 0, None))
        assert home.pauses == []

    def test_coroutine_as_the_new_value_is_refused(self, home: Home) -> None:
        async def change(present: int) -> int:
            return present

        with pytest.raises(UsageError, match=r"^change is an async function; allowed is a plain"):
            home.drive(steps.update(at(home), lambda value: change(value), 0, None))
        assert home.states == {}

    def test_conflicts_until_the_deadline_are_an_error(self, home: Home) -> None:
        def change(present: int) -> int:
            home.now += 400
            home.drive(steps.get_and_set(at(home), present + 1, None, None))
            return 0

        with pytest.raises(Conflict):
            home.drive(steps.update(at(home, timeout=2), change, 0, None))
        assert read(home).value > 0


class TestBatches:
    def test_add_reports_keys_that_existed(self, home: Home) -> None:
        home.drive(steps.add(at(home, "b"), 0, None))
        version = read(home, "b").version
        result = home.drive(batches.add(home.calls, "@i", {"a": 1, "b": 2}, None, None))
        assert (result.ok, result.stored, result.unchanged) == (True, 1, {"b": version})
        assert result.versions == {"a": read(home, "a").version}
        assert read(home, "b").value == 0

    def test_compare_and_set_has_an_outcome_for_each_key(self, home: Home) -> None:
        first = home.drive(batches.add(home.calls, "@i", {"a": 1, "b": 2}, None, None)).versions
        entries = {"a": (10, first["a"]), "b": (20, first["b"] + 1), "c": (30, 0)}
        result = home.drive(batches.compare_and_set(home.calls, "@i", entries, None, None))
        assert set(result.versions) == {"a", "c"}
        assert result.outcomes == {"b": Outcome.FAILED}
        assert isinstance(result.errors["b"], Conflict)
        with pytest.raises(BatchError, match="key 'b' of index '@i' has version"):
            result.raise_for_failures()

    def test_increment_returns_the_sums(self, home: Home) -> None:
        limits = batches.Limits(0, None, 5)
        result = home.drive(
            batches.increment(home.calls, "@i", {"a": 2, "b": 9}, limits, None, None)
        )
        assert result.values == {"a": 2}
        assert isinstance(result.errors["b"], Conflict)

    def test_all_parts_of_a_batch_are_in_the_result(self, home: Home) -> None:
        home.session.batch_keys = 2
        entries = {str(number): number for number in range(5)}
        result = home.drive(batches.add(home.calls, "@i", entries, None, None))
        assert set(result.versions) == set(entries)

    def test_batch_is_sent_in_rounds_with_a_timeout_each(self, home: Home) -> None:
        deadlines = set()

        def note(message: Message) -> DStashError | None:
            deadlines.add(home.now)
            home.now += 500
            return None

        home.interfere = note
        entries = {str(number): number for number in range(45_000)}
        result = home.drive(batches.add(home.calls, "@i", entries, None, 8))
        assert result.stored == 45_000
        assert len(deadlines) * 500 > 8000  # longer than the timeout of a round

    def test_key_that_occurs_twice_is_refused(self, home: Home) -> None:
        with pytest.raises(UsageError, match="key 'a' occurs twice in a batch"):
            home.drive(batches.add(home.calls, "@i", [("a", 1), ("a", 2)], None, None))
        assert home.requests == []

    @pytest.mark.parametrize("change", [batches.add, batches.compare_and_set, batches.increment])
    def test_key_that_occurs_twice_in_a_collection_is_refused_before_anything_is_sent(
        self, home: Home, change: Any
    ) -> None:
        home.session.batch_keys = 2
        value = (1, 0) if change is batches.compare_and_set else 1
        entries = [*((str(number), value) for number in range(5)), ("0", value)]
        limits = (batches.Limits(0, None, None),) if change is batches.increment else ()
        with pytest.raises(UsageError) as caught:
            home.drive(change(home.calls, "@i", entries, *limits, None, None))
        assert str(caught.value) == "key '0' occurs twice in a batch; allowed is once"
        assert home.requests == []

    def test_key_that_occurs_twice_in_an_iterator_is_refused_when_it_is_read(
        self, home: Home
    ) -> None:
        home.session.batch_keys = 2
        entries = iter([*((str(number), 1) for number in range(5)), ("0", 1)])
        limits = batches.Limits(0, None, None)
        text = "key '0' occurs twice in a batch; allowed is once; 4 keys before these were stored"
        with pytest.raises(UsageError) as caught:
            home.drive(batches.increment(home.calls, "@i", entries, limits, None, None))
        assert str(caught.value) == text
        assert caught.value.details["result"].values == {str(number): 1 for number in range(4)}
        assert read(home, "4") is None

    def test_mapping_is_read_once(self, home: Home) -> None:
        class Scanned(UserDict[str, int]):
            reads = 0

            def items(self) -> Any:
                self.reads += 1
                return super().items()

        entries = Scanned({"a": 1, "b": 2})
        assert home.drive(batches.add(home.calls, "@i", entries, None, None)).stored == 2
        assert entries.reads == 1


def test_request_that_is_repeated_is_applied_once(home: Home) -> None:
    lost = []

    def lose_answer(message: Message) -> DStashError | None:
        if isinstance(message, Change) and not message.repeated:
            lost.append(home._change(message))  # it is applied, but its answer is lost
            return Busy("no answer")
        return None

    home.interfere = lose_answer
    assert home.drive(steps.increment(at(home), 1, 0, NO_BOUNDS, None)) == 1
    assert home.drive(steps.increment(at(home), 1, 0, NO_BOUNDS, None)) == 2
    assert len(lost) == 2
    home.drive(steps.get_and_set(at(home, "other"), "x" * 50, None, None))
    with pytest.raises(AnswerLost, match="the value before it is lost"):
        home.drive(steps.get_and_set(at(home, "other"), "new", None, None))
    assert read(home, "other").value == "new"


def test_change_without_an_answer_is_unknown(home: Home) -> None:
    home.interfere = lambda message: TimedOut("no quorum")
    with pytest.raises(TimedOut, match="may or may not be stored"):
        home.drive(steps.add(at(home, timeout=1), 1, None))


BAD_CALLS: list[tuple[Any, type[DStashError], str]] = [
    (
        lambda home: steps.add(at(home, index="plain"), 1, None),
        UsageError,
        "add needs an index whose name begins with @, such as '@plain': in index 'plain' the last",
    ),
    (lambda home: steps.lookup_entry(at(home, index="plain")), UsageError, "lookup_entry needs"),
    (
        lambda home: steps.update(at(home, index="plain"), lambda value: value, 0, None),
        UsageError,
        "update needs an index whose name begins with @",
    ),
    (lambda home: steps.add(at(home, index="@"), 1, None), LimitError, "index name is '@' alone"),
    (lambda home: steps.add(at(home, index=""), 1, None), LimitError, "index name has 0 bytes"),
    (lambda home: steps.add(at(home), 1, 0), LimitError, "ttl is 0 s; allowed is more than 0 s"),
    (lambda home: steps.add(at(home, fence=0), 1, None), LimitError, "fence is 0; allowed is the"),
    (lambda home: steps.add(at(home, ""), 1, None), LimitError, "key is empty"),
    (
        lambda home: steps.compare_and_set(at(home), 1, "5", None),  # type: ignore[arg-type]
        LimitError,
        "version is '5'; allowed is a version that a call on this key has returned, or 0 for a key",
    ),
    (
        lambda home: steps.compare_and_set(at(home), 1, True, None),
        LimitError,
        "version is True; allowed",
    ),
    (
        lambda home: steps.touch(at(home), 5, 0),
        LimitError,
        "version is 0; allowed is a version that a call on this key has returned",
    ),
    (
        lambda home: steps.increment(at(home), 1.5, 0, NO_BOUNDS, None),  # type: ignore[arg-type]
        LimitError,
        "by is 1.5; allowed are integers from -2**63 to 2**63-1",
    ),
    (
        lambda home: steps.increment(at(home), 2**63, 0, NO_BOUNDS, None),
        LimitError,
        "by is 9223372036854775808; allowed",
    ),
    (
        lambda home: steps.decrement(at(home), "1", 0, NO_BOUNDS, None),  # type: ignore[arg-type]
        LimitError,
        "by is '1'; allowed",
    ),
    (
        lambda home: steps.increment(at(home), 1, 0, (5, 4), None),
        LimitError,
        "at_least is 5, above at_most 4; no sum is allowed",
    ),
    (
        lambda home: batches.compare_and_set(home.calls, "@i", {"a": 1}, None, None),
        UsageError,
        "the entry of key 'a' is 1; allowed is (value, version)",
    ),
    (
        lambda home: batches.add(home.calls, "plain", {"a": 1}, None, None),
        UsageError,
        "batch_add needs an index whose name begins with @",
    ),
    (
        lambda home: steps.touch(at(home, index="plain"), 5, 1),
        UsageError,
        "touch with a version needs an index whose name begins with @, such as '@plain'",
    ),
    (
        lambda home: steps.touch(at(home, index="plain", fence=1), 5, None),
        UsageError,
        "touch with a fencing token needs an index whose name begins with @, such as '@plain'",
    ),
    (
        lambda home: steps.update(at(home), _async_change, 0, None),
        UsageError,
        "change is an async function; allowed is a plain function that returns the new value",
    ),
]


async def _async_change(present: Any) -> Any:
    return present


NO_PAIRS: list[Any] = [[("k", 1, 2)], [("k",)], [("k", 1), ["k", 1, 2]]]


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("entries", NO_PAIRS)
@pytest.mark.parametrize("change", [batches.add, batches.compare_and_set, batches.increment])
def test_entry_of_a_batch_that_is_no_pair_is_refused(
    home: Home, change: Any, entries: Any, kind: Any
) -> None:
    limits = (batches.Limits(0, None, None),) if change is batches.increment else ()
    with pytest.raises(UsageError, match=r"^a batch is a mapping, or an iterable of .* pairs;"):
        home.drive(change(home.calls, "@i", kind(entries), *limits, None, None))
    assert home.requests == []


@pytest.mark.parametrize(("call", "kind", "text"), BAD_CALLS)
def test_bad_argument_is_named_and_nothing_is_sent(
    home: Home, call: Any, kind: type[DStashError], text: str
) -> None:
    with pytest.raises(kind) as caught:
        home.drive(call(home))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
    assert home.requests == []
