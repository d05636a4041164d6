"""The layers of settings: flag > environment > file > default.

The layer that each value came from is recorded, for error messages and ``dstash config show``.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings.sources.utils import parse_env_vars

from dstash.config.client import ClientSettings
from dstash.config.peer import PeerSettings
from dstash.config.problems import (
    FORMER_NAMES,
    Origins,
    Problem,
    refuse,
    toml_problem,
    unknown_key,
    wrong_value,
)
from dstash.config.shared import SharedSettings

S = TypeVar("S", bound=SharedSettings)

PREFIX: Final = "DSTASH_"
#: Read by the command line itself, before it loads settings.
_OTHER_VARIABLES: Final = frozenset({"DSTASH_CONFIG", "DSTASH_DEBUG"})
#: Not allowed in a file: other users may read it, and it may be committed.
_NOT_IN_FILES: Final = frozenset({"consul_token"})


@dataclass(frozen=True)
class Layered(Generic[S]):
    """Settings, and the origin of each value; a key that is not in ``origins`` has its default."""

    settings: S
    origins: Mapping[str, str]


class _Environment(EnvSettingsSource):
    """A given environment, instead of that of the process."""

    def __init__(self, model: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(model)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return parse_env_vars(
            self._environ, self.case_sensitive, self.env_ignore_empty, self.env_parse_none_str
        )


def layered(
    model: type[S], file: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> Layered[S]:
    """Build settings from all layers. A flag of None counts as not given.

    Raises:
        ConfigError: ``details["problems"]`` lists every problem, one line each.
    """
    text, in_file = _read(file) if file else ("", {})
    in_environ = _Environment(model, environ)()
    in_flags = {key: value for key, value in flags.items() if value is not None}
    origins = Origins(file, text, frozenset(in_file), frozenset(in_environ), frozenset(in_flags))
    problems = _check_keys(model, in_file, origins) + _former_variables(model, environ, origins)
    known = {key: value for key, value in in_file.items() if key in model.model_fields}
    try:
        settings = model(**known | in_environ | in_flags)
    except ValidationError as error:
        refuse(problems + [wrong_value(model, details, origins) for details in error.errors()])
    refuse(problems + _unreadable(settings, origins))
    return Layered(settings, origins.all())


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the ``DSTASH_*`` variables that set nothing. They deserve a warning, not an error."""
    fields = {*PeerSettings.model_fields, *ClientSettings.model_fields}
    known = {PREFIX + key.upper() for key in fields} | _OTHER_VARIABLES
    return sorted(name for name in environ if name.startswith(PREFIX) and name.upper() not in known)


def keys_of(file: Path) -> set[str]:
    """Return the keys of a settings file; empty if it cannot be read, which ``layered`` reports."""
    try:
        return set(tomllib.loads(file.read_bytes().decode("utf-8-sig")))
    except (OSError, ValueError):
        return set()


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_bytes().decode("utf-8-sig")  # editors of Windows write a byte order mark
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem = toml_problem(file, str(error))
    except OSError as error:
        problem = Problem(str(file), f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        problem = Problem(str(file), f"is not UTF-8 text (byte {error.start})")
    refuse([problem])
    raise AssertionError  # refuse has raised


def _check_keys(model: type[S], keys: Mapping[str, Any], origins: Origins) -> list[Problem]:
    problems = []
    for key in keys:
        if key in _NOT_IN_FILES:
            text = f"{key} is not allowed in a file; set {PREFIX}{key.upper()} or {key}_file"
            problems.append(Problem(origins.line(key), text))
        elif key not in model.model_fields:
            problems.append(unknown_key(model, key, origins))
    return problems


def _former_variables(
    model: type[S], environ: Mapping[str, str], origins: Origins
) -> list[Problem]:
    # Any other unknown variable gets a warning only. One with a former name was meant for this
    # program, and its value would silently not apply.
    set_names = {name.upper() for name, value in environ.items() if value}
    return [
        Problem(variable, unknown_key(model, former, origins).text)
        for former, present in FORMER_NAMES.items()
        if present in model.model_fields and (variable := PREFIX + former.upper()) in set_names
    ]


def _may_be(key: str, path: Path) -> bool:
    return path.is_file() or (key == "authorised_keys" and path.is_dir())


def _unreadable(settings: SharedSettings, origins: Origins) -> list[Problem]:
    return [
        Problem(origins.of(key), f"{key} is '{path}', which is not a readable file")
        for key, path in settings.files().items()
        if not (_may_be(key, path) and os.access(path, os.R_OK))
    ]
