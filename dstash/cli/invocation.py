"""One run of ``dstash``: the global options, and what the commands make of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dstash.config import ClientSettings, Layered, layered
from dstash.errors import DStashError

if TYPE_CHECKING:
    from dstash.client.blocking import Client


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


class KeyMissing(DStashError):
    """A key that was asked for is not there."""

    exit_code = 3


class PartlyFailed(DStashError):
    """Some records of an import were not stored."""

    exit_code = 9


class Unhealthy(DStashError):
    """The cluster does not work as it should."""

    exit_code = 8


class Interrupted(DStashError):
    """Ctrl-C, with something to say about how far it came."""

    exit_code = 130


@dataclass(frozen=True)
class Invocation:
    """The global options. Settings are loaded only by the commands that need them."""

    config: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    output: Output = Output.TABLE

    @property
    def as_json(self) -> bool:
        """Whether results are to be JSON."""
        return self.output is Output.JSON

    def settings(self) -> ClientSettings:
        """Load the settings: flags, environment, file, defaults.

        Without any word on where the cluster is, one on this machine is looked for.
        """
        settings = self._layered().settings
        near = settings.membership_dir()
        if settings.peers or settings.consul or not near.is_dir():
            return settings
        return settings.model_copy(update={"local_dir": near})

    def patience(self, seconds: float) -> float | None:
        """Return ``seconds`` as timeout of a long call, unless the user has set one."""
        return None if "timeout" in self._layered().origins else seconds

    def _layered(self) -> Layered[ClientSettings]:
        return layered(ClientSettings, self.config, self.flags, os.environ)

    def client(self) -> Client:
        """Open a client; to be used as a context manager."""
        from dstash.client.blocking import Client  # heavy, and most errors come before it

        return Client.from_settings(self.settings())


def of(ctx: typer.Context) -> Invocation:
    """Return the invocation a command belongs to."""
    invocation: Invocation = ctx.find_object(Invocation) or Invocation()
    return invocation
