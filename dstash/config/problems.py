"""Error messages about settings: where the setting is, which key it has, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dstash.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from pydantic_settings import BaseSettings

_AT_LINE = re.compile(r"(?P<what>.*) \(at line (?P<line>\d+), column \d+\)", re.DOTALL)
_MAX_VALUE_CHARS: Final = 60
#: Earlier names of settings: an unknown key of this name gets the present name as its hint.
FORMER_NAMES: Final = {
    "bury_interval": "gc_interval",
    "bury_lag": "gc_grace",
    "heal_rate": "repair_rate",
}


class Problem(NamedTuple):
    """A mistake in the settings, and its place: file and line, variable, or command line."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Origins:
    """The layer that each key came from. ``text`` is the content of the file, to find lines in."""

    file: Path | None
    text: str
    in_file: frozenset[str]
    in_environ: frozenset[str]
    in_flags: frozenset[str]

    def of(self, key: str) -> str:
        """Return the strongest layer that sets ``key``."""
        if key in self.in_flags:
            return "command line"
        if key in self.in_environ:
            return f"DSTASH_{key.upper()}"
        return self.line(key) if key in self.in_file else "default"

    def line(self, key: str) -> str:
        """Return the file and, if the key is found in it, the line of ``key``."""
        pattern = re.compile(rf"\s*(\[\[?\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
        for number, line in enumerate(self.text.splitlines(), start=1):
            if pattern.match(line):
                return f"{self.file}, line {number}"
        return str(self.file)

    def all(self) -> dict[str, str]:
        """Return the origin of every key that is not a default."""
        keys = self.in_flags | self.in_environ | self.in_file
        return {key: self.of(key) for key in sorted(keys)}


def refuse(problems: Sequence[Problem]) -> None:
    """Raise ``ConfigError`` if there are problems."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise ConfigError(f"{problems[0]}{more}", problems=[str(problem) for problem in problems])


def toml_problem(file: Path, message: str) -> Problem:
    """Return the problem of a file that is not TOML, with the line of the syntax error."""
    match = _AT_LINE.fullmatch(message)
    if match is None:
        return Problem(str(file), f"is not TOML: {message}")
    return Problem(f"{file}, line {match['line']}", f"is not TOML: {match['what']}")


def unknown_key(model: type[BaseSettings], key: str, origins: Origins) -> Problem:
    """Return the problem of a key that does not exist; the hint is the most similar key."""
    present = FORMER_NAMES.get(key)
    similar = get_close_matches(key, model.model_fields, n=1)
    if present in model.model_fields:
        hint = f"did you mean '{present}'?"
    elif similar:
        hint = f"did you mean '{similar[0]}'?"
    else:
        hint = f"allowed are {', '.join(sorted(model.model_fields))}"
    where = origins.line(key) if key in origins.in_file else origins.of(key)
    return Problem(where, f"unknown key '{key}'; {hint}")


def wrong_value(model: type[BaseSettings], error: ErrorDetails, origins: Origins) -> Problem:
    """Return the problem of a value that is not allowed; the text says what is allowed."""
    cause = error.get("ctx", {}).get("error")
    key = str(getattr(cause, "key", "") or (error["loc"][0] if error["loc"] else ""))
    if error["type"] == "extra_forbidden":
        return unknown_key(model, key, origins)
    if error["type"] == "missing":
        return Problem(
            str(origins.file or "settings"),
            f"{key} is required; give it on the command line, as DSTASH_{key.upper()}, "
            "or in the file",
        )
    if hasattr(cause, "key"):
        return Problem(origins.of(key), f"{key}: {cause}")
    allowed = str(cause) if cause else f"allowed is {_allowed(model, key)}"
    return Problem(origins.of(key), f"{key} is {_shown(key, error['input'])}; {allowed}")


def _shown(key: str, value: Any) -> str:
    if "token" in key and not key.endswith("_file"):
        return "a malformed secret"
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[:_MAX_VALUE_CHARS] + "..."


def _allowed(model: type[BaseSettings], key: str) -> str:
    schema = model.model_json_schema()
    options = schema["properties"][key]
    choices = options.get("anyOf", [options])
    words = [_described(choice, schema) for choice in choices if choice.get("type") != "null"]
    return " or ".join(words)


def _described(option: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in option:
        option = schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
    if "enum" in option:
        return " | ".join(option["enum"])
    if option["type"] in ("integer", "number"):
        noun = "a whole number" if option["type"] == "integer" else "a number"
        return noun + _range(option)
    nouns = {"boolean": "true or false", "array": "a list of texts", "string": "a text"}
    return "a path" if option.get("format") == "path" else nouns[option["type"]]


def _range(option: dict[str, Any]) -> str:
    words = {
        "minimum": "from",
        "exclusiveMinimum": "above",
        "maximum": "to" if "minimum" in option else "up to",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {option[name]:.15g}" for name, word in words.items() if name in option]
    return " " + " ".join(bounds) if bounds else ""
