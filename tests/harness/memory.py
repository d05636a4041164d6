"""How much memory a piece of code takes, at its peak."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 1024 * 1024


@contextmanager
def at_most(mebibytes: float) -> Iterator[None]:
    """Fail when the Python objects made inside take more than that at any moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
    assert peak <= mebibytes, f"took {peak:.0f} MiB; at most {mebibytes:g} MiB are allowed"
