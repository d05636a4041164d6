"""What a type checker says of programs that use a client: one run of mypy for all snippets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.documents.blocks import ROOT

#: A comment ``E: text`` says that mypy must report an error with this text on the line.
SNIPPETS: Final = """\
import asyncio
import dstash
from dstash import AsyncClient, BatchError, BatchResult, Client, Level, Security, TimedOut
from dstash import Nonsense  # E: has no attribute "Nonsense"
dstash.Nonsense  # E: has no attribute "Nonsense"
version: str = dstash.__version__
errors: tuple[type[dstash.DStashError], ...] = (TimedOut, dstash.NoPeers, BatchError)

client = Client("a:1")
Client("a:1", "b:2", timeout=5, read="one", write=Level.ALL, zone="z", tracing=True)
Client(["a:1", "b:2"], security=Security("cert", "key", "server"))
Client(peers="a:1,b:2", consul=None)
Client(timeot=5)  # E: Unexpected keyword argument "timeot"
Client(timeout="5")  # E: Argument "timeout" to "Client" has incompatible type "str"
Client(write="most")  # E: Argument "write" to "Client" has incompatible type
Client(5)  # E: Argument 1 to "Client" has incompatible type "int"
AsyncClient(timeot=5)  # E: Unexpected keyword argument "timeot"

client.put("i", "k", 1, write="all")
client.put("i", "k", 1, write="most")  # E: Argument "write" to "put" of "Client"
client.lookup("i", "k", read="most")  # E: Argument "read" to "lookup" of "Client"
client.lookup("i", "k", raed="one")  # E: Unexpected keyword argument "raed"
result: BatchResult = client.batch_put("i", {"a": 1}, write=Level.ONE)
client.settings.timeout = 5  # E: Property "timeout" defined in "ClientSettings" is read-only


async def main() -> None:
    async with AsyncClient("a:1", read="quorum") as waiting:
        await waiting.put("i", "k", 1, write="most")  # E: Argument "write" to "put"
        found: dict[str | bytes | int, object] = await waiting.batch_lookup("i", ["a"])


asyncio.run(main())
"""


def test_type_checker_finds_wrong_names_arguments_and_levels(tmp_path: Path) -> None:
    file = tmp_path / "snippets.py"
    file.write_text(SNIPPETS)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(file)],
        cwd=ROOT,  # with the settings of the project, and its cache
        capture_output=True,
        text=True,
    )
    reported = [
        (int(number), text)
        for number, text in re.findall(r"snippets\.py:(\d+): error: (.*)", done.stdout)
    ]
    wanted = {
        number: line.partition("# E: ")[2]
        for number, line in enumerate(SNIPPETS.splitlines(), start=1)
        if "# E: " in line
    }
    assert {number for number, _ in reported} == wanted.keys(), done.stdout + done.stderr
    for number, text in reported:
        assert wanted[number] in text
