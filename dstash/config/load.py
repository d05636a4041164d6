"""Functions that load the settings of a peer or a client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dstash.config.client import ClientSettings, Security
from dstash.config.layers import layered
from dstash.config.peer import PeerSettings
from dstash.config.problems import COMMAND_LINE
from dstash.errors import ConfigError


def load_peer(
    file: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> PeerSettings:
    """Return the settings of a peer.

    Args:
        file: a TOML file such as ``conf/peer.toml``, or None.
        flags: the values of the command line, by key; None means not given.
        environ: the environment with the ``DSTASH_*`` variables.

    Raises:
        ConfigError: the text names file and line (or variable), the key, and what is allowed.
    """
    return layered(PeerSettings, file, flags, environ).settings


def load_client(
    file: Path | None,
    flags: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    source: str = COMMAND_LINE,
) -> ClientSettings:
    """Return the settings of a client; arguments and errors are those of ``load_peer``.

    The flag ``security`` replaces several settings. ``source`` says in messages where the flags are
    from: ``COMMAND_LINE`` or ``ARGUMENT``.
    """
    given = dict(flags)
    security = given.pop("security", None)
    if isinstance(security, Security):
        given |= security.settings()
    elif security is not None:
        raise ConfigError("security must be a dstash.Security(cert_file, key_file, server_key)")
    return layered(ClientSettings, file, given, environ, source).settings
