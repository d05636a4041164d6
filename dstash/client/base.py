"""The common base of the two clients: construction from settings."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from dstash.client.calls import steady_wall
from dstash.client.discovery import security_of
from dstash.client.session import KEYS_PER_BATCH, Session
from dstash.client.tracing.hook import NoTracing, Tracing
from dstash.config import ClientSettings, load_client
from dstash.telemetry import missing
from dstash.wire.values import TypeRegistry


class BaseClient(ABC):
    """Settings, registered types and tracing of a client."""

    def __init__(self, *peers: str, **settings: Any) -> None:
        if peers:
            settings["peers"] = list(peers)
        provider = _take_provider(settings)
        self._configure(load_client(None, settings, os.environ), provider)

    @classmethod
    def from_config(cls, path: str | os.PathLike[str]) -> Self:
        """Return a client with the settings of a TOML file."""
        return cls.from_settings(load_client(Path(path), {}, os.environ))

    @classmethod
    def from_settings(cls, settings: ClientSettings) -> Self:
        """Return a client with settings that are already loaded."""
        client = cls.__new__(cls)
        client._configure(settings)
        return client

    def _configure(self, settings: ClientSettings, provider: Any = None) -> None:
        self.settings = settings
        self.types = TypeRegistry()
        self._tracing = _open_tracing(settings, self._current_session, provider)
        self._start()

    @abstractmethod
    def _current_session(self) -> Session:
        """Return the session of this process."""

    @abstractmethod
    def _start(self) -> None:
        """Create the session and the other shared state of the client's calls."""

    def _new_session(self, batch_keys: int = KEYS_PER_BATCH) -> Session:
        return Session(
            steady_wall(),
            zone=self.settings.zone or "",
            security=security_of(self.settings),
            batch_keys=batch_keys,
        )


def _take_provider(settings: dict[str, Any]) -> Any:
    """Return the tracer provider given as ``tracing``, if any, and set ``tracing`` to true."""
    given = settings.get("tracing")
    if not hasattr(given, "get_tracer"):
        return None
    settings["tracing"] = True
    return given


def _open_tracing(
    settings: ClientSettings, session: Callable[[], Session], provider: Any
) -> Tracing:
    """Return the tracing hook for a client with these settings.

    Args:
        settings: of the client; ``tracing`` selects the hook.
        session: returns the current session of the client, which changes after a fork.
        provider: tracer provider; None for the global provider of the process.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    if not settings.tracing:
        return NoTracing()
    try:
        # Loaded only if needed: OpenTelemetry is optional, and slow to load.
        from dstash.client.tracing.spans import CallSpans
    except ImportError:
        raise missing("tracing") from None
    return CallSpans(settings, session, provider)
