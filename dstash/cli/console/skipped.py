"""Values that a command left out of its output, and the reasons."""

from __future__ import annotations

from typing import Final

from dstash.cli.invocation import PartlyFailed
from dstash.wire.keys import Key, show_key

#: How many keys an error names.
_MAX_SHOWN: Final = 3


class SkippedValues:
    """Counts values that cannot be decoded or written."""

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[str] = []

    def add(self, key: Key, reason: str) -> None:
        """Add the value of a key."""
        self.count += 1
        if self.count <= _MAX_SHOWN:
            self._shown.append(f"key {show_key(key)}: {reason}")

    def expect_none(self) -> None:
        """Raise ``PartlyFailed`` if values were left out."""
        if self.count:
            noun = "1 value" if self.count == 1 else f"{self.count:,} values"
            more = "; ..." if self.count > _MAX_SHOWN else ""
            raise PartlyFailed(f"left out {noun}: {'; '.join(self._shown)}{more}")
