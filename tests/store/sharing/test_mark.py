"""The serving mark survives its encoding, and corruption of it is noticed."""

from __future__ import annotations

import pytest

from dstash.errors import CorruptStore
from dstash.store.sharing.mark import ServingMark

MARK = ServingMark(2**63 - 1, 7, "id", frozenset({0, 8, 4095}))


@pytest.mark.parametrize("mark", [MARK, ServingMark(0), ServingMark(1, 2, "", frozenset())])
def test_mark_is_decoded_as_it_was_encoded(mark: ServingMark) -> None:
    assert ServingMark.decode(mark.encode()) == mark


def test_store_without_a_mark_lets_no_client_read() -> None:
    assert ServingMark.decode(None) == ServingMark.decode(b"") == ServingMark(0)


@pytest.mark.parametrize("place", [0, 8, 9, 30, -1])
def test_corrupt_mark_is_refused(place: int) -> None:
    content = bytearray(MARK.encode())
    content[place] ^= 1
    with pytest.raises(CorruptStore, match="corrupt"):
        ServingMark.decode(bytes(content))
    with pytest.raises(CorruptStore, match="corrupt"):
        ServingMark.decode(MARK.encode()[:100])
