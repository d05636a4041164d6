"""One run of ``dstash``: the global options, and what the commands make of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dstash.config import ClientSettings, Layered, layered
from dstash.errors import DStashError, UsageError

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
    """The global options. Settings are loaded only by the commands that need them.

    Attributes:
        kept: the client of the shell in which a command runs; None outside of one.
    """

    config: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    output: Output = Output.TABLE
    kept: Client | None = None

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

    def within(self, flags: Mapping[str, Any], output: Output) -> Invocation:
        """Return the invocation of a command in a shell, whose own this is.

        Raises:
            UsageError: an option was given that holds for the whole shell.
        """
        given = [name for name, value in flags.items() if value is not None]
        if given:
            raise UsageError(f"--{given[0]} is for the whole shell: dstash --{given[0]} ... shell")
        return replace(self, output=output)

    def client(self) -> AbstractContextManager[Client]:
        """Open a client, or lend the shell's."""
        if self.kept is not None:
            return nullcontext(self.kept)
        from dstash.client.blocking import Client  # heavy, and most errors come before it

        return Client.from_settings(self.settings())


def of(ctx: typer.Context) -> Invocation:
    """Return the invocation a command belongs to."""
    invocation: Invocation = ctx.find_object(Invocation) or Invocation()
    return invocation
