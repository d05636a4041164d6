"""The interface of a measured system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

Pairs = dict[str, bytes]


class System(ABC):
    """Servers that are started and stopped together; a context manager."""

    @abstractmethod
    def start(self) -> None:
        """Start the servers and wait until they serve."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the servers, also after a partial start."""

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
    """A system with its usual client and one configuration.

    ``put`` and ``get`` are timed: they do what a user would write, and no more.
    """

    #: Unique in a run; targets refer to it.
    name: str

    @abstractmethod
    def put(self, pairs: Pairs) -> None:
        """Store all pairs in one batch."""

    @abstractmethod
    def get(self, keys: Sequence[str]) -> Any:
        """Look up all keys in one batch; return the answer of the client."""

    @abstractmethod
    def get_one(self, key: str) -> bytes | None:
        """Look up a key with the usual call for one key."""

    def put_one(self, key: str, value: bytes) -> None:
        """Store a pair with the usual call for one key."""
        self.put({key: value})

    def fill(self, pairs: Pairs) -> None:
        """Store all pairs on all servers that should have them. Not timed."""
        self.put(pairs)
        self.settle()

    def get_surely(self, keys: Sequence[str]) -> Any:
        """Look up all keys, including every acked write. Not timed."""
        return self.get(keys)

    def settle(self) -> None:  # noqa: B027  # most have nothing to wait for
        """Wait until the servers have finished the work of puts after their acks. Not timed."""

    def found(self, answer: Any, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Return the answer of ``get`` as a mapping. Not timed."""
        return {key: value for key, value in zip(keys, answer, strict=True) if value is not None}

    @abstractmethod
    def close(self) -> None:
        """Close the client's connections."""
