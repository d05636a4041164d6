"""The encoding of a message class: which fields are in the header, and which are frames.

A message class is a frozen dataclass with a number, its ``KIND``. Its fields are in the header, in
order. Fields of type ``Frame`` follow as separate frames, because they are large and opaque: they
are packed once and sent to several replicas. A receiver ignores unknown fields and uses the
defaults of missing fields. Therefore fields and kinds are append-only: the number of a deleted
message is not reused.
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Final, NamedTuple, NewType, TypeVar

from dstash.errors import ProtocolError

#: A body frame: a packed msgpack array, opaque until it is decoded.
Frame = NewType("Frame", bytes)

EMPTY: Final = Frame(b"\x90")

_MAX_UINT64: Final = (1 << 64) - 1


class Message:
    """Base of all messages; subclasses are frozen dataclasses with a ``KIND``."""

    KIND: ClassVar[int]
    __slots__ = ()


_M = TypeVar("_M", bound=Message)


class Shape(NamedTuple):
    """The encoding of one message class."""

    build: type[Message]
    plain: tuple[tuple[str, tuple[type, ...], Any], ...]
    frames: tuple[str, ...]
    plain_of: Callable[[Message], tuple[Any, ...]]
    frames_of: Callable[[Message], tuple[Frame, ...]]
    #: The value with which the last field is omitted; ``MISSING`` if it never is.
    omitted: Any
    #: Whether a map at the end of the header is a field; true for some replies, for no request.
    ends_in_map: bool


def _getter(names: tuple[str, ...]) -> Callable[[Message], tuple[Any, ...]]:
    """Return a function that reads those attributes; several are read by C code."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda message: tuple([getattr(message, name) for name in names])


def _accepted(hint: Any) -> tuple[type, ...]:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return tuple(kind for part in typing.get_args(hint) for kind in _accepted(part))
    return (origin or hint,)


def _default(declared: Any) -> Any:
    if declared.default is not MISSING:
        return declared.default
    return declared.default_factory() if declared.default_factory is not MISSING else MISSING


def rarely_set(default: Any) -> Any:
    """Return a last field that is omitted if it has its default value.

    The bytes of such a message are the same as before the field existed.
    """
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"omitted": default})
    return field(default=default, metadata={"omitted": default})


def _shape(cls: Any) -> Shape:
    hints = typing.get_type_hints(cls)
    plain = tuple(
        (declared.name, _accepted(hints[declared.name]), _default(declared))
        for declared in fields(cls)
        if hints[declared.name] is not Frame
    )
    frames = tuple(declared.name for declared in fields(cls) if hints[declared.name] is Frame)
    plain_of = _getter(tuple(name for name, _, _ in plain))
    ends_in_map = bool(plain) and dict in plain[-1][1]
    last = [declared for declared in fields(cls) if hints[declared.name] is not Frame][-1:]
    omitted = last[0].metadata.get("omitted", MISSING) if last else MISSING
    return Shape(cls, plain, frames, plain_of, _getter(frames), omitted, ends_in_map)


#: The encoding of each message class, by kind.
SHAPES: Final[dict[int, Shape]] = {}


@typing.dataclass_transform(frozen_default=True)
def message(cls: type[_M]) -> type[_M]:
    """Make a class a frozen dataclass and register it; its kind must be unused."""
    made = dataclass(frozen=True, slots=True)(cls)
    if made.KIND in SHAPES:
        raise AssertionError(f"kind {made.KIND} is taken by {SHAPES[made.KIND].build.__name__}")
    SHAPES[made.KIND] = _shape(made)
    return made


def read_fields(shape: Shape, given: list[Any], correlation: int, protocol: int) -> dict[str, Any]:
    """Return the fields of a message by name; ``ProtocolError`` if a field is missing or wrong."""
    values: dict[str, Any] = {}
    for place, (name, accepted, default) in enumerate(shape.plain):
        value = given[place] if place < len(given) else default
        if type(value) not in accepted or (type(value) is int and not is_word(value)):
            raise ProtocolError(
                f"{shape.build.__name__}.{name} is missing or of the wrong type",
                correlation=correlation,
                protocol=protocol,
            )
        values[name] = value
    return values


def is_word(value: Any) -> bool:
    """Whether a value is an unsigned 64-bit integer."""
    return type(value) is int and 0 <= value <= _MAX_UINT64


def weight_of(message: Message) -> int:
    """Return the size of the body frames of a message, nearly its whole size."""
    return sum(map(len, SHAPES[message.KIND].frames_of(message)))
