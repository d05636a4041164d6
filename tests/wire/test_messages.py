"""Messages: round trips of every kind, and answers to invalid messages."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.errors import BY_CODE, DStashError, LimitError, ProtocolError, VersionMismatch
from dstash.limits import MAX_FRAME_BYTES, MAX_FRAME_PARTS
from dstash.wire import protocol, shapes
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error, Hello, Lookup, Ping, Pong, Put, Stored
from dstash.wire.protocol import HIGHEST_PROTOCOL, LOWEST_PROTOCOL
from dstash.wire.replication import (
    BucketsReply,
    BucketsRequest,
    DigestsReply,
    DigestsRequest,
    VersionsRequest,
)
from dstash.wire.shapes import SHAPES, Frame, Message
from tests.wire.examples import TRACE

KINDS = {shape.build.KIND: shape.build for shape in SHAPES.values()}
WORDS = st.integers(0, 2**64 - 1)
VERSION = bytes(20)


def like(hint: str) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a field of this type."""
    plain: dict[str, st.SearchStrategy[Any]] = {
        "int": WORDS,
        "bool": st.booleans(),
        "str": st.text(max_size=20),
        "bytes": st.binary(max_size=40),
        "Frame": st.binary(max_size=40).map(Frame),
        "list[int]": st.lists(WORDS, max_size=5),
        "list[str]": st.lists(st.text(max_size=5), max_size=5),
        "list[Any]": st.lists(WORDS | st.text(max_size=5), max_size=5),
        "list[list[Any]]": st.lists(st.tuples(WORDS, WORDS, st.text()).map(list), max_size=3),
        "dict[str, int]": st.dictionaries(st.text(max_size=5), WORDS, max_size=3),
        "dict[str, Any]": st.dictionaries(st.text(max_size=5), WORDS | st.binary(), max_size=3),
    }
    return plain[hint]


@st.composite
def any_message(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(sorted(KINDS)))
    cls: Any = KINDS[kind]
    return cls(**{field.name: draw(like(field.type)) for field in fields(cls)})


SPOKEN = st.integers(LOWEST_PROTOCOL, HIGHEST_PROTOCOL)


@st.composite
def any_envelope(draw: st.DrawFn) -> Envelope:
    message = draw(any_message())
    traces = st.just("") if SHAPES[message.KIND].ends_in_map else st.sampled_from(["", TRACE])
    return Envelope(draw(WORDS), draw(WORDS), draw(WORDS), message, draw(SPOKEN), draw(traces))


envelopes = any_envelope()

#: Position of the first field of a message, after version, kind, correlation, epoch and moment.
_FIRST_FIELD = 5


@given(envelopes)
def test_messages_round_trip(envelope: Envelope) -> None:
    assert decode(encode(envelope)) == envelope


@given(envelopes, st.lists(st.integers(0, 9) | st.text(max_size=3), min_size=1, max_size=3))
def test_fields_of_a_later_version_are_ignored(envelope: Envelope, more: list[Any]) -> None:
    parts = encode(envelope)
    header = msgpack.unpackb(parts[0], strict_map_key=False)
    context = [header.pop()] if envelope.trace else []
    shape = SHAPES[envelope.message.KIND]
    if len(header) < _FIRST_FIELD + len(shape.plain):
        header.append(shape.omitted)  # a later version adds its fields behind it
    header = [*header, *more, *context]
    assert decode([msgpack.packb(header), *parts[1:]]) == envelope


@given(envelopes)
def test_frames_of_a_later_version_are_ignored(envelope: Envelope) -> None:
    parts = encode(envelope)
    assert decode([*parts, b"more"][:MAX_FRAME_PARTS]) == envelope


def test_fields_that_an_earlier_version_lacks_have_defaults() -> None:
    assert decode([msgpack.packb([1, Hello.KIND, 7, 0, 0])]).message == Hello()
    assert decode([msgpack.packb([1, Stored.KIND, 7, 0, 0, []])]).message == Stored([])


def put(**changes: Any) -> list[bytes]:
    """Return the frames of a put, with header fields replaced by position."""
    message = Put("index", VERSION, 0, Frame(b"\x90"), Frame(b"\x90"))
    parts = encode(Envelope(7, 1, 0, message))
    header = msgpack.unpackb(parts[0])
    for place, value in changes.items():
        header[int(place[1:])] = value
    return [msgpack.packb(header), *parts[1:]]


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("bad", [-1, "1", 1.0, None, True, [], b"1"], ids=repr)
def test_header_starts_with_five_unsigned_integers(place: int, bad: Any) -> None:
    with pytest.raises(ProtocolError, match="five unsigned integers") as caught:
        decode(put(**{f"_{place}": bad}))
    assert "correlation" not in caught.value.details  # there is no request to answer


@pytest.mark.parametrize(
    ("place", "bad"),
    [(5, b"index"), (5, 1), (6, "version"), (6, None), (7, -1), (7, 1.5), (7, True), (7, "0")],
)
def test_field_of_wrong_type_is_named(place: int, bad: Any) -> None:
    with pytest.raises(ProtocolError, match=r"Put\.(index|version|expiry)") as caught:
        decode(put(**{f"_{place}": bad}))
    assert caught.value.details["correlation"] == 7


def test_missing_field_or_frame_is_named() -> None:
    whole = put()
    short = msgpack.packb(msgpack.unpackb(whole[0])[:-1])
    for parts in ([short, *whole[1:]], whole[:2], whole[:1]):
        with pytest.raises(ProtocolError) as caught:
            decode(parts)
        assert caught.value.details["correlation"] == 7


@pytest.mark.parametrize("protocol", [0, HIGHEST_PROTOCOL + 1, 2**64 - 1])
def test_other_protocol_version_is_answered_with_supported_ones(protocol: int) -> None:
    with pytest.raises(VersionMismatch) as caught:
        decode(encode(Envelope(7, 0, 0, Ping(), protocol)))
    assert caught.value.details == {"correlation": 7, "lowest": 1, "highest": HIGHEST_PROTOCOL}


@pytest.mark.parametrize(
    "message", [Hello(lowest=9, highest=12), Error(11, "9 to 12 are spoken here", {})]
)
def test_negotiation_messages_are_read_under_any_version(message: Message) -> None:
    assert decode(encode(Envelope(7, 0, 0, message, 9))).message == message


@pytest.mark.parametrize(
    ("theirs", "common"),
    [((1, 1), 1), ((1, 3), 2), ((2, 9), 2), ((3, 4), None), ((0, 0), None), (("1", 2), None)],
)
def test_highest_common_version_is_chosen(
    monkeypatch: pytest.MonkeyPatch, theirs: tuple[object, object], common: int | None
) -> None:
    monkeypatch.setattr(protocol, "HIGHEST_PROTOCOL", 2)
    assert protocol.common_protocol(*theirs) == common


@pytest.mark.parametrize("kind", sorted({0, 8, 9, 12, 13, 200, 2**64 - 1} - set(KINDS)))
def test_unknown_kind_is_answered(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown message kind {kind}") as caught:
        decode(put(_1=kind))
    assert caught.value.details["correlation"] == 7


def test_messages_have_a_limited_number_and_size_of_frames() -> None:
    whole = encode(Envelope(7, 0, 0, Ping()))
    for parts in ([], whole * (MAX_FRAME_PARTS + 1), [*whole, bytes(MAX_FRAME_BYTES)]):
        with pytest.raises(ProtocolError):
            decode(parts)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_garbage_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode(parts)


@given(envelopes, st.data())
def test_corrupt_frames_are_refused_or_decoded(envelope: Envelope, data: st.DataObject) -> None:
    header, *frames = encode(envelope)
    place = data.draw(st.integers(0, len(header) - 1))
    corrupt = header[:place] + bytes([data.draw(st.integers(0, 255))]) + header[place + 1 :]
    for bad in (corrupt, header[:place]):
        with contextlib.suppress(ProtocolError):
            assert isinstance(decode([bad, *frames]), Envelope)


def test_kinds_are_stable() -> None:
    once = {
        "Hello": 1,
        "Welcome": 2,
        "Error": 3,
        "Ping": 4,
        "Pong": 5,
        "TopologyRequest": 6,
        "TopologyReply": 7,
        "Lookup": 10,
        "Values": 11,
        "Put": 14,
        "Stored": 15,
        "Delete": 16,
        "Fetch": 17,
        "Records": 18,
        "Apply": 19,
        "Scan": 20,
        "Page": 21,
        "StatusRequest": 22,
        "StatusReply": 23,
        "ScanKeys": 24,
        "Count": 25,
        "HistoryRequest": 60,
        "HistoryReply": 61,
    }
    now = {cls.__name__: kind for kind, cls in KINDS.items()}
    assert {name: now.get(name) for name in once} == once


def test_duplicate_kind_is_refused() -> None:
    class Usurper(Message):
        KIND = Lookup.KIND

    with pytest.raises(AssertionError, match="taken by Lookup"):
        shapes.message(Usurper)


class TestTraces:
    """A request may carry a trace at the end of its header."""

    def header(self, *end: Any) -> list[Any]:
        """Return the header of a look-up with additional elements."""
        [header, _] = encode(Envelope(7, 3, 0, Lookup("index", 1, Frame(b"\x90"))))
        return [*msgpack.unpackb(header), *end]

    def read(self, *end: Any) -> Envelope:
        return decode([msgpack.packb(self.header(*end)), b"\x90"])

    def test_trace_is_read_with_other_entries(self) -> None:
        assert self.read({"traceparent": TRACE}).trace == TRACE
        assert self.read({"traceparent": TRACE, "tracestate": "a=b", 5: []}).trace == TRACE
        assert self.read("a later field", 5, {"traceparent": TRACE}).trace == TRACE

    @pytest.mark.parametrize(
        "bad",
        [
            *(TRACE[:-1], f"{TRACE}0", f"{TRACE}-what", TRACE.upper(), f"ff{TRACE[2:]}"),
            *(f"{TRACE[:3]}{'0' * 32}{TRACE[35:]}", f"{TRACE[:36]}{'0' * 16}{TRACE[52:]}"),
            *(
                "",
                "x" * 55,
                "x" * 100_000,
                TRACE.replace("-", "_"),
                TRACE.encode(),
                "\n" + TRACE[1:],
            ),
            *(
                TRACE[:-1] + "\n",
                TRACE[:-1] + "\N{ARABIC-INDIC DIGIT ONE}",
                5,
                None,
                [TRACE],
                {},
                True,
            ),
        ],
        ids=lambda bad: repr(bad)[:60],
    )
    def test_invalid_trace_is_ignored(self, bad: Any) -> None:
        whole = self.read({"traceparent": bad})
        assert whole == self.read()
        assert whole.trace == ""
        assert self.read({"x": TRACE}).trace == self.read({}).trace == ""

    def test_trace_is_only_read_as_last_element(self) -> None:
        assert self.read({"traceparent": TRACE}, 5).trace == ""
        assert self.read(TRACE).trace == ""

    def test_message_fields_are_not_read_as_trace(self) -> None:
        """Also not in a later version of the protocol with additional fields."""
        message = Error(20, "text", {"traceparent": TRACE})
        whole = decode(encode(Envelope(7, 3, 0, message)))
        assert (whole.message, whole.trace) == (message, "")
        with_map = {cls.__name__ for kind, cls in KINDS.items() if SHAPES[kind].ends_in_map}
        assert with_map == {"Error", "StatusReply"}, "a request must not end in a map"

    def test_missing_last_fields_of_traced_request_have_defaults(self) -> None:
        header = [1, Hello.KIND, 7, 0, 0, "cluster", {"traceparent": TRACE}]
        assert decode([msgpack.packb(header)]) == Envelope(7, 0, 0, Hello("cluster"), trace=TRACE)

    def test_missing_field_of_traced_request_is_named(self) -> None:
        header = self.header({"traceparent": TRACE})
        del header[6]
        with pytest.raises(ProtocolError, match=r"Lookup\.want is missing"):
            decode([msgpack.packb(header), b"\x90"])

    def test_untraced_request_has_no_extra_bytes(self) -> None:
        message = Lookup("index", 1, Frame(b"\x90"))
        plain = encode(Envelope(7, 3, 0, message, trace=""))
        assert plain == encode(Envelope(7, 3, 0, message))
        assert len(encode(Envelope(7, 3, 0, message, trace=TRACE))[0]) == len(plain[0]) + 70


class TestErrors:
    @pytest.mark.parametrize("code", sorted(BY_CODE))
    def test_error_round_trip_keeps_text_and_details(self, code: int) -> None:
        sent = BY_CODE[code]("what happened")
        sent.details = {"number": 5, "bytes": b"x"}
        message = decode(encode(Envelope(1, 0, 0, Error.of(sent)))).message
        assert isinstance(message, Error)
        back = message.error()
        assert type(back) is BY_CODE[code]
        assert str(back) == "what happened"
        if not hasattr(back, "outcomes"):
            assert back.details == sent.details

    @pytest.mark.parametrize(
        "details",
        [{"message": "x"}, {1: 2}, {"self": 1}, {"": 0}, {b"k": 1}, {"code": 1, "args": 2}],
    )
    def test_hostile_details_are_harmless(self, details: dict[Any, Any]) -> None:
        for code in BY_CODE:
            assert isinstance(Error(code, "text", details).error(), DStashError)

    def test_unknown_code_becomes_an_error(self) -> None:
        assert isinstance(Error(60_000, "from the future").error(), DStashError)

    def test_limit_error_of_a_peer_is_raised_by_the_client(self) -> None:
        with pytest.raises(LimitError, match="too long"):
            raise Error.of(LimitError("too long")).error()


def test_pong_has_minimal_size() -> None:
    assert encode(Envelope(1, 1, 0, Pong())) == [b"\x95\x01\x05\x01\x01\x00"]


#: Bytes of messages as they were before their last field was added.
BEFORE = {
    "980128070300c40205e3c2c2": DigestsRequest(b"\x05\xe3"),
    "9901290703cf0000018bcfe56800c410000102030405060708090a0b0c0d0e0fc40100c40400000001"
    "c4080000000000000000": DigestsReply(bytes(range(16)), b"\0", b"\0\0\0\1", bytes(8)),
    "96012a070300cd05e3": BucketsRequest(0x5E3),
    "96012b0703cf0000018bcfe56800c410000102030405060708090a0b0c0d0e0f": BucketsReply(
        bytes(range(16))
    ),
    "98012c070300c40205e3c400c400": VersionsRequest(b"\x05\xe3", b"", b""),
}


@pytest.mark.parametrize("header", BEFORE)
def test_messages_of_protocol_version_1_are_read_with_defaults(header: str) -> None:
    assert decode([bytes.fromhex(header)]).message == BEFORE[header]
