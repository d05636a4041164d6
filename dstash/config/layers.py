"""The layers of settings: flag > environment > file > default.

The layer that each value came from is recorded, for error messages and ``dstash config show``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from dstash.config.address import address_in, settings_in
from dstash.config.client import ClientSettings
from dstash.config.fields import Conflict
from dstash.config.peer import PeerSettings
from dstash.config.problems import (
    COMMAND_LINE,
    FORMER_NAMES,
    Origins,
    Problem,
    conflict,
    missing_key,
    refuse,
    toml_problem,
    unknown_key,
    wrong_value,
)
from dstash.config.rules import rules_of
from dstash.config.shared import SharedSettings

S = TypeVar("S", bound=SharedSettings)

PREFIX: Final = "DSTASH_"
#: Set by ``dstash lock`` for the command that it runs: the fencing token of the lock.
LOCK_TOKEN: Final = "DSTASH_LOCK_TOKEN"  # noqa: S105  # the name of a variable
#: Read by the command line itself, before it loads settings; or set by it.
_OTHER_VARIABLES: Final = frozenset({"DSTASH_CONFIG", "DSTASH_DEBUG", LOCK_TOKEN})
#: Not allowed in a file or an address: others may read it, and a file may be committed.
_SECRETS: Final = frozenset({"consul_token"})


@dataclass(frozen=True)
class Layered(Generic[S]):
    """Settings, and the origin of each value; a key that is not in ``origins`` has its default."""

    settings: S
    origins: Mapping[str, str]


def layered(
    model: type[S],
    file: Path | None,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    source: str = COMMAND_LINE,
) -> Layered[S]:
    """Build settings from all layers. A flag of None counts as not given.

    Args:
        model: the class of the settings.
        file: a TOML file, or None.
        flags: by key, what the command line or the caller gave.
        environ: the environment with the ``DSTASH_*`` variables.
        source: of the flags, for messages: ``COMMAND_LINE`` or ``ARGUMENT``.

    Raises:
        ConfigError: ``details["problems"]`` lists every problem, one line each.
    """
    text, in_file = _read(file) if file else ("", {})
    in_flags = {key: value for key, value in flags.items() if value is not None}
    layers = [in_file, _variables(model, environ), in_flags]
    in_address, problem = _open_address(layers)
    keys_in_file, keys_in_environ, keys_in_flags = (frozenset(layer) for layer in layers)
    origins = Origins(file, text, keys_in_file, keys_in_environ, keys_in_flags, source, in_address)
    refuse([wrong_value("peers", *problem, origins)] if problem else [])
    given = {key: value for layer in layers for key, value in layer.items()}
    problems = _check_keys(model, given, origins) + _former_variables(model, environ, origins)
    values, wrong = _read_values(model, given, origins)
    refuse((problems + wrong) if wrong else [])
    try:
        settings = model(**values)
    except Conflict as error:
        refuse([*problems, conflict(error, origins)])
    refuse(problems + _unreadable(settings, origins))
    return Layered(settings, origins.all())


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the ``DSTASH_*`` variables that set nothing. They deserve a warning, not an error."""
    keys = {*rules_of(PeerSettings), *rules_of(ClientSettings)}
    known = {PREFIX + key.upper() for key in keys} | _OTHER_VARIABLES
    return sorted(name for name in environ if name.startswith(PREFIX) and name.upper() not in known)


def keys_of(file: Path) -> set[str]:
    """Return the keys of a settings file; empty if it cannot be read, which ``layered`` reports."""
    try:
        import tomllib

        return set(tomllib.loads(file.read_bytes().decode("utf-8-sig")))
    except (OSError, ValueError):
        return set()


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    import tomllib  # most clients have no file

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


def _variables(model: type[SharedSettings], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings in the environment. An empty variable counts as not set."""
    named = {name.upper(): value for name, value in environ.items() if value}
    names = {key: PREFIX + key.upper() for key in rules_of(model)}
    return {key: named[name] for key, name in names.items() if name in named}


def _open_address(
    layers: Sequence[dict[str, Any]],
) -> tuple[dict[str, str], tuple[Any, ValueError] | None]:
    """Replace ``peers`` by the settings in it, if it is an address in the strongest layer with it.

    The settings in an address are those of its layer, unless the layer has them itself.

    Returns:
        by key, the address that sets it; the wrong value of ``peers`` and its error, if any.
    """
    number, peers = max(
        ((number, layer["peers"]) for number, layer in enumerate(layers) if "peers" in layer),
        default=(0, None),
        key=itemgetter(0),
    )
    try:
        address = address_in(peers)
        inside = settings_in(address) if address else {}
    except ValueError as error:
        return {}, (peers, error)
    if not address:
        return {}, None
    for layer in layers:
        layer.pop("peers", None)
    added = {key: value for key, value in inside.items() if key not in layers[number]}
    layers[number].update(added)
    overridden = {key for layer in layers[number + 1 :] for key in layer}
    place = address.partition("?")[0]  # without the query, which may contain a secret
    return dict.fromkeys(added.keys() - overridden, place), None


def _check_keys(
    model: type[SharedSettings], given: Mapping[str, Any], origins: Origins
) -> list[Problem]:
    problems = []
    for key in given:
        place = "an address" if key in origins.in_address else "a file"
        if key in _SECRETS and (key in origins.in_address or key in origins.in_file):
            text = f"{key} is not allowed in {place}; set {PREFIX}{key.upper()} or {key}_file"
            problems.append(Problem(origins.place(key), text))
        elif key not in rules_of(model):
            problems.append(unknown_key(model, key, origins))
    return problems


def _read_values(
    model: type[SharedSettings], given: Mapping[str, Any], origins: Origins
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the values of the settings, and the problems of those that are wrong or missing."""
    required = {field.name for field in fields(model) if _is_required(field)}
    values, problems = {}, []
    for key, rule in rules_of(model).items():
        if key in given:
            try:
                values[key] = rule(given[key])
            except ValueError as error:
                problems.append(wrong_value(key, given[key], error, origins))
        elif key in required:
            problems.append(missing_key(key, origins))
    return values, problems


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _former_variables(
    model: type[SharedSettings], environ: Mapping[str, str], origins: Origins
) -> list[Problem]:
    # Any other unknown variable gets a warning only. One with a former name was meant for this
    # program, and its value would silently not apply.
    set_names = {name.upper() for name, value in environ.items() if value}
    return [
        Problem(variable, unknown_key(model, former, origins).text)
        for former, present in FORMER_NAMES.items()
        if present in rules_of(model) and (variable := PREFIX + former.upper()) in set_names
    ]


def _may_be(key: str, path: Path) -> bool:
    return path.is_file() or (key == "authorised_keys" and path.is_dir())


def _unreadable(settings: SharedSettings, origins: Origins) -> list[Problem]:
    return [
        Problem(origins.of(key), f"{key} is '{path}', which is not a readable file")
        for key, path in settings.files().items()
        if not (_may_be(key, path) and os.access(path, os.R_OK))
    ]
