"""The cutting of batches into chunks."""

from __future__ import annotations

import pytest

from dstash.client.operations.batching import Item, chunked, interleave, largest_of, split_by_size


def items(*sizes: int) -> list[Item]:
    return [(str(place), b"k", bytes(size)) for place, size in enumerate(sizes)]


def test_interleave_alternates_between_groups() -> None:
    assert interleave([[1, 2, 3], [], [4], [5, 6]]) == [1, 4, 5, 2, 6, 3]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
def test_chunks_start_in_order(count: int) -> None:
    chunks = list(range(count))
    begun = list(chunked(chunks))
    assert [chunk for few in begun for chunk in few] == chunks
    assert all(1 <= len(few) <= 4 for few in begun)


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ((), []),
        ((1,) * 5, [3, 2]),  # three keys at most
        ((50, 50, 50), [1, 1, 1]),  # 100 bytes at most, minus 11 for the key and its encoding
        ((30, 30, 30, 30), [2, 1, 1]),
        ((500, 1, 1), [1, 2]),  # an item above the limit is sent alone
    ],
)
def test_chunks_are_limited_by_keys_and_bytes(sizes: tuple[int, ...], lengths: list[int]) -> None:
    given = items(*sizes)
    cut = list(split_by_size(given, most_keys=3, most_bytes=100, largest=largest_of(given)))
    assert [len(run) for run in cut] == lengths
    assert [item for run in cut for item in run] == given
    assert list(split_by_size(given, most_keys=3, most_bytes=100, largest=10**9)) == cut
