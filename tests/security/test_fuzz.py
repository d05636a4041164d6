"""Property tests with any bytes: the codec refuses them, and the core answers or drops them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dstash.errors import ProtocolError
from dstash.peer.admission.authority import Authority, Grant, Role
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error, Lookup, Put, Stored, Values
from dstash.wire.replication import DigestsReply, DigestsRequest
from dstash.wire.shapes import SHAPES, Frame
from tests.fuzz.target import EPOCH, NOW, Target

#: Bytes that pass more checks than random noise.
BITES = st.sampled_from(
    [b"\x90", b"\x91\xc4\x01k", b"\x91\xa1v", b"\xdc\xff\xff", b"\xc1", b"\x00" * 20, b"\xff" * 20]
)
BYTES = st.one_of(st.binary(max_size=300), BITES)
WORDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, EPOCH, NOW, 2**63, 2**64 - 1]))
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), WORDS, st.text(max_size=70), BYTES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
RELAXED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@st.composite
def nearly_right(draw: st.DrawFn) -> list[bytes]:
    """Return a message of a kind that exists, with fields of the right types and any content."""
    shape = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    fields = {name: draw(_BY_TYPE.get(kinds[0], PLAIN)) for name, kinds, _ in shape.plain}
    fields |= {name: draw(BYTES) for name in shape.frames}
    epoch = draw(st.one_of(st.just(EPOCH), WORDS))
    deadline = draw(st.sampled_from([0, NOW + 1000, NOW - 1, 2**64 - 1]))
    return encode(Envelope(draw(WORDS), epoch, deadline, shape.build(**fields)))


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """Return such a message with a mutation."""
    parts = [bytearray(part) for part in draw(nearly_right())]
    for _ in range(draw(st.integers(1, 4))):
        part = draw(st.sampled_from(parts))
        at = draw(st.integers(0, len(part)))
        part[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return [bytes(part) for part in parts][: draw(st.integers(0, 9))]


_BY_TYPE: dict[type, st.SearchStrategy[Any]] = {
    int: WORDS,
    bytes: BYTES,
    str: st.one_of(st.just("i"), st.text(max_size=70)),
    bool: st.booleans(),
    list: st.lists(PLAIN, max_size=4),
    dict: st.dictionaries(st.text(max_size=5), PLAIN, max_size=3),
}
ANYTHING = st.one_of(st.lists(st.binary(max_size=300), max_size=9), nearly_right(), mutated())


@pytest.mark.parametrize(
    "read",
    [
        codec.unpack_header,
        codec.unpack_keys,
        codec.unpack_blobs,
        codec.unpack_optional_blobs,
        lambda data: decode([data]),
        lambda data: codec.malformed_payloads([data, b"\x01"]),
    ],
    ids=["header", "keys", "blobs", "optional", "decode", "payloads"],
)
@RELAXED
@given(st.one_of(st.binary(max_size=2000), PLAIN.map(lambda item: codec.pack_header([item])[1:])))
def test_codec_decodes_or_refuses_any_bytes(read: Callable[[bytes], object], data: bytes) -> None:
    with suppress(ProtocolError):
        read(data)


def test_fuzz_target_answers_like_a_peer() -> None:
    """Otherwise the tests below would prove nothing."""
    target = Target(Authority({"writer": Grant(Role.WRITE), "other": Grant(Role.PEER)}))
    keys = Frame(codec.pack_blobs([b"\x01a"]))
    put = Put("i", pack(stamp_at(NOW), bytes(12)), 0, keys, Frame(codec.pack_blobs([b"\x02"])))
    for user, message, answer in [
        ("writer", put, Stored),
        ("writer", Lookup("i", 1, keys), Values),
        ("other", DigestsRequest(b"\x00\x00"), DigestsReply),
        (None, Lookup("i", 1, keys), Error),
    ]:
        replies = target.hit(encode(Envelope(1, EPOCH, 0, message)), user)
        assert [type(decode(reply.frames).message) for reply in replies] == [answer]


@RELAXED
@given(st.lists(ANYTHING, min_size=1, max_size=8))
def test_core_answers_or_drops_any_message(sequence: list[list[bytes]]) -> None:
    target = Target()
    for parts in sequence:
        target.hit(parts)


@RELAXED
@given(st.lists(ANYTHING, min_size=1, max_size=8), st.sampled_from([None, "", "reader", "peer"]))
def test_core_of_closed_cluster_answers_or_drops_any_message(
    sequence: list[list[bytes]], user: str | None
) -> None:
    target = Target(Authority({"reader": Grant(Role.READ), "peer": Grant(Role.PEER)}))
    before = target.content()
    for parts in sequence:
        target.hit(parts, user)
    assert target.content() == before  # none of these may write


@RELAXED
@given(ANYTHING)
def test_core_accepts_any_message_as_answer(parts: list[bytes]) -> None:
    target = Target()
    target.core.outgoing.answered("p2", parts, NOW)
    target.drain()
