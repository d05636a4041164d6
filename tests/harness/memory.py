"""Measurement of the peak memory of a piece of code."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 1024 * 1024


@contextmanager
def at_most(mebibytes: float) -> Iterator[None]:
    """Fail if the Python objects that the block makes ever use more than the limit."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
    assert peak <= mebibytes, f"took {peak:.0f} MiB; at most {mebibytes:g} MiB are allowed"
