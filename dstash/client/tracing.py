"""Whether calls are traced. OpenTelemetry is loaded only then (``spans.py``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from dstash.client.session import Session
from dstash.config import ClientSettings
from dstash.telemetry import missing

if TYPE_CHECKING:
    from dstash.client.asyncio import AsyncClient
    from dstash.client.blocking import Client
    from dstash.client.transport.coalesced import Group


class Tracing(Protocol):
    """What the rest of a client needs to know of its traces; None in its place means none."""

    def trace(self) -> str:
        """Return the trace that the caller is in, for requests; empty for none."""

    def join(self, group: Group) -> None:
        """Have a group of calls that travel together be part of the caller's trace."""


def take_provider(settings: dict[str, Any]) -> Any:
    """Return the provider of tracers that stands in place of ``tracing = true``, if one does."""
    given = settings.get("tracing")
    if not hasattr(given, "get_tracer"):
        return None
    settings["tracing"] = True
    return given


def open_tracing(
    client: Client | AsyncClient,
    settings: ClientSettings,
    session: Callable[[], Session],
    provider: Any,
) -> Tracing | None:
    """Have each call of a client make a span, if the settings say so.

    Args:
        session: returns what the calls share.
        provider: makes the tracer; None for that of the process.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    if not settings.tracing:
        return None
    try:
        from dstash.client.spans import CallSpans
    except ImportError:
        raise missing("tracing") from None
    spans = CallSpans(settings, session, provider)
    spans.cover(client)
    return spans
