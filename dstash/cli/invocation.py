"""One run of ``dstash``: the global options, and the settings and client that follow from them."""

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
    """The form in which results are printed."""

    TABLE = "table"
    JSON = "json"


class KeyMissing(DStashError):
    """A requested key does not exist."""

    exit_code = 3


class PartlyFailed(DStashError):
    """Some of the records of a command were not stored, or not printed."""

    exit_code = 9


class Unhealthy(DStashError):
    """The cluster is not healthy."""

    exit_code = 8


class Interrupted(DStashError):
    """The user pressed Ctrl-C; the text describes the progress until then."""

    exit_code = 130


@dataclass(frozen=True)
class Invocation:
    """The global options. Only commands that need settings load them.

    Attributes:
        kept: the client of the shell that runs the command; None outside a shell.
    """

    config: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    output: Output = Output.TABLE
    kept: Client | None = None

    @property
    def as_json(self) -> bool:
        """Whether results are printed as JSON."""
        return self.output is Output.JSON

    def settings(self) -> ClientSettings:
        """Load the settings: flags, environment, file, defaults.

        If neither peers nor Consul are set, a cluster on this machine is used, if there is one.
        """
        settings = self._layered().settings
        local_dir = settings.membership_dir()
        if settings.peers or settings.consul or not local_dir.is_dir():
            return settings
        return replace(settings, local_dir=local_dir)

    def long_timeout(self, seconds: float) -> float | None:
        """Return ``seconds`` as the timeout of a long call, or None if the user has set one."""
        return None if "timeout" in self._layered().origins else seconds

    def _layered(self) -> Layered[ClientSettings]:
        return layered(ClientSettings, self.config, self.flags, os.environ)

    def within(self, flags: Mapping[str, Any], output: Output) -> Invocation:
        """Return the invocation of a command in the shell that this invocation started.

        Raises:
            UsageError: an option was given that applies to the whole shell only.
        """
        given = [name for name, value in flags.items() if value is not None]
        if given:
            raise _of_whole_shell(given[0])
        return replace(self, output=output)

    def given(self, name: str, value: Any) -> Invocation:
        """Return the invocation with a global option that follows the command.

        Args:
            name: ``output``, ``config`` or the key of a setting.
            value: as given; a form of output and a path may still be texts.

        Raises:
            UsageError: the option applies to the whole shell only.
        """
        if name == "output":
            return replace(self, output=Output(value))
        if self.kept is not None:
            raise _of_whole_shell(name)
        if name == "config":
            return replace(self, config=Path(value))
        return replace(self, flags={**self.flags, name: value})

    def client(self) -> AbstractContextManager[Client]:
        """Return a new client, or that of the shell, as a context manager."""
        if self.kept is not None:
            return nullcontext(self.kept)
        from dstash.client.blocking import Client  # slow to import, and most errors come before it

        return Client.from_settings(self.settings())


def _of_whole_shell(option: str) -> UsageError:
    return UsageError(f"--{option} applies to the whole shell; use dstash --{option} ... shell")


def of(ctx: typer.Context) -> Invocation:
    """Return the invocation that a command belongs to."""
    invocation: Invocation = ctx.find_object(Invocation) or Invocation()
    return invocation
