"""The packages that a client needs, without those of the extras."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from typing import Final

import pytest

from dstash import AsyncClient, UsageError
from dstash.wire.diagnosis import REFUSED
from tests.documents.blocks import ROOT
from tests.harness.peers import Peers

PYPROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: The packages of the extras and their dependencies, by import name.
BLOCKED: Final = (
    *("typer", "click", "rich", "prompt_toolkit", "prometheus_client", "structlog", "lmdb"),
    *("consul", "requests", "urllib3", "pyarrow", "matplotlib", "opentelemetry", "pydantic"),
)
BLOCK: Final = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED}))\n"

#: Removes what macOS or Windows lacks, once the standard library itself is loaded.
HIDE: Final = """
import asyncio, builtins, http.client, io, msgpack, os, pathlib, signal, subprocess, sys, time, zmq
for name in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog"):
    sys.modules[name] = None
for name in dir(os):
    if name.startswith(("eventfd", "EFD_", "sched_", "SCHED_", "posix_")):
        delattr(os, name)
for name in ("fork", "register_at_fork", "pipe2", "statvfs", "getuid", "geteuid", "pread",
             "O_CLOEXEC", "O_DIRECTORY"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGKILL", "SIGALRM", "pthread_sigmask", "setitimer"):
    delattr(signal, name)
for name in dir(time):
    if name.startswith(("clock_", "CLOCK_")):
        delattr(time, name)
def hide(real):
    def without_proc(path, *args, **options):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path, *args, **options)
    return without_proc
builtins.open = io.open = hide(open)
os.open, os.listdir, os.scandir = hide(os.open), hide(os.listdir), hide(os.scandir)
sys.platform = "win32"
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which the packages of the extras cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + script], capture_output=True, text=True, timeout=60
    )


def test_dependencies_of_the_client_exclude_cli_http_and_metrics() -> None:
    names = {re.split(r"[>=]", requirement)[0] for requirement in PYPROJECT["dependencies"]}
    assert names == {"msgpack", "pyzmq", "xxhash", "zstandard"}


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


def test_client_logs_what_it_tries() -> None:
    done = run(
        "import logging\n"
        "logging.basicConfig(format='%(name)s: %(message)s')\n"
        "logging.getLogger('dstash').setLevel(logging.DEBUG)\n"
        "from dstash import Client, NoPeers\n"
        "try:\n"
        "    with Client('localhost:1', timeout=0.5) as client:\n"
        "        client.lookup('i', 'k')\n"
        "except NoPeers:\n"
        "    print('no peers')\n"
    )
    assert done.stdout == "no peers\n"
    logged = done.stderr.splitlines()
    assert logged[0] == (
        "dstash.client: looking for peers cluster='dstash' addresses=['tcp://localhost:1']"
    )
    assert logged[1].startswith("dstash.connections: name resolved name='localhost' addresses=")
    assert logged[2].startswith("dstash.connections: connecting peer='tcp://localhost:1' address=")
    assert f"dstash.connections: {REFUSED} peer='tcp://localhost:1'" in logged


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


def test_client_works_without_what_only_linux_has(peers: Peers, index: str) -> None:
    port = peers["a"].port
    done = run(
        f"{HIDE}\n"
        "from dstash import AsyncClient, Client, ConfigError, NoPeers\n"
        "from dstash.waker import Waker, _SocketPair\n"
        "assert isinstance(Waker()._signal, _SocketPair)\n"
        f"with Client('localhost:{port}') as client:\n"  # a name is resolved on another thread
        f"    client.put('{index}', 'k', 1)\n"
        f"    print(client.lookup('{index}', 'k'), client.batch_lookup('{index}', ['k']))\n"
        "async def main():\n"
        f"    async with AsyncClient('localhost:{port}') as client:\n"
        f"        print(await client.lookup('{index}', 'k'))\n"
        "asyncio.run(main())\n"
        "try:\n"
        "    with Client('127.0.0.1:1', timeout=0.3) as client:\n"
        "        client.lookup('i', 'k')\n"
        "except NoPeers as error:\n"
        "    print(error)\n"
        "try:\n"
        "    with Client(local_dir='.') as client:\n"
        "        client.lookup('i', 'k')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:2] == ["1 {'k': 1}", "1"]
    assert lines[2].endswith(f"({REFUSED}); is it running?")
    assert lines[3].startswith("local_dir needs file locks, which this system lacks (module fcntl)")


class _LoopWithoutReaders(asyncio.SelectorEventLoop):
    """Waits for no descriptors, as the default event loop of Windows."""

    def add_reader(self, *_: object) -> None:
        raise NotImplementedError


def test_async_client_names_the_event_loop_that_it_needs() -> None:
    async def ask() -> None:
        async with AsyncClient("127.0.0.1:1"):
            pass

    advice = r"run the program with asyncio\.SelectorEventLoop"
    with (
        asyncio.Runner(loop_factory=_LoopWithoutReaders) as runner,
        pytest.raises(UsageError, match=advice),
    ):
        runner.run(ask())
