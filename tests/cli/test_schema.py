"""The output of every command with ``-o json`` against docs/cli-schema.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import typer

from dstash.cli.main import app
from tests.cli.schema import ROOT, SCHEMA, check
from tests.harness.devcluster import InProcess

#: Commands without their own output: a shell and a lock print the output of other commands.
WITHOUT: Final = {"lock", "shell"}


def names(group: Any, prefix: str = "") -> Iterator[str]:
    """Yield every command as the user types it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from names(command, f"{prefix}{name} ")
        else:
            yield prefix + name


def test_every_command_has_a_schema() -> None:
    there = set(names(typer.main.get_command(app))) - WITHOUT
    assert there == SCHEMA["commands"].keys(), "write it in docs/cli-schema.json, then: make docs"


def test_schemas_are_valid() -> None:
    for schema in SCHEMA["commands"].values():
        jsonschema.Draft202012Validator.check_schema(schema | {"$defs": SCHEMA["$defs"]})


#: The order matters: some commands need the results of earlier commands.
TYPED: Final = (
    "put INDEX k v",
    'put INDEX k --json {"a":[1,null]}',
    "put INDEX 7 x --int",
    "put INDEX ff00 x --hex",
    "get INDEX k",
    "exists INDEX k",
    "ttl INDEX k",
    "touch INDEX k --ttl 60",
    "ttl INDEX k",
    "touch INDEX k --forever",
    "scan INDEX",
    "scan INDEX --keys",
    "count INDEX",
    "add @INDEX k v",
    "cas @INDEX other v --version 0",
    "swap @INDEX k w",
    "get @INDEX k --version",
    "incr @INDEX n 5",
    "decr @INDEX n",
    "where INDEX 7 --int",
    "export INDEX FOLDER/x.jsonl",
    "import INDEX FOLDER/x.jsonl",
    "backup save FOLDER/saved",
    "backup verify FOLDER/saved",
    "backup restore FOLDER/saved",
    "cluster repair",
    "cluster repair --watch",
    "cluster compact peer1",
    "cluster compact peer2 --watch",
    "index set INDEX ttl=1d",
    "index show INDEX",
    "index show",
    "indexes",
    "index set INDEX ttl=none",
    "drop INDEX zz -y",
    "drop INDEX zz -y --watch",
    "del INDEX k",
    "status",
    "health",
    "bench mixed --duration 0.1 --keys 10 --index INDEX",
    "cluster plan remove peer1",
    "cluster watch",
    "dev up",
    "dev status",
    "config show",
    "config example peer",
    "config check CONF/peer.toml CONF/client.toml",
    "cert new FOLDER/mine",
    "cert show FOLDER/mine.key",
)


@pytest.mark.long
def test_commands_follow_their_schemas(inside: InProcess, tmp_path: Path) -> None:
    known = {"INDEX": "schema", "FOLDER": str(tmp_path), "CONF": str(ROOT / "conf")}
    for line in TYPED:
        words = [re.sub(r"[A-Z]{4,}", lambda found: known[found[0]], word) for word in line.split()]
        two = " ".join(words[:2])
        command = two if two in SCHEMA["commands"] else words[0]
        check(command, inside.out("-o", "json", *words))


def test_schema_refuses_unknown_names() -> None:
    with pytest.raises(jsonschema.ValidationError, match="more"):
        check("count", '{"index": "i", "prefix": "", "count": 1, "more": 2}')
    with pytest.raises(jsonschema.ValidationError, match="prefix"):
        check("count", '{"index": "i", "count": 1}')


def test_commands_on_stopped_peers_follow_their_schemas(tmp_path: Path) -> None:
    own = InProcess(tmp_path)
    own.out("dev", "up", "-n", "1")
    own.out("put", "things", "k", "v")
    done = own.run("status", "--check")
    first, second = done.stdout.decode().splitlines()[:2]
    assert (done.returncode, first) == (
        8,
        "degraded: 1 of 3 copies: 2 peers are missing; start 2 more",
    )
    assert ", 1 of 3 copies, epoch " in second
    (status,) = check("status", own.out("-o", "json", "status"))
    assert (status["replicas"], status["copies"]) == (3, 1)
    assert own.refusal("health")[0] == 8
    (down,) = check("dev down", own.out("-o", "json", "dev", "down"))
    assert down == {"stopped": 1, "purged": False}
    (found,) = check("store check", own.out("-o", "json", "store", "check", ".dstash/peer1"))
    assert (found["records"], found["indexes"], found["corrupt"]) == (1, {"things": 1}, 0)
    compacted = own.out("-o", "json", "store", "compact", ".dstash/peer1")
    (sizes,) = check("store compact", compacted)
    assert sizes["records"] == 1
    assert 0 < sizes["after"] <= sizes["before"]
    check("dev down", own.out("-o", "json", "dev", "down", "--purge"))
