"""The settings of a client and of the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypedDict

from dstash.config.fields import Endpoints, Name, PublicKeys, Seconds, Url, working_dir
from dstash.config.shared import SharedSettings, state_dir
from dstash.types import AnyLevel, Compression, Level

#: The default addresses of ``dstash dev up``.
DEV_PEERS: Final = tuple(f"tcp://127.0.0.1:{port}" for port in (5000, 5001, 5002))
#: The membership directory of ``dstash dev up``, relative to the working directory.
DEV_MEMBERSHIP: Final = Path(".dstash/membership")


@dataclass(frozen=True)
class Security:
    """The keys of a client as one argument: ``Client(..., security=Security(...))``.

    Args:
        cert_file: file of the client's public key.
        key_file: file of the client's secret key, readable by its owner only.
        server_key: public keys of the first peers to connect to.
    """

    cert_file: str | os.PathLike[str]
    key_file: str | os.PathLike[str]
    server_key: str | Sequence[str]

    def settings(self) -> dict[str, Any]:
        """Return the settings that this object replaces."""
        return {"curve": True, **{key.name: getattr(self, key.name) for key in fields(self)}}


class Fallback(NamedTuple):
    """A setting that applies because neither ``peers``, ``consul`` nor ``local_dir`` is set.

    Attributes:
        key: the setting.
        value: its value.
        reason: why it is that value.
    """

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClientSettings(SharedSettings):
    """The settings of one client. ``conf/client.toml`` explains each of them.

    Attributes:
        peers: ``tcp://host:port`` of one or more peers; these report the addresses of the rest.
        timeout: seconds for a whole call, retries included.
        compression: of the values that this client writes; every client reads compressed ones.
        tracing: record an OpenTelemetry span for each call.
        local_reads: ``auto`` reads the stores of peers that share them on this machine, at level
            one, without a request.
        server_key: public CURVE keys of the first peers to connect to; these report the rest.
    """

    peers: Endpoints = field(default_factory=list)
    consul: Url | None = None
    read: Level = Level.QUORUM
    write: Level = Level.QUORUM
    timeout: Seconds = 5.0
    zone: Name | None = None
    compression: Compression = "none"
    tracing: bool = False
    local_reads: Literal["auto", "off"] = "auto"
    server_key: PublicKeys | None = None
    _working_dir: Path = field(default_factory=working_dir, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check what concerns several settings."""
        super().__post_init__()
        self._check_curve(needed=("server_key",))
        self._check_consul_tls(self.consul)

    def fallback(self) -> Fallback | None:
        """Return what is used instead of settings if they name no way to find the cluster."""
        if self.peers or self.consul or self.local_dir:
            return None
        directory = self.membership_dir()
        if directory.is_dir():
            return Fallback("local_dir", directory, "this directory exists")
        return Fallback("peers", list(DEV_PEERS), f"there is no directory {directory}")

    def membership_dir(self) -> Path:
        """Return the membership directory to use when neither peers nor Consul are set.

        ``dstash dev up`` takes precedence over the user's state directory. Its directory is that of
        the working directory when these settings were made.
        """
        if self.local_dir is not None:
            return self.local_dir
        of_dev = self._working_dir / DEV_MEMBERSHIP
        return of_dev if of_dev.is_dir() else state_dir(self.cluster)


class TracerProvider(Protocol):
    """A tracer provider of OpenTelemetry, which is optional."""

    def get_tracer(self, *args: Any, **options: Any) -> Any:
        """Return a tracer."""


class ClientOptions(TypedDict, total=False):
    """The keyword arguments of a client, for type checkers: the settings, and ``security``.

    None counts as not given.
    """

    cluster: str | None
    local_dir: str | os.PathLike[str] | None
    consul_token: str | None
    consul_token_file: str | os.PathLike[str] | None
    consul_ca_file: str | os.PathLike[str] | None
    consul_cert_file: str | os.PathLike[str] | None
    consul_key_file: str | os.PathLike[str] | None
    curve: bool | None
    cert_file: str | os.PathLike[str] | None
    key_file: str | os.PathLike[str] | None
    peers: str | Sequence[str] | None
    consul: str | None
    read: AnyLevel | None
    write: AnyLevel | None
    timeout: float | None
    zone: str | None
    compression: Compression | None
    tracing: bool | TracerProvider | None
    local_reads: Literal["auto", "off"] | None
    server_key: str | Sequence[str] | None
    security: Security | None
