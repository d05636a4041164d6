"""The commands on keys, and scans of an index."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any

import typer

from dstash.cli import invocation, tagged
from dstash.cli.arguments import (
    HexKeys,
    IndexName,
    IntKeys,
    KeyText,
    KeyTexts,
    Prefix,
    Ttl,
    TypedKeys,
    parse_key,
    parse_keys,
    parse_value,
)
from dstash.cli.console import output
from dstash.cli.console.skipped import SkippedValues
from dstash.cli.invocation import Invocation, KeyMissing
from dstash.client.operations.registers.names import check_registers
from dstash.errors import UndecodableValue, UsageError
from dstash.wire.keys import Key
from dstash.wire.values import Undecodable

_ABSENT = object()


def put(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    value: Annotated[
        str | None, typer.Argument(metavar="VALUE", help="Text. - or no VALUE: bytes from stdin.")
    ] = None,
    ttl: Ttl = None,
    json: Annotated[bool, typer.Option("--json", help="Parse VALUE as JSON.")] = False,
    as_bytes: Annotated[bool, typer.Option("--bytes", help="Store VALUE as bytes.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Store stdin as text.")] = (False),
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Store a value. When the command returns, the replicas of the write level have it on disk."""
    parsed_key = parse_key(key, as_int, as_hex, typed)
    parsed = parse_value(value, json, as_bytes, text)
    run = invocation.of(ctx)
    with run.client() as client:
        client.put(index, parsed_key, parsed, ttl)
    if run.as_json:
        output.json_line({"key": parsed_key, "stored": True})


def get(
    ctx: typer.Context,
    index: IndexName,
    keys: KeyTexts,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version, too; INDEX begins with @."),
    ] = False,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Print the value of a key, byte for byte; for several keys, a table or JSON lines.

    Values that are neither text nor bytes are printed as JSON.
    """
    run = invocation.of(ctx)
    wanted = parse_keys(keys, as_int, as_hex, typed)
    if version:
        _print_entries(run, index, wanted)
        return
    failure: UndecodableValue | None = None
    with run.client() as client:
        try:
            found = client.batch_lookup(index, wanted)
        except UndecodableValue as error:
            failure, found = error, error.found
    present = [key for key in wanted if key in found]
    if run.as_json:
        for key in present:
            output.json_line({"key": key, "value": found[key]})
    elif len(wanted) > 1 and present:
        output.table(
            ("key", "value"), ((output.key_text(key), _cell(found[key])) for key in present)
        )
    elif present:
        # In the shell, more output follows, so end the line.
        write = output.exact if run.kept is None else output.ended
        write(output.value_bytes(found[wanted[0]]))
    if failure is not None:
        raise failure
    _expect_none(index, [key for key in wanted if key not in found])


def _print_entries(run: Invocation, index: str, wanted: list[Key]) -> None:
    """Print the values of registers with their versions."""
    check_registers(index, "--version")
    with run.client() as client:
        entries = [(key, client.lookup_entry(index, key)) for key in wanted]
    found = [(key, entry) for key, entry in entries if entry is not None]
    if run.as_json:
        for key, entry in found:
            output.json_line({"key": key, **entry._asdict()})
    elif found:
        rows = ((output.key_text(key), str(it.version), _cell(it.value)) for key, it in found)
        output.table(("key", "version", "value"), rows)
    _expect_none(index, [key for key, entry in entries if entry is None])


def delete(
    ctx: typer.Context,
    index: IndexName,
    keys: KeyTexts,
    version: Annotated[
        int | None,
        typer.Option("--version", help="Only if the key has this version; INDEX begins with @."),
    ] = None,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Delete keys."""
    run = invocation.of(ctx)
    to_delete = list(dict.fromkeys(parse_keys(keys, as_int, as_hex, typed)))
    if version is not None and len(to_delete) > 1:
        raise UsageError(f"--version is that of one key; {len(to_delete)} keys are given")
    with run.client() as client:
        if len(to_delete) == 1:
            missing = [] if client.delete(index, to_delete[0], version=version) else to_delete
        else:
            absent = set(client.batch_delete(index, to_delete).missing)
            missing = [key for key in to_delete if key in absent]
    if run.as_json:
        output.json_line({"deleted": len(to_delete) - len(missing), "missing": len(missing)})
    if missing:
        raise (
            _missing(index, to_delete[0])
            if len(to_delete) == 1
            else KeyMissing(
                f"{len(missing)} of {len(to_delete)} keys were not in index '{index}': "
                f"{_names(missing)}{_hint(missing)}"
            )
        )


def exists(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Print whether a key exists: true, or false with exit code 3."""
    run = invocation.of(ctx)
    parsed = parse_key(key, as_int, as_hex, typed)
    with run.client() as client:
        there = client.exists(index, parsed)
    output.json_line({"key": parsed, "exists": there} if run.as_json else there)
    if not there:
        if hint := _hint([parsed]):
            output.message(f"no key {tagged.dumps(parsed)} in index '{index}'{hint}")
        raise typer.Exit(KeyMissing.exit_code)


def ttl(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Print the seconds until a key expires, or never."""
    run = invocation.of(ctx)
    parsed = parse_key(key, as_int, as_hex, typed)
    with run.client() as client:
        try:
            left = client.ttl(index, parsed)
        except KeyError:
            raise _missing(index, parsed) from None
    if run.as_json:
        output.json_line({"key": parsed, "ttl": left})
    else:
        output.line("never" if left is None else f"{left:.3f}")


def touch(
    ctx: typer.Context,
    index: IndexName,
    key: KeyText,
    ttl: Ttl = None,
    forever: Annotated[bool, typer.Option("--forever", help="Remove the time to live.")] = False,
    as_int: IntKeys = False,
    as_hex: HexKeys = False,
    typed: TypedKeys = False,
) -> None:
    """Set the time to live of a key; its value is kept."""
    if (ttl is None) != forever:
        raise UsageError("touch takes either --ttl TIME or --forever")
    parsed = parse_key(key, as_int, as_hex, typed)
    run = invocation.of(ctx)
    with run.client() as client:
        if not client.touch(index, parsed, ttl):
            raise _missing(index, parsed)
    if run.as_json:
        output.json_line({"key": parsed, "ttl": ttl})


def scan(
    ctx: typer.Context,
    index: IndexName,
    prefix: Prefix = "",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=0, help="Maximum number of keys.")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Print keys only.")] = False,
) -> None:
    """Print the keys and values of an index, in no particular order.

    Each line has key, tab and value; or JSON. An integer key is printed in digits, bytes as 0x00ff,
    text as it is; text that could be taken for one of these, or has characters to escape, in double
    quotes. With --typed, other commands read these keys. In values, control characters are escaped.
    The global option --read one is faster, but may omit keys that a single replica lacks. A value
    that cannot be decoded is left out, and the exit code is 9.
    """
    run, skipped = invocation.of(ctx), SkippedValues()
    with run.client() as client:
        found: Iterable[tuple[Key, Any]] = client.items(index, prefix, on_error="return")
        if keys:
            found = ((key, _ABSENT) for key in client.keys(index, prefix))
        lines = output.LineWriter()
        for key, value in islice(found, limit):
            if isinstance(value, Undecodable):
                skipped.add(key, value.reason)
            else:
                lines.write(_json_pair(key, value) if run.as_json else _text_pair(key, value))
        lines.flush()
    skipped.expect_none()


def count(ctx: typer.Context, index: IndexName, prefix: Prefix = "") -> None:
    """Count the keys of an index at the level of the global option --read."""
    run = invocation.of(ctx)
    with run.client() as client:
        number = client.count(index, prefix)
    output.json_line({"index": index, "prefix": prefix, "count": number} if run.as_json else number)


def _text_pair(key: Key, value: Any) -> str:
    name = output.key_text(key)
    return name if value is _ABSENT else f"{name}\t{_cell(value)}"


def _json_pair(key: Key, value: Any) -> str:
    return tagged.dumps({"key": key} | ({} if value is _ABSENT else {"value": value}))


def _cell(value: Any) -> str:
    return output.visible(value)


def _missing(index: str, key: Key) -> KeyMissing:
    return KeyMissing(f"no key {tagged.dumps(key)} in index '{index}'{_hint([key])}")


def _hint(missing: Iterable[Key]) -> str:
    """Return a hint if keys look like integers, which are other keys than their digits as text."""
    is_number = any(isinstance(key, str) and re.fullmatch(r"-?[0-9]+", key) for key in missing)
    return "; for keys that are integers, use --int" if is_number else ""


def _expect_none(index: str, missing: list[Key]) -> None:
    if len(missing) == 1:
        raise _missing(index, missing[0])
    if missing:
        raise KeyMissing(
            f"{len(missing)} keys are not in index '{index}': {_names(missing)}{_hint(missing)}"
        )


def _names(keys: list[Key]) -> str:
    """Return the first few keys."""
    return ", ".join(map(tagged.dumps, keys[:10])) + (", ..." if keys[10:] else "")
