"""Error messages about settings: where the setting is, which key it has, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from dstash.config.fields import Conflict
from dstash.config.rules import WrongElement, rules_of
from dstash.errors import ConfigError
from dstash.limits import show_number

_AT_LINE = re.compile(r"(?P<what>.*) \(at line (?P<line>\d+), column \d+\)", re.DOTALL)
_MAX_VALUE_CHARS: Final = 60
#: Earlier names of settings: an unknown key of this name gets the present name as its hint.
FORMER_NAMES: Final = {
    "bury_interval": "gc_interval",
    "bury_lag": "gc_grace",
    "heal_rate": "repair_rate",
}


#: What gives settings to a program: the command line, or the arguments of a Python call.
COMMAND_LINE: Final = "command line"
ARGUMENT: Final = "argument"


class Problem(NamedTuple):
    """A mistake in the settings, and its place: file and line, variable, command line, argument."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}{' ' if self.where == ARGUMENT else ': '}{self.text}"


@dataclass(frozen=True)
class Origins:
    """The layer that each key came from.

    Attributes:
        text: the content of the file, to find lines in.
        flags: what ``in_flags`` came from: ``COMMAND_LINE`` or ``ARGUMENT``.
        in_address: by key, the ``dstash://`` address that contains it.
    """

    file: Path | None
    text: str
    in_file: frozenset[str]
    in_environ: frozenset[str]
    in_flags: frozenset[str]
    flags: str = COMMAND_LINE
    in_address: Mapping[str, str] = field(default_factory=dict)

    def of(self, key: str) -> str:
        """Return the strongest layer that sets ``key``."""
        if key in self.in_address:
            return self.in_address[key]
        if key in self.in_flags:
            return self.flags
        if key in self.in_environ:
            return f"DSTASH_{key.upper()}"
        return self.line(key) if key in self.in_file else "default"

    def place(self, key: str) -> str:
        """Return where a key that is not allowed was found: the address or the file first."""
        if key in self.in_address or key not in self.in_file:
            return self.of(key)
        return self.line(key)

    def line(self, key: str) -> str:
        """Return the file and, if the key is found in it, the line of ``key``."""
        pattern = re.compile(rf"\s*(\[\[?\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
        for number, line in enumerate(self.text.splitlines(), start=1):
            if pattern.match(line):
                return f"{self.file}, line {number}"
        return str(self.file)

    def all(self) -> dict[str, str]:
        """Return the origin of every key that is not a default."""
        keys = self.in_flags | self.in_environ | self.in_file | self.in_address.keys()
        return {key: self.of(key) for key in sorted(keys)}


def refuse(problems: Sequence[Problem]) -> None:
    """Raise ``ConfigError`` if there are problems."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        texts = [str(problem) for problem in problems]
        raise ConfigError(f"{problems[0]}{more}", problems=texts) from None


def toml_problem(file: Path, message: str) -> Problem:
    """Return the problem of a file that is not TOML, with the line of the syntax error."""
    match = _AT_LINE.fullmatch(message)
    if match is None:
        return Problem(str(file), f"is not TOML: {message}")
    return Problem(f"{file}, line {match['line']}", f"is not TOML: {match['what']}")


def unknown_key(model: type, key: str, origins: Origins) -> Problem:
    """Return the problem of a key that does not exist; the hint is the most similar key."""
    from difflib import get_close_matches  # slow to load

    known = rules_of(model)
    present = FORMER_NAMES.get(key)
    similar = get_close_matches(key, known, n=1)
    if present in known:
        hint = f"did you mean '{present}'?"
    elif similar:
        hint = f"did you mean '{similar[0]}'?"
    else:
        hint = f"allowed are {', '.join(sorted(known))}"
    where = origins.place(key)
    if where == ARGUMENT:
        return Problem(where, f"{key!r} is unknown; {hint}")
    return Problem(where, f"unknown key '{key}'; {hint}")


def missing_key(key: str, origins: Origins) -> Problem:
    """Return the problem of a required key that is not set."""
    return Problem(
        str(origins.file or "settings"),
        f"{key} is required; give it on the command line, as DSTASH_{key.upper()}, or in the file",
    )


def conflict(error: Conflict, origins: Origins) -> Problem:
    """Return the problem of two settings that contradict each other."""
    return Problem(origins.of(error.key), str(error))


def wrong_value(key: str, value: Any, error: ValueError, origins: Origins) -> Problem:
    """Return the problem of a value that is not allowed; the text says what is allowed."""
    wrong = error.element if isinstance(error, WrongElement) else value
    return Problem(origins.of(key), f"{key} is {_shown(key, wrong)}; {error}")


def _shown(key: str, value: Any) -> str:
    if "token" in key and not key.endswith("_file"):
        return "a malformed secret"
    text = show_number(value) if isinstance(value, int) else repr(value)
    if key == "peers" and ("@" in text or "token" in text):
        return "an address with a secret"
    return text if len(text) <= _MAX_VALUE_CHARS else text[:_MAX_VALUE_CHARS] + "..."
