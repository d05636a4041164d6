"""``docs/protocol.md``: every byte, number and table in it agrees with the code."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from dstash import limits
from dstash.cluster.topology.rendezvous import Candidate, lots, place
from dstash.errors import BY_CODE
from dstash.peer.admission.requests import LIMITS
from dstash.store.record import (
    HEAD_BYTES,
    is_sound,
    open_record,
    partition_of,
    split_storage_key,
)
from dstash.types import Level
from dstash.version import VERSION_BYTES
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.keys import encode_key
from dstash.wire.protocol import HIGHEST_PROTOCOL
from dstash.wire.shapes import SHAPES
from dstash.wire.values import MAX_EXTENSION_NESTING, MAX_NESTING, TypeRegistry
from dstash.wire.values.compression import COMPRESSED_CODE
from tests.wire.examples import EXAMPLES, RECORD, block, envelope, signature, traced

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "protocol.md").read_text()
KINDS = {shape.build.KIND: shape.build for shape in SHAPES.values()}


def table(first: str) -> list[list[str]]:
    """Return the rows of the table whose header starts with these words."""
    found = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert found is not None, f"no table begins with {first}"
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in found[1].splitlines()]


def blocks() -> Iterator[tuple[str, list[bytes]]]:
    """Yield (name, frames) of every example."""
    for name, lines in re.findall(r"^```frames (\w+)\n(.*?)\n```$", TEXT, re.MULTILINE | re.DOTALL):
        yield name, [bytes.fromhex(line) for line in lines.splitlines()]


BLOCKS = dict(blocks())


def test_page_has_every_kind_of_message_once() -> None:
    headings = re.findall(r"^#### (.*)$", TEXT, re.MULTILINE)
    assert sorted(headings) == sorted(signature(cls) for cls in KINDS.values())
    shown = sorted(name for name, _ in blocks())
    assert shown == sorted(["Traced", *(cls.__name__ for cls in KINDS.values())])


@pytest.mark.parametrize(
    "sent", [envelope(*example) for example in EXAMPLES], ids=lambda sent: sent.message.KIND
)
def test_bytes_of_page_equal_those_of_the_code(sent: Envelope) -> None:
    frames = BLOCKS[type(sent.message).__name__]
    assert frames == encode(sent)
    assert decode(frames) == sent
    assert f"#### {signature(type(sent.message))}\n" in TEXT
    assert block(sent) in TEXT


def test_traced_request_has_one_more_element() -> None:
    sent = traced()
    assert BLOCKS["Traced"] == encode(sent)
    assert decode(BLOCKS["Traced"]) == sent
    assert block(sent) in TEXT
    header, *frames = encode(sent)
    plain, *same = BLOCKS["Lookup"]
    assert frames == same
    # The array has one more element at its end; a decoder that ignores it still reads the message.
    assert header[0] == plain[0] + 1
    assert header[1:].startswith(plain[1:])


def test_page_has_every_error_code() -> None:
    rows = {int(code): (name, retry == "yes") for code, name, retry, _ in table("code | error")}
    assert rows == {code: (cls.__name__, cls.retryable) for code, cls in BY_CODE.items()}


def test_page_has_correct_keys() -> None:
    for key, form, partition in table("key | bytes | partition"):
        encoded = encode_key(literal_eval(key))
        assert encoded.hex() == form
        assert partition_of(encoded) == int(partition)


def test_page_has_every_value_type() -> None:
    rows = {int(code) for code, *_ in table("code | type")}
    builtin = {code for code in TypeRegistry()._by_code if code >= 100}
    assert rows == builtin | {COMPRESSED_CODE}
    assert f"nest at most {MAX_NESTING} deep; extensions at most {MAX_EXTENSION_NESTING}." in TEXT


def test_page_has_correct_placement() -> None:
    members = [Candidate(f"peer{number}", f"z{number}") for number in (1, 2, 3)]
    placed = place(members, 2)
    for partition, *numbers, row in table("partition | score of peer1"):
        assert [lots(member.id)[int(partition)] for member in members] == [
            float(score) for score in numbers
        ]
        assert ", ".join(placed[int(partition)]) == row
    assert f"AND {limits.PARTITIONS - 1}" in TEXT


@pytest.mark.parametrize(
    ("zones", "weights"),
    [
        ("abcdef", (2, 1, 1, 1, 1, 1)),
        ("aabbccd", (3, 1, 1, 1, 2, 1, 1)),
        ("aaaab", (1, 9, 2, 1, 1)),
    ],
)
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_placement_with_weights_follows_the_page(
    zones: str, weights: Sequence[int], copies: int
) -> None:
    members = [
        Candidate(f"peer{number}", zone, weight)
        for number, (zone, weight) in enumerate(zip(zones, weights, strict=True))
    ]
    placed = place(members, copies)
    for partition in range(0, limits.PARTITIONS, 257):
        assert list(placed[partition]) == chosen_by_the_page(members, copies, partition)


def chosen_by_the_page(members: Sequence[Candidate], copies: int, partition: int) -> list[str]:
    """Choose as section 5 describes, without using the code."""
    zones = {member.zone for member in members}
    weight_of = {
        zone: float(sum(member.weight for member in members if member.zone == zone))
        for zone in zones
    }
    by_zone = len(zones) >= copies
    units = weight_of if by_zone else {member.id: member.weight for member in members}
    sure, k = set(), copies
    left = dict(units)
    for name in sorted(units, key=lambda name: (-units[name], name)):
        if k * units[name] / sum(left.values()) < 1:
            break
        sure.add(name)
        del left[name]
        k -= 1
    scored = []
    for member in sorted(members):
        unit = member.zone if by_zone else member.id
        power = weight_of[member.zone] / member.weight if by_zone else 1
        seed = xxh3_64_intdigest(member.id.encode(), 0)
        h = xxh3_64_intdigest(partition.to_bytes(2, "big"), seed)
        v = (((h >> 12) + 0.5) * 2**-52) ** power
        w, total = units[unit], sum(left.values())
        factor = 1e30 if unit in sure else w if k == 1 else k * w / (total - k * w)
        scored.append((-factor / log(v) if k == 1 else factor * v / (1 - v), member))
    ranked = [candidate for _, candidate in sorted(scored, key=lambda pair: -pair[0])]
    first = [
        candidate
        for n, candidate in enumerate(ranked)
        if candidate.zone not in {o.zone for o in ranked[:n]}
    ]
    rest = [candidate for candidate in ranked if candidate not in first]
    return [candidate.id for candidate in (first + rest)[:copies]]


def test_page_has_correct_versions_and_records() -> None:
    parts = dict(table("part"))
    storage_key, record = bytes.fromhex(parts["storage key"]), bytes.fromhex(parts["record"])
    assert split_storage_key(storage_key) == (partition_of(b"key"), b"index", b"key")
    assert record == RECORD
    assert is_sound(storage_key, record)
    assert open_record(record).version.hex() == parts["version"]
    assert open_record(record).payload.hex() == parts["payload"]
    assert f"A version has {VERSION_BYTES} bytes" in TEXT
    assert f"| {HEAD_BYTES}- | payload |" in TEXT


def test_page_has_correct_levels() -> None:
    for level, *needed in table("level"):
        assert [Level(level).needed(of) for of in (1, 2, 3, 5)] == [
            int(number) for number in needed
        ]


def test_page_has_current_limits() -> None:
    said = {what: [int(n) for n in re.findall(r"\d+", limit)] for what, limit in table("what")}
    most_containers = codec._MAX_HEADER_CONTAINERS + limits.MAX_KEYS_PER_FRAME
    assert said["index name"][:2] == [1, limits.MAX_INDEX_BYTES]
    assert said["key, encoded"] == [1, limits.MAX_KEY_BYTES]
    assert said["value, encoded"] == [limits.MAX_VALUE_BYTES]
    assert said["message"] == [limits.MAX_FRAME_BYTES, limits.MAX_FRAME_PARTS]
    assert said["header"] == [limits.MAX_HEADER_BYTES]
    assert said["keys of a message"] == [limits.MAX_KEYS_PER_FRAME]
    assert said["lists and maps of a header"] == [most_containers]
    assert said["stamps ahead of the cluster's time"] == [limits.MAX_CLOCK_SKEW_MS]
    assert limits.MAX_TTL_SECONDS == 100 * 365.25 * 86400
    for name in LIMITS:
        assert f"`{name}`" in TEXT


def test_page_has_current_protocol_version() -> None:
    assert TEXT.startswith(f"# The wire protocol, version {HIGHEST_PROTOCOL}\n")
