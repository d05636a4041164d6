"""The packages that a client needs, without those of the extras."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Final

import pytest

from tests.documents.blocks import ROOT

PYPROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: The packages of the extras and their dependencies, by import name.
BLOCKED: Final = (
    *("typer", "click", "rich", "prompt_toolkit", "prometheus_client", "structlog", "lmdb"),
    *("consul", "requests", "urllib3", "hdrh", "pyarrow", "matplotlib", "opentelemetry"),
)
BLOCK: Final = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED}))\n"


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which the packages of the extras cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + script], capture_output=True, text=True, timeout=60
    )


def test_dependencies_of_the_client_exclude_cli_http_and_metrics() -> None:
    names = {re.split(r"[>=]", requirement)[0] for requirement in PYPROJECT["dependencies"]}
    assert names == {"msgpack", "pydantic-settings", "pyzmq", "xxhash"}


def test_client_without_extras_is_created_and_connects() -> None:
    done = run(
        "import asyncio\n"
        "from dstash import AsyncClient, Client\n"
        "from dstash.errors import Unavailable\n"
        "with Client('127.0.0.1:1', timeout=0.2) as client:\n"
        "    try:\n"
        "        client.lookup('index', 'key')\n"
        "    except Unavailable:\n"
        "        print('unavailable')\n"
        "async def create():\n"
        "    async with AsyncClient('127.0.0.1:1'):\n"
        "        print('created')\n"
        "asyncio.run(create())\n"
    )
    assert (done.stdout, done.stderr) == ("unavailable\ncreated\n", "")


def test_client_of_local_membership_needs_no_extra() -> None:
    done = run(
        "import tempfile\n"
        "from dstash import Client\n"
        "from dstash.errors import NoPeers\n"
        "with tempfile.TemporaryDirectory() as folder, Client(local_dir=folder) as client:\n"
        "    try:\n"
        "        client.lookup('index', 'key', timeout=0.2)\n"
        "    except NoPeers as error:\n"
        "        print('no peers')\n"
    )
    assert (done.stdout, done.stderr) == ("no peers\n", "")


def test_client_of_consul_without_its_extra_names_the_extra() -> None:
    done = run(
        "from dstash import Client\n"
        "from dstash.errors import ConfigError\n"
        "try:\n"
        "    with Client(consul='http://127.0.0.1:1') as client:\n"
        "        client.lookup('index', 'key', timeout=0.2)\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    assert done.stderr == ""
    assert done.stdout.endswith("pip install 'dstash[consul]'\n")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            "cli",
            "dstash: package typer is not installed; run: pip install 'dstash[cli]'\n",
        ),
        (
            "peer",
            "dstash-peer: package typer is not installed; run: pip install 'dstash[peer]'\n",
        ),
    ],
)
def test_command_without_its_extra_names_the_extra(module: str, expected: str) -> None:
    done = run(f"from dstash.{module}.start import main; main()")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
