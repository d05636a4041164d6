"""A batch that is read partly here and partly by peers has the result of one look-up."""

from __future__ import annotations

from typing import Any

import pytest

from dstash.client.local.batches import ABSENT, ASK, PartlyRead
from dstash.errors import UndecodableValue


class Equal:
    """A value that compares as equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


EQUAL = Equal()


@pytest.mark.parametrize(
    ("values", "rest", "answers", "found"),
    [
        ([1, EQUAL, 3], [], {}, ["a", "b", "c"]),
        ([1, ABSENT, None], [], {}, ["a", "c"]),
        ([ASK, 2, ASK], ["a", "c"], {"c": 3, "a": 1}, ["a", "b", "c"]),
        ([ASK, ABSENT, EQUAL], ["a"], {}, ["c"]),
        ([ASK] * 3, ["a", "b", "c"], {"b": EQUAL}, ["b"]),
    ],
)
def test_result_has_the_order_of_the_keys(
    values: list[Any], rest: list[str], answers: dict[Any, Any], found: list[str]
) -> None:
    partly = PartlyRead(["a", "b", "c"], values)
    assert partly.rest == rest
    result = partly.with_answers(answers)
    assert list(result) == found
    for key, value in result.items():
        expected = answers[key] if key in answers else values["abc".index(str(key))]
        assert value is expected


def test_error_about_other_values_has_what_was_read() -> None:
    partly = PartlyRead(["a", "b", "c"], [1, ASK, ASK])
    with pytest.raises(UndecodableValue) as caught, partly.kept_in_errors():
        raise UndecodableValue("c cannot be decoded", {"c": 0}, {"b": 2})
    assert caught.value.found == {"a": 1, "b": 2}
