"""Rules: how the value of a setting is read from what a file, the environment or a caller gives.

A rule takes the given value and returns the value of the setting. If the given value is not
allowed, the rule raises ``ValueError``, whose text completes the message "<key> is <value>; ...".

The rule of a setting follows from its annotation: ``Annotated[float, Number(float, above=0)]`` has
it inside; ``bool``, ``Literal`` and enumerations have one of their own.
"""

from __future__ import annotations

import enum
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

#: Reads the value of a setting.
Rule = Callable[[Any], Any]

_WORDS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("1", "t", "true", "y", "yes", "on"), True),
    **dict.fromkeys(("0", "f", "false", "n", "no", "off"), False),
}


#: What ``rules_of`` has returned.
_RULES: Final[dict[type, Mapping[str, Rule]]] = {}


class WrongElement(ValueError):
    """An element of a list is not allowed; ``element`` is what was given."""

    def __init__(self, element: str, text: str) -> None:
        super().__init__(text)
        self.element = element


def text(check: Callable[[str], Any]) -> Rule:
    """Return a rule that reads a text.

    Args:
        check: returns the value for a text, or raises ``ValueError``.
    """

    def read(raw: Any) -> Any:
        if not isinstance(raw, str):
            raise ValueError("allowed is a text")
        return check(raw)

    return read


def boolean(raw: Any) -> bool:
    """Read true or false; in a text also yes and no, on and off, 1 and 0."""
    if isinstance(raw, str):
        found = _WORDS.get(raw.strip().lower())
    else:
        found = bool(raw) if isinstance(raw, int) and raw in (0, 1) else None
    if found is None:
        raise ValueError("allowed is true or false")
    return found


@dataclass(frozen=True)
class Number:
    """Reads a number, or the text of a number, within limits.

    Args:
        type: ``int`` for whole numbers, or ``float``.
        least, most: the limits, which are allowed themselves.
        above, below: the limits, which are not allowed themselves.
    """

    type: type[int] | type[float]
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __call__(self, raw: Any) -> int | float:
        """Read a number."""
        number = self._number(raw)
        if number is None or not self._is_within(number):
            raise ValueError(f"allowed is {self}")
        return number

    def __str__(self) -> str:
        words = (
            ("from", self.least),
            ("above", self.above),
            ("up to" if self.least is None else "to", self.most),
            ("below", self.below),
        )
        limits = [f" {word} {limit:.15g}" for word, limit in words if limit is not None]
        return ("a whole number" if self.type is int else "a number") + "".join(limits)

    def _number(self, raw: Any) -> int | float | None:
        if isinstance(raw, bool) or not isinstance(raw, str | int | float):
            return None
        try:
            number = float(raw)
            if self.type is float:
                return number if math.isfinite(number) else None
            whole = int(raw)  # not by way of float, which is exact up to 2**53 only
        except (ValueError, OverflowError):
            return None
        return whole if isinstance(raw, str) or whole == raw else None

    def _is_within(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )


def choice(options: Mapping[str, Any]) -> Rule:
    """Return a rule that reads one of several words.

    Args:
        options: the value of the setting for each word.
    """

    def read(raw: Any) -> Any:
        if not isinstance(raw, str) or raw not in options:
            raise ValueError(f"allowed is {' | '.join(options)}")
        return options[raw]

    return read


def listing(rule: Rule) -> Rule:
    """Return a rule that reads a list, or a text with commas, whose elements follow ``rule``."""

    def read(raw: Any) -> list[Any]:
        parts = raw.split(",") if isinstance(raw, str) else raw
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise ValueError("allowed is a list of texts")
        return [_element(part, rule) for part in parts if part.strip() or not isinstance(raw, str)]

    return read


def _element(part: str, rule: Rule) -> Any:
    try:
        return rule(part)
    except ValueError as error:
        raise WrongElement(part, str(error)) from None


def rules_of(settings: type) -> Mapping[str, Rule]:
    """Return the rule of each setting of a class, in the order of their definition."""
    rules = _RULES.get(settings)
    if rules is None:
        hints = typing.get_type_hints(settings, include_extras=True)
        names = [field.name for field in fields(settings) if field.init]
        rules = _RULES[settings] = {name: _rule_of(hints[name]) for name in names}
    return rules


def _rule_of(hint: Any) -> Rule:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        rule: Rule = hint.__metadata__[0]
        return rule
    if origin in (typing.Union, types.UnionType):
        (inner,) = (part for part in typing.get_args(hint) if part is not type(None))
        return _rule_of(inner)
    if origin is typing.Literal:
        return choice({word: word for word in typing.get_args(hint)})
    if hint is bool:
        return boolean
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
        return choice({member.value: member for member in hint})
    raise TypeError(f"a setting of type {hint} needs a rule in its annotation")
