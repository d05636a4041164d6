"""The outcome of a write for one key. A module of its own because errors carry outcomes."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of a write for one key.

    ``UNKNOWN`` is not a failure: the value may have been stored, but no answer arrived in time.
    """

    STORED = "stored"
    FAILED = "failed"
    UNKNOWN = "unknown"
