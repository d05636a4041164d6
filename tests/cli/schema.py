"""Validation of the output of commands against docs/cli-schema.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import jsonschema

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SCHEMA: Final[dict[str, Any]] = json.loads((ROOT / "docs" / "cli-schema.json").read_text())


def check(command: str, out: str) -> list[Any]:
    """Validate every line of an output against the schema of its command; return the lines."""
    schema = SCHEMA["commands"][command] | {"$defs": SCHEMA["$defs"]}
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines, f"{command} printed nothing"
    for line in lines:
        jsonschema.validate(line, schema, jsonschema.Draft202012Validator)
    return lines
