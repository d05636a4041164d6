"""``dstash shell``, from a pipe and on a terminal."""

from __future__ import annotations

import shlex
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal
from tests.harness.devcluster import DevCluster, InProcess


def test_shell_runs_a_script_line_by_line(inside: InProcess, index: str) -> None:
    script = f"# a comment\nput {index} ada 1815\nput {index} 'two words' x\n\ncount {index}\n"
    script += f"get {index} ada\n-o json get {index} 'two words'\nexit\ndel {index} ada\n"
    assert inside.out("shell", stdin=script.encode()) == (
        '2\n1815\n{"key":"two words","value":"x"}\n'
    )
    assert inside.out("get", index, "ada") == "1815"


def test_shell_keeps_the_output_option_for_all_lines(inside: InProcess, index: str) -> None:
    out = inside.out("-o", "json", "shell", stdin=f"count {index}\n".encode())
    assert out == f'{{"index":"{index}","prefix":"","count":0}}\n'


def test_shell_accepts_byte_order_mark_and_crlf(inside: InProcess, index: str) -> None:
    script = f"\ufeffput {index} k v\r\nget {index} k -o json\r\nexit\r\n"
    assert inside.out("shell", stdin=script.encode()) == '{"key":"k","value":"v"}\n'


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("get INDEX missing", 3, 'no key "missing"'),
        ("zzz", 2, "No such command 'zzz'. (see --help)"),
        ("put", 2, "(see put --help)"),
        ('put INDEX "a b', 2, "no closing quotation"),
        ("put INDEX key", 2, "commands in the shell cannot read stdin"),
        ("import INDEX - --format jsonl", 2, "commands in the shell cannot read stdin"),
        ("--peers 127.0.0.1:1 count INDEX", 2, "--peers applies to the whole shell"),
        ("count INDEX --peers 127.0.0.1:1", 2, "--peers applies to the whole shell"),
        ("count INDEX -c x.toml", 2, "--config applies to the whole shell"),
        ("shell", 2, "shell cannot be run inside the shell"),
    ],
    ids=lambda part: "",
)
def test_shell_continues_after_an_error(
    inside: InProcess, index: str, line: str, code: int, text: str
) -> None:
    index = shlex.quote(index)
    script = f"{line.replace('INDEX', index)}\nput {index} after 1\nget {index} after\nnone\n"
    done = inside.run("shell", stdin=script.encode())
    assert (done.returncode, done.stdout) == (code, b"1\n")
    first, second = done.stderr.decode().splitlines()
    assert text in first
    assert "No such command 'none'" in second


@pytest.fixture
def terminal(dev: DevCluster, tmp_path: Path) -> Iterator[Terminal]:
    """A shell at its first prompt."""
    terminal = Terminal(dev, tmp_path, "shell")
    try:
        terminal.await_text("healthy")
        terminal.await_prompt()
        yield terminal
    finally:
        terminal.close()


def test_shell_at_its_prompt_ends_on_sigterm(terminal: Terminal) -> None:
    terminal.signal(signal.SIGTERM)
    assert terminal.end() == -signal.SIGTERM


def test_shell_completes_and_keeps_history_on_a_terminal(
    terminal: Terminal, tmp_path: Path, index: str
) -> None:
    terminal.type(f"put {index} k hello\r")
    terminal.await_prompt()
    terminal.type(f" get {index} k\r")
    terminal.await_text("hello")
    terminal.await_prompt()
    terminal.type("cluster forg")
    terminal.await_text("forg")  # on the screen first, so that only the completion follows
    terminal.type("\t")
    terminal.await_text("et")
    terminal.type(" pe\t")
    terminal.await_text("peer2")
    terminal.type("\x03")  # Ctrl-C drops the line
    terminal.await_prompt()
    terminal.type("\x1b[A")  # the line before
    terminal.await_text("get")
    terminal.type("\x03\x04")  # Ctrl-D ends it
    assert terminal.end() == 0
    history = tmp_path / ".local" / "state" / "dstash" / ".shell_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert f"+put {index} k hello\n" in history.read_text()
    assert "+ get" not in history.read_text()
