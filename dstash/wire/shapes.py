"""How a message class travels: which of its fields stand in the header, and which are frames.

A message class is a frozen dataclass with a number, its ``KIND``. Its fields travel in order, in
the header; those of type ``Frame`` as frames of their own behind it, because they are large and
opaque: packed once, sent to several replicas. A receiver ignores fields that it does not know and
fills in defaults for those that it misses, so fields are append-only, like kinds.
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Final, NamedTuple, NewType, TypeVar

from dstash.errors import ProtocolError

#: A body frame: a packed msgpack array, opaque until somebody needs it.
Frame = NewType("Frame", bytes)

EMPTY: Final = Frame(b"\x90")

_MAX_WORD: Final = (1 << 64) - 1


class Message:
    """Base of all messages; subclasses are frozen dataclasses with a ``KIND``."""

    KIND: ClassVar[int]
    __slots__ = ()


_M = TypeVar("_M", bound=Message)


class Shape(NamedTuple):
    """How one message class travels."""

    build: type[Message]
    plain: tuple[tuple[str, tuple[type, ...], Any], ...]
    frames: tuple[str, ...]
    plain_of: Callable[[Message], tuple[Any, ...]]
    frames_of: Callable[[Message], tuple[Frame, ...]]
    #: A value that the last field does not travel with; ``MISSING``: it always travels.
    omitted: Any
    #: Whether a map at the end of the header is a field: of some replies, never of a request.
    ends_in_map: bool


def _getter(names: tuple[str, ...]) -> Callable[[Message], tuple[Any, ...]]:
    """Return a function that reads those attributes, at the speed of C where there are some."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda message: tuple([getattr(message, name) for name in names])


def _accepted(hint: Any) -> tuple[type, ...]:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return tuple(kind for part in typing.get_args(hint) for kind in _accepted(part))
    return (origin or hint,)


def _default(one: Any) -> Any:
    if one.default is not MISSING:
        return one.default
    return one.default_factory() if one.default_factory is not MISSING else MISSING


def rarely_set(default: Any) -> Any:
    """Return a last field that travels only with another value than its default.

    So a message without it has the bytes that it had before there was such a field.
    """
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"omitted": default})
    return field(default=default, metadata={"omitted": default})


def _shape(cls: Any) -> Shape:
    hints = typing.get_type_hints(cls)
    plain = tuple(
        (one.name, _accepted(hints[one.name]), _default(one))
        for one in fields(cls)
        if hints[one.name] is not Frame
    )
    frames = tuple(one.name for one in fields(cls) if hints[one.name] is Frame)
    plain_of = _getter(tuple(one[0] for one in plain))
    ends_in_map = bool(plain) and dict in plain[-1][1]
    last = [one for one in fields(cls) if hints[one.name] is not Frame][-1:]
    omitted = last[0].metadata.get("omitted", MISSING) if last else MISSING
    return Shape(cls, plain, frames, plain_of, _getter(frames), omitted, ends_in_map)


#: By kind, how its messages travel.
SHAPES: Final[dict[int, Shape]] = {}


@typing.dataclass_transform(frozen_default=True)
def message(cls: type[_M]) -> type[_M]:
    """Make a class a frozen dataclass known to ``encode`` and ``decode``; its kind must be free."""
    made = dataclass(frozen=True, slots=True)(cls)
    if made.KIND in SHAPES:
        raise AssertionError(f"kind {made.KIND} is taken by {SHAPES[made.KIND].build.__name__}")
    SHAPES[made.KIND] = _shape(made)
    return made


def read_fields(shape: Shape, given: list[Any], correlation: int) -> dict[str, Any]:
    """Return the fields of a message by name; ``ProtocolError`` when one is missing or wrong."""
    values: dict[str, Any] = {}
    for place, (name, accepted, default) in enumerate(shape.plain):
        value = given[place] if place < len(given) else default
        if type(value) not in accepted or (type(value) is int and not is_word(value)):
            raise ProtocolError(
                f"{shape.build.__name__}.{name} is missing or of the wrong type",
                correlation=correlation,
            )
        values[name] = value
    return values


def is_word(value: Any) -> bool:
    """Whether a value is a number that fits into 64 bits without a sign."""
    return type(value) is int and 0 <= value <= _MAX_WORD


def weight_of(message: Message) -> int:
    """Return the bytes of the body frames of a message: nearly all that it weighs."""
    return sum(map(len, SHAPES[message.KIND].frames_of(message)))
