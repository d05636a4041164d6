"""The commands on registers: conditional changes and counters, in indexes that begin with ``@``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dstash.cli import invocation, tagged
from dstash.cli.arguments import (
    HexKeys,
    IndexName,
    IntKeys,
    KeyText,
    Ttl,
    TypedKeys,
    parse_key,
    parse_value,
)
from dstash.cli.console import output
from dstash.errors import Conflict

ValueText = Annotated[
    str | None, typer.Argument(metavar="VALUE", help="Text. - or no VALUE: bytes from stdin.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Parse VALUE as JSON.")]
AsBytes = Annotated[bool, typer.Option("--bytes", help="Store VALUE as bytes.")]
AsText = Annotated[bool, typer.Option("--text", help="Store stdin as text.")]
Fence = Annotated[
    int | None,
    typer.Option("--fence", metavar="TOKEN", help="Token of a lock; lower tokens are refused."),
]
Amount = Annotated[int, typer.Argument(metavar="BY", help="The amount; put -- before -5.")]
Initial = Annotated[int, typer.Option("--initial", help="The number that a missing key has.")]
LowestSum = Annotated[int | None, typer.Option("--at-least", help="Refuse a result below it.")]
HighestSum = Annotated[int | None, typer.Option("--at-most", help="Refuse a result above it.")]

_ABSENT = object()


def add(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    value: ValueText = None,
    ttl: Ttl = None,
    fence: Fence = None,
    json: AsJson = False,
    as_bytes: AsBytes = False,
    text: AsText = False,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Store a value if the key does not exist; exit code 4 if it does.

    INDEX begins with @.
    """
    run = invocation.of(ctx)
    parsed_key = parse_key(key, as_int, as_hex, typed)
    parsed = parse_value(value, json, as_bytes, text)
    with run.client() as client:
        added = client.add(index, parsed_key, parsed, ttl, fence=fence)
    if run.as_json:
        output.json_line({"key": parsed_key, "added": added})
    if not added:
        raise Conflict(f"key {tagged.dumps(parsed_key)} exists in index '{index}'")


def cas(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    value: ValueText = None,
    version: Annotated[
        int, typer.Option("--version", help="That get --version has printed; 0: no such key.")
    ] = ...,  # type: ignore[assignment]  # Typer's mark of an option that is required
    ttl: Ttl = None,
    fence: Fence = None,
    json: AsJson = False,
    as_bytes: AsBytes = False,
    text: AsText = False,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Store a value if the key still has a version, and print the new version; else exit code 4.

    INDEX begins with @.
    """
    run = invocation.of(ctx)
    parsed_key = parse_key(key, as_int, as_hex, typed)
    parsed = parse_value(value, json, as_bytes, text)
    with run.client() as client:
        after = client.compare_and_set(index, parsed_key, parsed, version, ttl, fence=fence)
    output.json_line({"key": parsed_key, "version": after} if run.as_json else after)


def swap(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    value: ValueText = None,
    ttl: Ttl = None,
    fence: Fence = None,
    json: AsJson = False,
    as_bytes: AsBytes = False,
    text: AsText = False,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Store a value, and print the value before, byte for byte.

    If the key did not exist, nothing is printed. INDEX begins with @.
    """
    run = invocation.of(ctx)
    parsed_key = parse_key(key, as_int, as_hex, typed)
    parsed = parse_value(value, json, as_bytes, text)
    with run.client() as client:
        before = client.get_and_set(index, parsed_key, parsed, _ABSENT, ttl, fence=fence)
    existed = before is not _ABSENT
    if run.as_json:
        line: dict[str, Any] = {"key": parsed_key, "existed": existed}
        output.json_line(line | ({"before": before} if existed else {}))
    elif existed:
        write = output.exact if run.kept is None else output.ended
        write(output.value_bytes(before))


def incr(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    by: Amount = 1,
    initial: Initial = 0,
    at_least: LowestSum = None,
    at_most: HighestSum = None,
    ttl: Ttl = None,
    fence: Fence = None,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Add to an integer, and print the sum; exit code 4 if it would be out of its bounds.

    INDEX begins with @.
    """
    run = invocation.of(ctx)
    parsed = parse_key(key, as_int, as_hex, typed)
    with run.client() as client:
        total = client.increment(
            index,
            parsed,
            by,
            initial=initial,
            at_least=at_least,
            at_most=at_most,
            ttl=ttl,
            fence=fence,
        )
    output.json_line({"key": parsed, "value": total} if run.as_json else total)


def decr(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    by: Amount = 1,
    initial: Initial = 0,
    at_least: LowestSum = None,
    at_most: HighestSum = None,
    ttl: Ttl = None,
    fence: Fence = None,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Subtract from an integer, and print the result; see incr."""
    incr(ctx, index, key, -by, initial, at_least, at_most, ttl, fence, as_int, as_hex, typed)
