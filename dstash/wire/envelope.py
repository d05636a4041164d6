"""The frames of a message: encoding and decoding with its envelope.

A message is ZeroMQ frames ``[header][body...]``. The header is a msgpack array::

    [protocol, kind, correlation, epoch, moment, field, field, ...]

``moment`` is the deadline in a request (milliseconds since 1970 on the receiving peer's clock,
0 for none) and the peer's clock in a reply. The remaining fields are those of the message class, in
order (``shapes.py``). After them a request may have the trace it is part of (``traceparent.py``).
"""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any, Final, NamedTuple

from dstash.errors import ProtocolError
from dstash.limits import MAX_FRAME_BYTES, MAX_FRAME_PARTS
from dstash.wire import codec, messages, registers, replication
from dstash.wire.messages import Error, Hello, Welcome
from dstash.wire.protocol import LOWEST_PROTOCOL, is_spoken, mismatch
from dstash.wire.registers import consensus
from dstash.wire.shapes import SHAPES, Message, is_word, read_fields
from dstash.wire.traceparent import context_of, trace_of

#: The modules that define messages; importing them registers the kinds.
MESSAGE_MODULES: Final = (messages, registers, replication, consensus)


class Envelope(NamedTuple):
    """A message with its header fields; ``trace`` is empty unless a request is part of a trace."""

    correlation: int
    epoch: int
    moment: int
    message: Message
    protocol: int = LOWEST_PROTOCOL
    trace: str = ""


#: Kinds that are read under any protocol version: they negotiate the version.
_NEGOTIATION: Final = frozenset({Hello.KIND, Welcome.KIND, Error.KIND})


def encode(envelope: Envelope) -> list[bytes]:
    """Return the frames of a message."""
    correlation, epoch, moment, message, protocol, trace = envelope
    shape = SHAPES[message.KIND]
    plain = shape.plain_of(message)
    if shape.omitted is not MISSING and plain[-1] == shape.omitted:
        plain = plain[:-1]
    header = (protocol, message.KIND, correlation, epoch, moment, *plain)
    if trace:
        header = (*header, context_of(trace))
    return [codec.pack_header(header), *shape.frames_of(message)]


def decode(parts: list[bytes]) -> Envelope:
    """Rebuild a message from its frames.

    Raises:
        VersionMismatch: the protocol version is not supported.
        ProtocolError: the frames are malformed in another way.
    """
    header = _read_header(parts)
    protocol, kind, correlation, epoch, moment, *given = header
    shape = SHAPES.get(kind)
    if shape is None:
        raise ProtocolError(
            f"unknown message kind {kind}", correlation=correlation, protocol=protocol
        )
    if len(parts) - 1 < len(shape.frames):
        raise ProtocolError(
            f"{shape.build.__name__} has {len(parts) - 1} body frames, needs {len(shape.frames)}",
            correlation=correlation,
            protocol=protocol,
        )
    trace = ""
    if type(header[-1]) is dict and not shape.ends_in_map:
        trace = trace_of(given.pop())
    values = read_fields(shape, given, correlation, protocol)
    values.update(zip(shape.frames, parts[1:], strict=False))
    return Envelope(correlation, epoch, moment, shape.build(**values), protocol, trace)


def _read_header(parts: list[bytes]) -> list[Any]:
    if not 1 <= len(parts) <= MAX_FRAME_PARTS:
        raise ProtocolError(f"message of {len(parts)} frames; allowed are 1 to {MAX_FRAME_PARTS}")
    if sum(map(len, parts)) > MAX_FRAME_BYTES:
        raise ProtocolError(f"message is larger than {MAX_FRAME_BYTES} bytes")
    header = codec.unpack_header(parts[0])
    if len(header) < 5 or not all(map(is_word, header[:5])):
        raise ProtocolError("header does not begin with five unsigned integers")
    if not is_spoken(header[0]) and header[1] not in _NEGOTIATION:
        raise mismatch(str(header[0]), correlation=header[2])
    return header
