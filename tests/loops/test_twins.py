"""The loops in C do what those in Python do, for valid and for wrong input."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from dstash import loops
from dstash.limits import MAX_KEY_BYTES, PARTITIONS
from dstash.loops import pure
from dstash.store.record import (
    HEAD_BYTES,
    VERSION_END,
    Keyspace,
    Record,
    build_record,
    head,
)
from dstash.types import RecordFlag

EVERYWHERE = Keyspace(b"index", range(PARTITIONS))
NOW = 1_000
NAMES = sorted(name for name in vars(loops) if inspect.isfunction(getattr(pure, name, None)))

try:
    compiled: Any = importlib.import_module("dstash.loops._compiled")
except ImportError:
    compiled = None
TWINS = [pure] if compiled is None else [pure, compiled]


def outcome(function: Callable[..., Any], *given: Any) -> Any:
    """Return what a function returns, or the kind of its error."""
    try:
        return function(*given)
    except Exception as error:
        return type(error)


def agree(name: str, *given: Any) -> Any:
    """Return the outcome of a function, which is the same for both twins."""
    expected, *others = [outcome(getattr(twin, name), *given) for twin in TWINS]
    assert all(other == expected for other in others)
    return expected


def has_compiler(folder: Path) -> bool:
    """Whether this machine can compile a module for Python."""
    source = folder / "module.c"
    source.write_text("#include <Python.h>\n")
    command = (sysconfig.get_config_var("CC") or "cc").split()
    if shutil.which(command[0]) is None:
        return False
    include = f"-I{sysconfig.get_path('include')}"
    return not subprocess.run(
        [*command, include, "-c", str(source), "-o", str(folder / "module.o")],
        capture_output=True,
        check=False,
    ).returncode


def test_loops_are_compiled_where_a_compiler_is(tmp_path: Path) -> None:
    assert (compiled is not None) == has_compiler(tmp_path)
    assert (compiled is not None and os.environ.get("DSTASH_PURE") != "1") == loops.IS_COMPILED


def test_twins_have_the_same_functions() -> None:
    assert len(NAMES) == 15
    for twin in TWINS:
        assert all(callable(getattr(twin, name)) for name in NAMES)


def test_pure_loops_are_used_on_request() -> None:
    program = "from dstash import loops; print(loops.IS_COMPILED, loops.seal.__module__)"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DSTASH_PURE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["False", "dstash.loops.pure"]


# -- hashes


@pytest.mark.parametrize("twin", TWINS)
def test_every_length_is_hashed_as_by_xxhash(twin: Any) -> None:
    prefixes: list[bytes | None] = [partition.to_bytes(2) for partition in range(PARTITIONS)]
    for size in range(1, 600):
        content = bytes((number * 7 + size) % 256 for number in range(size))
        partition = xxh3_64_intdigest(content) % PARTITIONS
        assert twin.locate(prefixes, [content]) == [partition.to_bytes(2) + content]
        for salt in (0, 1, 1 << 63, (1 << 64) - 1, size * 0x9E3779B97F4A7C15 % (1 << 64)):
            [(_, record)] = twin.seal(prefixes, salt, [b"key"], content, [b""])
            seed = salt ^ xxh3_64_intdigest(b"key")
            assert record == xxh3_64_intdigest(content, seed).to_bytes(8) + content


# -- keys and places

texts = st.text(max_size=20) | st.text(st.characters(max_codepoint=127), max_size=450)
given_keys = st.lists(texts | st.binary(max_size=450) | st.integers() | st.none(), max_size=30)
plain = st.lists(st.text(st.characters(max_codepoint=127), min_size=1, max_size=400), max_size=40)
encoded = st.lists(st.binary(min_size=1, max_size=400), max_size=40)


class Subclass(str):
    """A text that may have another encoding."""


@given(given_keys)
def test_plain_keys_are_ascii_texts_of_allowed_size(keys: list[Any]) -> None:
    is_plain = agree("are_plain", keys)
    assert is_plain == all(
        isinstance(key, str) and key.isascii() and 0 < len(key) <= MAX_KEY_BYTES for key in keys
    )
    assert not keys or not agree("are_plain", [*keys, Subclass("key")])


@given(plain | encoded, st.integers(1, 300), st.integers(0, 99))
def test_places_are_sorted_by_lane_and_keep_their_order(
    keys: list[Any], count: int, seed: int
) -> None:
    numbers = random.Random(seed).choices(range(count), k=PARTITIONS)
    packed, ends = agree("sort_places", keys, array("H", numbers).tobytes(), count)
    places = list(memoryview(packed).cast("I")) if packed else []
    lanes = [
        numbers[xxh3_64_intdigest(pure.as_bytes(keys)[place]) % PARTITIONS] for place in places
    ]
    assert sorted(places) == list(range(len(keys)))
    assert list(zip(lanes, places, strict=True)) == sorted(zip(lanes, places, strict=True))
    assert ends == [sum(lane <= number for lane in lanes) for number in range(count)]


@given(plain | encoded, st.data())
def test_items_are_picked_packed_and_put_by_place(keys: list[Any], data: st.DataObject) -> None:
    some = st.lists(st.integers(0, max(0, len(keys) - 1)), max_size=50 if keys else 0)
    places = data.draw(some)
    for packed in (array("I", places).tobytes(), memoryview(array("I", places))):
        assert agree("pick", keys, packed) == [keys[place] for place in places]
        agree("pack_keys", keys, packed)
        for twin in TWINS:
            values: list[Any] = [None] * len(keys)
            twin.put_at(values, packed, [str(place) for place in places])
            assert values == [
                str(place) if place in set(places) else None for place in range(len(keys))
            ]


@given(given_keys, st.lists(st.integers(), max_size=30))
def test_pairs_are_added_as_by_update(keys: list[Any], values: list[int]) -> None:
    for twin in TWINS:
        found: dict[Any, Any] = {"there": 1}
        twin.add_pairs(found, keys, list(range(len(keys))))
        assert found == {"there": 1, **dict(zip(keys, range(len(keys)), strict=True))}
    if len(keys) != len(values):
        assert agree("add_pairs", {}, keys, values) is ValueError
    assert agree("add_pairs", {}, [[]], [1]) is TypeError


@pytest.mark.parametrize("count", [0, 1, 15, 16, 255, 256, 65_535, 65_536])
def test_frame_of_keys_has_the_shortest_array_head(count: int) -> None:
    places = array("I", range(count)).tobytes()
    agree("pack_keys", ["k"] * count, places)
    agree("pack_keys", [b"k" * 255, b"k" * 256] * count, places)


@pytest.mark.parametrize("twin", TWINS)
def test_places_out_of_range_are_refused(twin: Any) -> None:
    beyond = array("I", [2]).tobytes()
    for function, items in [(twin.pick, [1, 2]), (twin.pack_keys, ["a", "b"])]:
        with pytest.raises(IndexError):
            function(items, beyond)
    with pytest.raises(IndexError):
        twin.put_at([1, 2], beyond, [3])
    with pytest.raises(ValueError, match=r"."):
        twin.put_at([1, 2], array("I", [0]).tobytes(), [3, 4])


# -- records

keys_of_records = st.lists(st.binary(min_size=1, max_size=40), max_size=12, unique=True)
stored = st.builds(
    Record,
    st.binary(min_size=20, max_size=20),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([0, 0, NOW - 1, NOW, NOW + 1, (1 << 64) - 1]),
    st.binary(max_size=300),
)


@st.composite
def records(draw: Callable[[Any], Any]) -> tuple[list[bytes], list[bytes | None]]:
    """Draw keys, and for each no record, a good one, a corrupt one or a part of one."""
    keys: list[bytes] = draw(keys_of_records)
    found: list[bytes | None] = []
    for key in keys:
        record = build_record(b"index", key, draw(stored))
        harm = draw(st.sampled_from(["", "", "none", "flip", "cut"]))
        if harm == "flip":
            place = draw(st.integers(0, len(record) - 1))
            record = record[:place] + bytes((record[place] ^ 1,)) + record[place + 1 :]
        if harm == "cut":
            record = record[: draw(st.integers(0, HEAD_BYTES))]
        found.append(None if harm == "none" else record)
    return keys, found


@given(records(), st.integers(0, 3))
def test_payloads_of_live_records_are_joined(
    given: tuple[list[bytes], list[bytes | None]], cut: int
) -> None:
    keys, found = given
    found = found[: len(found) - min(cut, len(found))]
    frame, missing, corrupt = agree("join_live", EVERYWHERE.salt, keys, found, NOW, bytes)
    assert not set(missing) & set(corrupt)
    assert frame[:1] == bytes((0x90 | len(found),))


def test_join_live_asks_for_the_values_of_registers() -> None:
    record = build_record(b"index", b"key", Record(bytes(20), RecordFlag.REGISTER, 0, b"headxyz"))
    frame, missing, corrupt = agree(
        "join_live", EVERYWHERE.salt, [b"key"], [record], NOW, lambda payload: payload[4:]
    )
    assert (frame, missing, corrupt) == (b"\x91xyz", [], [])
    for refuses in (lambda payload: 1 // 0, lambda payload: "text"):
        agreed = agree("join_live", EVERYWHERE.salt, [b"key"], [record], NOW, refuses)
        assert issubclass(agreed, ZeroDivisionError | TypeError)


@given(records(), st.sampled_from([0, 8]))
def test_heads_are_joined(given: tuple[list[bytes], list[bytes | None]], begin: int) -> None:
    whole = [record for record in given[1] if record is None or len(record) >= VERSION_END]
    assert len(agree("join_heads", whole, begin)) == len(whole) * (VERSION_END - begin)
    agree("join_heads", given[1], begin)


@given(records(), st.sampled_from([0, 8]), st.sampled_from([0, 100, 10_000]))
def test_heads_are_read_and_judged(
    given: tuple[list[bytes], list[bytes | None]], begin: int, most_bytes: int
) -> None:
    kept = dict(zip(*given, strict=True))
    shown = []
    for twin in TWINS:
        missing: list[int] = []
        judged: list[tuple[int, bytes]] = []

        def judge(place: int, record: bytes, judged: list[tuple[int, bytes]] = judged) -> bytes:
            judged.append((place, record))
            return bytes(HEAD_BYTES)

        heads = twin.read_heads(kept.get, given[0], most_bytes, begin, judge, missing)
        shown.append((heads, missing, judged))
    assert all(other == shown[0] for other in shown)


@pytest.mark.parametrize("twin", TWINS)
def test_errors_of_callbacks_are_passed_on(twin: Any) -> None:
    record = build_record(b"index", b"key", Record(bytes(20), 1, 0, b""))

    def fail(*given: Any) -> Any:
        raise KeyError(given[0])

    with pytest.raises(KeyError):
        twin.read_heads(fail, [b"key"], 100, 0, fail, [])
    with pytest.raises(KeyError):
        twin.read_heads(lambda key: record, [b"key"], 100, 0, fail, [])


@given(keys_of_records, st.data())
def test_sealed_records_are_sound_until_they_are_changed(
    keys: list[bytes], data: st.DataObject
) -> None:
    payloads = [data.draw(st.binary(max_size=300)) for _ in keys]
    begin = head(bytes(20), 0, 5)
    entries = agree("seal", EVERYWHERE.prefixes, EVERYWHERE.salt, keys, begin, payloads)
    assert agree("are_sound", entries)
    assert [record[8 + len(begin) :] for _, record in entries] == payloads
    for place, (storage_key, record) in enumerate(entries):
        others = entries[:place] + entries[place + 1 :]
        assert not agree("are_sound", [*others, (storage_key, record[:-1] + b"\xff\xff")])
        assert not agree("are_sound", [*others, (storage_key, record[:20])])
    if keys:
        assert agree("seal", EVERYWHERE.prefixes, 0, keys, begin, payloads[1:]) is ValueError


@given(records(), st.sampled_from([(0, 28), (8, 28), (8, 20), (0, 37)]))
def test_hashes_of_live_records_are_summed(
    given: tuple[list[bytes], list[bytes | None]], part: tuple[int, int]
) -> None:
    located = pure.locate(EVERYWHERE.prefixes, given[0])
    entries = [(key, record) for key, record in zip(located, given[1], strict=True) if record]
    digest, others = agree("sum_hashes", entries, *part)
    added = [entry for entry in entries if entry not in others]
    hashes = [xxh3_128_intdigest(key + record[slice(*part)]) for key, record in added]
    assert int.from_bytes(digest) == sum(hashes) % (1 << 128)


@pytest.mark.parametrize("twin", TWINS)
def test_every_length_is_summed_as_by_xxhash(twin: Any) -> None:
    for size in range(1, MAX_KEY_BYTES + 1):
        key = bytes((number * 11 + size) % 256 for number in range(size))
        entries = pure.seal(
            EVERYWHERE.prefixes, EVERYWHERE.salt, [key], head(bytes(range(20))), [b"\x01"]
        )
        [(storage_key, record)] = entries
        for part in ((0, 28), (8, 20)):
            digest, others = twin.sum_hashes(entries, *part)
            assert not others
            assert int.from_bytes(digest) == xxh3_128_intdigest(storage_key + record[slice(*part)])


@given(keys_of_records)
def test_partition_that_is_not_held_is_a_type_error(keys: list[bytes]) -> None:
    nowhere = Keyspace(b"index", ())
    expected = TypeError if keys else []
    assert agree("locate", nowhere.prefixes, keys) == expected
    assert agree("seal", nowhere.prefixes, 1, keys, b"head", [b""] * len(keys)) == expected


@given(st.lists(st.none() | st.binary(max_size=50)))
def test_sizes_are_summed(found: list[bytes | None]) -> None:
    assert agree("total_size", found) == sum(len(record or b"") for record in found)


@given(st.lists(st.binary(max_size=4)))
def test_payloads_to_check_are_listed(payloads: list[bytes]) -> None:
    agree("unchecked", payloads)


def test_size_of_each_kind_of_payload_is_known() -> None:
    for kind in range(256):
        for size in range(1, 40):
            for length in (0, 1, size - 2):
                payload = bytes((kind, length % 256))[:size].ljust(size, b"\0")
                agree("unchecked", [payload])


# -- what only C can get wrong


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_errors(name: str) -> None:
    wrong: list[Any] = [None, 3, "text", b"bytes", [None], [3], ["text"], [b"bytes"], [("a", 1)]]
    places = array("I", [0, 5]).tobytes()
    for twin in TWINS[1:]:
        function = getattr(twin, name)
        for first in wrong:
            for second in (None, [None, "a"], places, b"odd", EVERYWHERE.prefixes, 1 << 70, -1):
                for rest in ((), (0,), ([b"k"], b"h", [b"p"]), ([b"k"], 5, len), (1, 0, len, [])):
                    outcome(function, first, second, *rest)


@pytest.mark.parametrize("twin", TWINS)
def test_lists_that_change_meanwhile_do_no_harm(twin: Any) -> None:
    keys = [b"%d" % number for number in range(100)]
    record = build_record(b"index", b"0", Record(bytes(20), RecordFlag.REGISTER, 0, b"xyz"))
    found: list[Any] = [record] * 100

    def change(payload: bytes) -> bytes:
        keys.clear()
        found.clear()
        gc.collect()
        return payload

    outcome(twin.join_live, EVERYWHERE.salt, keys, found, NOW, change)
    keys = [b"%d" % number for number in range(100)]
    outcome(twin.read_heads, lambda key: keys.clear(), keys, 100, 0, len, [])

    class Item:
        def __del__(self) -> None:
            values.clear()

    values: list[Any] = [Item() for _ in range(100)]
    outcome(twin.put_at, values, array("I", range(100)).tobytes(), list(range(100)))

    class Key:
        def __hash__(self) -> int:
            keys.clear()
            return 1

    keys = [Key() for _ in range(100)]
    outcome(twin.add_pairs, {}, keys, list(range(100)))


def test_no_reference_is_lost_or_kept() -> None:
    keys = [b"%d" % number for number in range(2000)]
    payloads = [b"\xc4\x01%d" % (number % 10) for number in range(2000)]
    places = array("I", range(2000)).tobytes()
    lanes = array("H", [0] * PARTITIONS).tobytes()

    def once(twin: Any) -> None:
        entries = twin.seal(EVERYWHERE.prefixes, EVERYWHERE.salt, keys, bytes(29), payloads)
        kept = dict(entries)
        twin.are_sound(entries)
        twin.sum_hashes(entries, 0, 28)
        twin.join_live(EVERYWHERE.salt, keys, [*kept.values()], NOW, bytes)
        twin.join_heads([*kept.values()], 0)
        twin.read_heads(kept.get, [*kept], 1 << 30, 0, lambda place, record: record, [])
        twin.pick(keys, twin.sort_places(keys, lanes, 1)[0])
        twin.pack_keys(keys, places)
        twin.put_at([None] * 2000, places, keys)
        twin.add_pairs({}, keys, payloads)
        twin.unchecked(payloads)

    for twin in TWINS[1:]:
        counts: list[int] = []
        for _ in range(4):
            once(twin)
            gc.collect()
            counts.append(sys.getallocatedblocks())
        assert max(counts[1:]) - min(counts[1:]) < 100
        once(twin)
        before = [sys.getrefcount(item) for item in (*keys, *payloads, None)][:-1]
        once(twin)
        assert before == [sys.getrefcount(item) for item in (*keys, *payloads, None)][:-1]


def test_threads_use_the_loops_at_once() -> None:
    failures: list[Sequence[Any]] = []

    def work(seed: int) -> None:
        keys = [b"%d-%d" % (seed, number) for number in range(300)]
        for _ in range(30):
            entries = loops.seal(
                EVERYWHERE.prefixes, EVERYWHERE.salt, keys, bytes(29), [b"\x01"] * 300
            )
            if not loops.are_sound(entries):
                failures.append(entries)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
