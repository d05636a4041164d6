"""The settings of a client, and of the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, model_validator

from dstash.config.fields import Endpoints, Name, PublicKeys, Seconds, Url
from dstash.config.shared import SharedSettings, state_dir
from dstash.types import Level

#: Where ``dstash dev up`` keeps the membership of its cluster, below the working directory.
DEV_MEMBERSHIP: Final = Path(".dstash/membership")


@dataclass(frozen=True)
class Security:
    """The keys of a client in one: ``Client(..., security=Security(...))``.

    Args:
        cert_file: its public key; ``key_file`` the secret one, readable by its owner alone.
        server_key: public keys of the peers to begin with.
    """

    cert_file: str | os.PathLike[str]
    key_file: str | os.PathLike[str]
    server_key: str | Sequence[str]

    def settings(self) -> dict[str, Any]:
        """Return the settings that this stands for."""
        return {"curve": True, **{one.name: getattr(self, one.name) for one in fields(self)}}


class ClientSettings(SharedSettings):
    """Settings of one client. ``conf/client.toml`` gives the reason for each.

    Attributes:
        peers: ``tcp://host:port`` of one or more peers; the others are learned from them.
        timeout: seconds, for a whole call with all its retries.
        tracing: make an OpenTelemetry span of each call.
        server_key: public CURVE keys of the peers to begin with; the others are learned.
    """

    peers: Endpoints = Field(default_factory=list)
    consul: Url | None = None
    read: Level = Level.QUORUM
    write: Level = Level.QUORUM
    timeout: Seconds = 5.0
    zone: Name | None = None
    tracing: bool = False
    server_key: PublicKeys | None = None

    @model_validator(mode="after")
    def _check_client(self) -> Self:
        self._check_curve(needed=("server_key",))
        self._check_consul_tls(self.consul)
        return self

    def membership_dir(self) -> Path:
        """Return where to look for a cluster on this machine when no peer and no Consul is set.

        The cluster of ``dstash dev up`` in the working directory comes before this user's own.
        """
        if self.local_dir is not None:
            return self.local_dir
        return DEV_MEMBERSHIP if DEV_MEMBERSHIP.is_dir() else state_dir(self.cluster)
