"""The tracing hook of a client.

Every call of a client opens a span through this hook. Without the setting ``tracing`` the hook is
``NoTracing``; with it, ``CallSpans`` (``spans.py``) makes OpenTelemetry spans.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final, Protocol

from dstash.client.results import BatchResult


class CallSpan(Protocol):
    """The span of one call."""

    def note_found(self, count: int) -> None:
        """Record how many of the keys of a batch look-up exist."""

    def note_outcome(self, result: BatchResult) -> None:
        """Record the size of a batch of writes, and its first failure."""


class CarriesTrace(Protocol):
    """A group of calls that are sent as one request, with the trace of that request."""

    trace: str


class Tracing(Protocol):
    """What a client reports its calls to."""

    def call(
        self, name: str, index: str | None = None, keys: object = None
    ) -> AbstractContextManager[CallSpan]:
        """Return the span of a call; it covers a ``with`` block, and records its error.

        Args:
            name: of the client's method.
            index: of the call, if it has one.
            keys: the keys or entries of a batch.
        """

    def trace(self) -> str:
        """Return the caller's trace context for requests (W3C traceparent); empty for none."""

    def join(self, group: CarriesTrace) -> None:
        """Make a group of calls part of the caller's trace, or link the caller's span to it."""


class _NoSpan:
    """A span that records nothing."""

    def __enter__(self) -> CallSpan:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def note_found(self, count: int) -> None:
        pass

    def note_outcome(self, result: BatchResult) -> None:
        pass


_NO_SPAN: Final = _NoSpan()


class NoTracing:
    """The hook of a client that is not traced."""

    def call(
        self, name: str, index: str | None = None, keys: object = None
    ) -> AbstractContextManager[CallSpan]:
        """Return a span that records nothing."""
        return _NO_SPAN

    def trace(self) -> str:
        """Return no trace context."""
        return ""

    def join(self, group: CarriesTrace) -> None:
        """Leave the group as it is."""
