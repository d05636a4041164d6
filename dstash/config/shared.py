"""The settings that peers and clients share: the cluster, the membership, the keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstash.config.fields import Conflict, File, Name, Token
from dstash.config.rules import rules_of
from dstash.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """The settings of peers and of clients.

    The annotation of a setting contains the rule that ``layers`` reads its value with. Values that
    are passed to the class itself are used as they are.

    Attributes:
        consul_token: read from the environment only, so that it is not put into a file.
        curve: encrypt and authenticate every connection.
        cert_file: file of this process's CURVE public key.
        key_file: file of this process's CURVE secret key.

    Raises:
        Conflict: two settings contradict each other.
    """

    cluster: Name = "dstash"
    local_dir: File | None = None
    consul_token: Token | None = None
    consul_token_file: File | None = None
    consul_ca_file: File | None = None
    consul_cert_file: File | None = None
    consul_key_file: File | None = None
    curve: bool = False
    cert_file: File | None = None
    key_file: File | None = None

    def __post_init__(self) -> None:
        """Check what concerns several settings."""
        if self.consul_cert_file and not self.consul_key_file:
            raise Conflict("consul_cert_file", "needs consul_key_file as well")
        if self.consul_key_file and not self.consul_cert_file:
            raise Conflict("consul_key_file", "needs consul_cert_file as well")
        self._check_curve(needed=("cert_file", "key_file"))

    def _check_curve(self, *, needed: tuple[str, ...]) -> None:
        for key in needed:
            given = getattr(self, key) is not None
            if self.curve and not given:
                raise Conflict("curve", f"needs {key} as well")
            if given and not self.curve:
                # Without this error, a client that expects encryption would send clear text.
                raise Conflict(key, "has no effect without curve = true; set that, or remove this")

    def _check_consul_tls(self, url: str | None) -> None:
        for key in ("consul_ca_file", "consul_cert_file"):
            if getattr(self, key) and url and not url.startswith("https://"):
                raise Conflict(key, "has no effect unless consul is an https:// URL")

    def token(self) -> str | None:
        """Return Consul's ACL token, from the environment or from ``consul_token_file``."""
        if self.consul_token is not None:
            return self.consul_token.reveal()
        if self.consul_token_file is None:
            return None
        try:
            return self.consul_token_file.read_bytes().decode("utf-8-sig").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"consul_token_file {self.consul_token_file}: {error}") from None

    def files(self) -> dict[str, Path]:
        """Return the files that these settings name, by key; each must be readable."""
        suffixes = ("_file", "authorised_keys")
        paths: dict[str, Any] = {key: getattr(self, key) for key in rules_of(type(self))}
        return {key: path for key, path in paths.items() if key.endswith(suffixes) and path}


def state_dir(cluster: str) -> Path:
    """Return this user's directory for the local membership of a cluster (XDG base directories).

    Raises:
        ConfigError: the user has no home directory.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification requires that relative paths are ignored.
    if base.startswith("/"):
        return Path(base) / "dstash" / cluster
    try:
        return Path.home() / ".local" / "state" / "dstash" / cluster
    except RuntimeError:  # neither HOME nor an entry in the list of users
        raise ConfigError("this user has no home directory; set local_dir") from None
