"""What peers and clients both have to know: the cluster, the membership, the keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dstash.config.fields import Conflict, File, Name
from dstash.errors import ConfigError


class SharedSettings(BaseSettings):
    """Settings of peers and of clients.

    Attributes:
        consul_token: only from the environment, so that it stands in no file by accident.
        curve: encrypt and authenticate every connection.
        cert_file: the CURVE public key of this process; ``key_file`` the secret one.
    """

    model_config = SettingsConfigDict(
        env_prefix="DSTASH_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    cluster: Name = "dstash"
    local_dir: File | None = None
    consul_token: SecretStr | None = None
    consul_token_file: File | None = None
    consul_ca_file: File | None = None
    consul_cert_file: File | None = None
    consul_key_file: File | None = None
    curve: bool = False
    cert_file: File | None = None
    key_file: File | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_others: PydanticBaseSettingsSource,
        **_more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read no environment behind the caller's back: ``layers`` does, and knows the origins."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check_shared(self) -> Self:
        if self.consul_cert_file and not self.consul_key_file:
            raise Conflict("consul_cert_file", "needs consul_key_file as well")
        if self.consul_key_file and not self.consul_cert_file:
            raise Conflict("consul_key_file", "needs consul_cert_file as well")
        self._check_curve(needed=("cert_file", "key_file"))
        return self

    def _check_curve(self, *, needed: tuple[str, ...]) -> None:
        for key in needed:
            given = getattr(self, key) is not None
            if self.curve and not given:
                raise Conflict("curve", f"needs {key} as well")
            if given and not self.curve:
                # Silence here would mean clear text where someone counts on encryption.
                raise Conflict(key, "has no effect without curve = true; set that, or remove this")

    def _check_consul_tls(self, url: str | None) -> None:
        for key in ("consul_ca_file", "consul_cert_file"):
            if getattr(self, key) and url and not url.startswith("https://"):
                raise Conflict(key, "has no effect unless consul is an https:// URL")

    def token(self) -> str | None:
        """Return Consul's ACL token, from the environment or from ``consul_token_file``."""
        if self.consul_token is not None:
            return self.consul_token.get_secret_value()
        if self.consul_token_file is None:
            return None
        try:
            return self.consul_token_file.read_text().strip() or None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"consul_token_file {self.consul_token_file}: {error}") from None

    def files(self) -> dict[str, Path]:
        """Return the files that must be readable for these settings to work, by key."""
        suffixes = ("_file", "authorised_keys")
        paths: dict[str, Any] = {key: getattr(self, key) for key in type(self).model_fields}
        return {key: path for key, path in paths.items() if key.endswith(suffixes) and path}


def state_dir(cluster: str) -> Path:
    """Return this user's directory for the embedded membership of a cluster (XDG base dirs)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification says to ignore relative paths here.
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return root / "dstash" / cluster
