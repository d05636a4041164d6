"""The entries of a batch put are cut into parts; a small dictionary is one part as it is."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from dstash.client.entries import entries_by_key, key_rounds, put_rounds


def test_small_dictionary_is_one_part_without_pairs() -> None:
    entries = {"a": 1, "b": 2}
    [part] = put_rounds(entries, 2)
    assert part is entries


def test_large_dictionary_is_cut_into_pairs() -> None:
    assert list(put_rounds({"a": 1, "b": 2, "c": 3}, 2)) == [[("a", 1), ("b", 2)], [("c", 3)]]


def test_other_mapping_is_cut_into_pairs() -> None:
    assert list(put_rounds(MappingProxyType({"a": 1}), 2)) == [[("a", 1)]]


@pytest.mark.parametrize("entries", [{}, [], iter([]), MappingProxyType({})])
def test_empty_batch_is_one_empty_part(entries: Any) -> None:
    assert [len(part) for part in put_rounds(entries, 2)] == [0]
    assert list(key_rounds(entries, 2, "batch_delete")) == [[]]


def test_batch_as_large_as_its_parts_has_no_empty_part() -> None:
    assert list(put_rounds([("a", 1), ("b", 2)], 1)) == [[("a", 1)], [("b", 2)]]


def test_entries_are_copied_so_that_later_changes_do_not_count() -> None:
    entries = {"a": 1}
    copy = entries_by_key(entries)
    entries["a"] = 2
    assert copy == {"a": 1}
