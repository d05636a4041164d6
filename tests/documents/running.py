"""Execution of the blocks of a page, in order, as a reader would type them.

All blocks share a directory and a shell, so ``cd``, ``export`` and background jobs persist. A
Python block is a separate program.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.documents.answers import checked
from tests.documents.blocks import Block
from tests.harness.devcluster import clean_environment
from tests.harness.process import expirable

RUN: Final = ("sh", "python", "output")
PATIENCE: Final = 90.0
#: A port in a command.
_PORT: Final = re.compile(r"(?:(?<=127\.0\.0\.1[: ])|(?<=localhost:)|(?<=-port ))(\d{4})\b")
_START: Final = """\
set -eumo pipefail
trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT
"""


def run(blocks: Sequence[Block], folder: Path, port: Callable[[str], int]) -> None:
    """Run blocks in ``folder``; an ``AssertionError`` names the failed block.

    Args:
        blocks: of one page, in order.
        folder: the current directory of the reader.
        port: returns the port to use for a printed port.
    """
    notes = folder / ".blocks"
    notes.mkdir()
    script = _START
    for number, block in enumerate(blocks):
        text = _PORT.sub(lambda found: str(port(found[1])), block.text)
        if block.language == "output":
            (notes / f"{number}.expected").write_text(text)
            continue
        program = text if block.language == "sh" else checked(text)
        (notes / str(number)).write_text(program)
        security = "." if block.language == "sh" else "python"
        script += f"echo {number} >{notes}/last\n"
        script += f"{security} {notes}/{number} >{notes}/{number}.out 2>&1\n"
    code = _bash(script, folder)
    _judge(blocks, notes, code)


def _bash(script: str, folder: Path) -> int:
    environment = clean_environment(
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        HOME=str(folder),
        EDITOR="true",
    )
    done = subprocess.run(
        expirable(["bash", "-c", script]),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=PATIENCE,
    )
    return done.returncode


def _judge(blocks: Sequence[Block], notes: Path, code: int) -> None:
    if code:
        last = int((notes / "last").read_text())
        raise AssertionError(f"{blocks[last].place} failed:\n{_printed(notes, last)[-3000:]}")
    previous = 0
    for number, block in enumerate(blocks):
        if block.language != "output":
            previous = number
            assert "Traceback" not in _printed(notes, number), block.place
            continue
        expected = (notes / f"{number}.expected").read_text()
        printed = _printed(notes, previous)
        assert fits(printed, expected), f"{block.place}: it printed\n{printed}"


def _printed(notes: Path, number: int) -> str:
    return (notes / f"{number}.out").read_text(errors="replace")


def fits(printed: str, expected: str) -> bool:
    """Return whether a text matches the expected text, in which ``...`` matches anything."""
    words = [r"\s+".join(map(re.escape, part.split())) for part in expected.split("...")]
    return re.fullmatch(r"\s*" + r"[\s\S]*".join(_loose(words)) + r"\s*", printed) is not None


def _loose(words: Sequence[str]) -> list[str]:
    return [rf"\s*{word}\s*" if word else "" for word in words]


def commands(block: Block) -> list[list[str]]:
    """Return the words of each simple command of a shell block."""
    found: list[list[str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("&|;()"):
                found.append(words)
                words = []
            else:
                words.append(word)
    return [words for words in found if words]
