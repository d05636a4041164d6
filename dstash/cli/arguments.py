"""Arguments and options that several commands share, and the parsing of keys and values."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from dstash.cli import tagged
from dstash.cli.console.output import parse_key_text
from dstash.cli.units import parse_time
from dstash.errors import LimitError, UsageError
from dstash.limits import MAX_VALUE_BYTES
from dstash.wire.keys import Key

STDIN: Final = "-"

IndexName = Annotated[str, typer.Argument(metavar="INDEX", help="Name of the index.")]
KeyText = Annotated[str, typer.Argument(metavar="KEY", help="Key, as text.")]
KeyTexts = Annotated[list[str], typer.Argument(metavar="KEY...", help="One or more keys.")]
Prefix = Annotated[
    str, typer.Argument(metavar="PREFIX", help="Only keys with this prefix.", show_default=False)
]
IntKeys = Annotated[
    bool, typer.Option("--int", help="Keys are integers, not text; put -- before negative keys.")
]
HexKeys = Annotated[bool, typer.Option("--hex", help="Keys are bytes, given in hexadecimal.")]
TypedKeys = Annotated[
    bool,
    typer.Option(
        "--typed",
        help="Keys are written as scan prints them: integer, 0xff, text or JSON string.",
    ),
]


def parse_duration(text: str) -> float:
    """Return the seconds of an option such as ``15m``."""
    try:
        return parse_time(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


Ttl = Annotated[
    float | None,
    typer.Option(
        "--ttl",
        metavar="TIME",
        parser=parse_duration,
        help="Time to live: seconds, or 15m, 12h, 7d.",
    ),
]


def parse_key(text: str, as_int: bool, as_hex: bool, typed: bool = False) -> Key:
    """Return the key of an argument."""
    if as_int + as_hex + typed > 1:
        raise UsageError("--int, --hex and --typed cannot be combined")
    if typed:
        return parse_key_text(text)
    try:
        if as_int:
            return int(text)
        return bytes.fromhex(text.removeprefix("0x")) if as_hex else text
    except ValueError:
        allowed = "an integer" if as_int else "hexadecimal bytes"
        raise UsageError(f"key {text!r} is not {allowed}") from None


def parse_keys(texts: Sequence[str], as_int: bool, as_hex: bool, typed: bool = False) -> list[Key]:
    """Return the keys of arguments."""
    return [parse_key(text, as_int, as_hex, typed) for text in texts]


def parse_value(text: str | None, as_json: bool, as_bytes: bool, as_text: bool) -> Any:
    """Return the value to store.

    An argument is text. Input from stdin (no argument, or ``-``) is bytes, so that the stored type
    does not depend on the content.
    """
    if as_json + as_bytes + as_text > 1:
        raise UsageError("--json, --bytes and --text cannot be combined")
    raw = _read_stdin() if text in (None, STDIN) else os.fsencode(str(text))
    if as_json:
        return tagged.loads(raw)
    if as_bytes or (text in (None, STDIN) and not as_text):
        return raw
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"value is not UTF-8 text (byte {error.start}); use --bytes") from None


def _read_stdin() -> bytes:
    raw = sys.stdin.buffer.read(MAX_VALUE_BYTES + 1)
    if len(raw) > MAX_VALUE_BYTES:
        raise LimitError(f"value has more than {MAX_VALUE_BYTES} bytes, the maximum")
    return raw
