"""docs/cli.md, made by Typer from the commands, and docs/cli-json.md, made from their schemas."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

from dstash.cli import tagged
from tests.documents.blocks import ROOT

_CLI_INTRO: Final = """\
Made from the commands by `make docs`; do not edit it here. [cli-json.md](cli-json.md) says what
`-o json` prints. Settings come from an option, then a variable (`DSTASH_TIMEOUT`), then the file of
`--config`, then the default. `dstash --install-completion` makes the tab key complete commands,
options and ids of peers.
"""
_JSON_HEAD: Final = """\
# What `dstash -o json` prints

Made from [cli-schema.json](cli-schema.json) by `make docs`; do not edit it here. A test holds
every command to it. Each line of stdout is one JSON value. Names and meanings stay; new names may
come, so a program ignores those that it does not know. Messages go to stderr, and the exit code
says how it went.

Keys and values that JSON lacks are an object with one tagged entry:
"""


def cli() -> str:
    """Return the page of the commands."""
    command = [sys.executable, "-m", "typer", "dstash.cli.main", "utils", "docs"]
    done = subprocess.run(
        [*command, "--name", "dstash", "--title", "The dstash command"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    page = re.sub(r"```console\n\$ (.*)\n", r"```usage\n\1\n", done.stdout.strip())
    head, rest = _unshortened(page).split("\n", 1)
    return f"{head}\n\n{_CLI_INTRO}{rest}\n"


def _unshortened(page: str) -> str:
    """Give each command in a list the first sentence of its own section, which Typer cuts off."""
    sections = re.findall(r"^#+ `(.+?)`\n\n(.+)$", page, flags=re.M)
    said = {name: re.split(r"(?<=\.) ", text)[0] for name, text in sections}
    group, lines = "dstash", []
    for line in page.splitlines():
        if heading := re.match(r"#+ `(.+?)`$", line):
            group = heading[1]
        item = re.match(r"\* `(\S+)`: .*\.\.\.$", line)
        lines.append(f"* `{item[1]}`: {said[f'{group} {item[1]}']}" if item else line)
    return "\n".join(lines)


def json_forms() -> str:
    """Return the page of the JSON forms."""
    schema = json.loads((ROOT / "docs" / "cli-schema.json").read_text())
    layout = (tagged.__doc__ or "").split("::\n\n")[1].split("\n\nThe idea")[0]
    lines = [_JSON_HEAD, "```text", re.sub(r"^    ", "", layout, flags=re.M), "```", ""]
    for name, one in schema["commands"].items():
        lines += [f"## `dstash {name}`", "", *_form(one)]
    lines += ["# Forms that several commands share", ""]
    for name, one in schema["$defs"].items():
        lines += [f"## {name}", "", *_form(one)]
    return "\n".join(lines).rstrip() + "\n"


def _form(one: dict[str, Any]) -> Iterator[str]:
    if said := one.get("description"):
        yield said
        yield ""
    if "properties" not in one:
        yield f"{_kind(one)}.\n"
        one = one.get("items", {})
    if "properties" in one:
        yield from _table(one)


def _table(one: dict[str, Any], prefix: str = "") -> Iterator[str]:
    yield "| name | is | |\n|---|---|---|"
    yield from _rows(one, prefix)
    yield ""


def _rows(one: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, field in one["properties"].items():
        there = "" if name in one.get("required", ()) else " (not always there)"
        yield f"| `{prefix}{name}` | {_kind(field)} | {field.get('description', '')}{there} |"
        below = field.get("items", {})
        if "properties" in below:
            yield from _rows(below, f"{prefix}{name}[].")


def _kind(one: dict[str, Any]) -> str:
    if "$ref" in one:
        name = one["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "anyOf" in one:
        return " or ".join(dict.fromkeys(map(_kind, one["anyOf"])))
    kind = one.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array" and "items" in one:
        return f"list of {_kind(one['items'])}"
    if kind == "object" and isinstance(one.get("additionalProperties"), dict):
        return f"object of {_kind(one['additionalProperties'])}"
    return str(kind)
