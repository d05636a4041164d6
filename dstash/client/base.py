"""The common base of the two clients: construction from settings."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, Unpack

from dstash.client.calls import steady_wall
from dstash.client.discovery import security_of
from dstash.client.session import KEYS_PER_BATCH, Session
from dstash.client.tracing.hook import NoTracing, Tracing
from dstash.config.address import SCHEME
from dstash.config.client import ClientOptions, ClientSettings
from dstash.config.load import load_client
from dstash.config.problems import ARGUMENT
from dstash.errors import ConfigError
from dstash.telemetry import missing
from dstash.wire.values import TypeRegistry


class Closable(Protocol):
    """The connections of a client."""

    @property
    def is_closed(self) -> bool:
        """Whether the client was closed."""

    @property
    def is_open(self) -> bool:
        """Whether there are connections to close."""

    def drop(self) -> None:
        """Close every connection, from any thread."""


class BaseClient(ABC):
    """Settings, registered types and tracing of a client."""

    def __init__(self, *addresses: str | Sequence[str], **settings: Unpack[ClientOptions]) -> None:
        given: dict[str, Any] = dict(settings)
        if addresses:
            if given.get("peers") is not None:
                raise ConfigError("peers are given twice: as arguments, and as peers=")
            given["peers"] = _flat(addresses)
        provider = _take_provider(given)
        self._configure(load_client(None, given, os.environ, ARGUMENT), provider)

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

    def __repr__(self) -> str:
        settings = self.settings
        place = ", ".join(settings.peers) or settings.consul or str(settings.membership_dir())
        end = ", closed" if self._is_closed() else ""
        return f"<dstash.{type(self).__name__} of cluster {settings.cluster!r} at {place}{end}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse copies and pickles: they would share connections, or lack them."""
        raise TypeError(
            f"{_with_article(type(self).__name__)} cannot be copied or pickled; "
            "make one in each process"
        )

    def _configure(self, settings: ClientSettings, provider: Any = None) -> None:
        self.settings = settings
        self.types = TypeRegistry(settings.compression)
        self._tracing = _open_tracing(settings, self._current_session, provider)
        self._start()

    @abstractmethod
    def _current_session(self) -> Session:
        """Return the session of this process."""

    @abstractmethod
    def _is_closed(self) -> bool:
        """Whether the client was closed."""

    @abstractmethod
    def _start(self) -> None:
        """Create the session and the other shared state of the client's calls."""

    def _close_with_client(self, connections: Closable) -> None:
        """Close the connections once this client is garbage-collected.

        They must not refer to the client. A finalizer keeps them until it has run. A ``__del__``
        of the client may run after those of its sockets, which then report themselves: in a
        reference cycle the order depends on the ages of the objects.
        """
        finalizer = weakref.finalize(self, _close_unclosed, connections, type(self).__name__)
        finalizer.atexit = False  # other threads may use the client until the process ends


def new_session(settings: ClientSettings, batch_keys: int = KEYS_PER_BATCH) -> Session:
    """Return a session for the calls of a process."""
    return Session(
        steady_wall(),
        zone=settings.zone or "",
        security=security_of(settings),
        batch_keys=batch_keys,
    )


def _close_unclosed(connections: Closable, name: str) -> None:
    """Report a client that was not closed, and close its connections."""
    if connections.is_closed or sys.is_finalizing():  # other threads are stopped then
        return
    try:
        if connections.is_open:
            text = f"{_with_article(name)} was never closed"
            warnings.warn(text, ResourceWarning, stacklevel=3, source=connections)
    finally:
        connections.drop()


def _with_article(name: str) -> str:
    return f"{'an' if name.startswith('A') else 'a'} {name}"


def _flat(addresses: Sequence[str | Sequence[str]]) -> list[Any]:
    """Return each address, whether they are given as arguments, in a list, or in a text."""
    parts: list[Any] = []
    for given in addresses:
        if isinstance(given, str):
            is_whole = given.strip().startswith(SCHEME) or not given.strip(" ,")
            parts += [given] if is_whole else filter(str.strip, given.split(","))
        else:
            parts += _flat(given) if isinstance(given, list | tuple | set | frozenset) else [given]
    return parts


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
