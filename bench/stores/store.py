"""What a system under measurement looks like to those who measure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

Pairs = dict[str, bytes]


class System(ABC):
    """Servers, started and stopped together. Used as a context manager."""

    @abstractmethod
    def start(self) -> None:
        """Start the servers and wait until they serve."""

    @abstractmethod
    def stop(self) -> None:
        """Stop what was started, also after half a start."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()


class Store(ABC):
    """A system through the client that its users use, at one setting.

    ``put`` and ``get`` are what is timed: they do what a user would write, and no more.
    """

    #: Unique in a run; targets speak of it.
    name: str

    @abstractmethod
    def put(self, pairs: Pairs) -> None:
        """Store all pairs in one batch."""

    @abstractmethod
    def get(self, keys: Sequence[str]) -> Any:
        """Look all keys up in one batch; returns whatever the client returns."""

    @abstractmethod
    def get_one(self, key: str) -> bytes | None:
        """Look one key up, the way one does that."""

    def fill(self, pairs: Pairs) -> None:
        """Store all pairs on all servers that should have them. Not timed."""
        self.put(pairs)
        self.settle()

    def get_surely(self, keys: Sequence[str]) -> Any:
        """Look all keys up, and miss nothing that was acked. Not timed."""
        return self.get(keys)

    def settle(self) -> None:  # noqa: B027  # most have nothing to wait for
        """Wait until the servers have done what a put left to be done after its ack. Not timed."""

    def found(self, answer: Any, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Return what ``get`` answered as a mapping. Not timed."""
        return {key: value for key, value in zip(keys, answer, strict=True) if value is not None}

    @abstractmethod
    def close(self) -> None:
        """Close the client's connections."""
