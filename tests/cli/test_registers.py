"""The commands on registers, and the command that holds a lock, against real peers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dstash.cli.commands import lock
from tests.harness.devcluster import DevCluster, InProcess, clean_environment
from tests.harness.waiting import wait_until


@pytest.fixture
def registers(request: pytest.FixtureRequest) -> str:
    """The name of an index with registers that no other test uses."""
    return f"@{request.node.name}"[:64]


def test_conditions_decide_what_is_stored(inside: InProcess, registers: str) -> None:
    assert inside.out("add", registers, "k", "first") == ""
    code, text = inside.refusal("add", registers, "k", "second")
    assert (code, text) == (4, f"key \"k\" exists in index '{registers}'")
    version = json.loads(inside.out("-o", "json", "get", registers, "k", "--version"))["version"]
    after = int(inside.out("cas", registers, "k", "[1]", "--json", "--version", str(version)))
    assert after > version
    code, text = inside.refusal("cas", registers, "k", "x", "--version", str(version))
    assert code == 4
    assert f"has version {after}; version {version} was expected" in text
    code, text = inside.refusal("del", registers, "k", "--version", str(version))
    assert code == 4
    inside.out("del", registers, "k", "--version", str(after))
    assert inside.refusal("get", registers, "k", "--version")[0] == 3


def test_get_with_version_prints_a_table(inside: InProcess, registers: str) -> None:
    inside.out("put", registers, "k", "v")
    head, row = inside.out("get", registers, "k", "--version").splitlines()
    assert head.split() == ["key", "version", "value"]
    assert [row.split()[0], row.split()[2]] == ["k", "v"]


def test_get_with_version_in_a_plain_index_names_the_option(inside: InProcess) -> None:
    code, text = inside.refusal("get", "things", "k", "--version")
    assert code == 2
    assert "--version needs an index whose name begins with @, such as '@things'" in text


def test_counters_print_their_sums(inside: InProcess, registers: str) -> None:
    assert inside.out("incr", registers, "n") == "1\n"
    assert inside.out("incr", registers, "n", "9") == "10\n"
    assert inside.out("incr", registers, "n", "--", "-2") == "8\n"
    assert inside.out("decr", registers, "n", "8", "--at-least", "0") == "0\n"
    code, text = inside.refusal("decr", registers, "n", "--at-least", "0")
    assert code == 4
    assert "the sum would be out of its bounds" in text
    assert inside.refusal("incr", registers, "n", str(2**63))[0] == 2


def test_swap_prints_the_value_before_byte_for_byte(inside: InProcess, registers: str) -> None:
    assert inside.out("swap", registers, "k", "a\nb") == ""
    assert inside.out("swap", registers, "k", "c") == "a\nb"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("add", "plain", "k", "v"), "add needs an index whose name begins with @"),
        (("get", "plain", "k", "--version"), "--version needs an index whose name begins with @"),
        (("del", "plain", "k", "--version", "5"), "delete with a version needs an index whose"),
        (("del", "@i", "a", "b", "--version", "5"), "--version is that of one key; 2 keys are"),
        (("add", "@", "k", "v"), "index name is '@' alone"),
        (("cas", "@i", "k", "v", "--version", "-1"), "version is -1; allowed is a version that"),
        (("lock", "job", "--index", "plain", "--", "true"), "lock needs an index whose name"),
        (("lock", "job", "--", "no-such-command"), "there is no command 'no-such-command'"),
    ],
)
def test_bad_arguments_are_named(inside: InProcess, words: tuple[str, ...], text: str) -> None:
    code, said = inside.refusal(*words)
    assert code == 2
    assert said.startswith(text)


class TestLock:
    def test_command_has_the_token_and_decides_the_exit_code(self, dev: DevCluster) -> None:
        done = dev.run("lock", "code", "--", "sh", "-c", "echo $DSTASH_LOCK_TOKEN; exit 7")
        assert (done.returncode, done.stderr) == (7, b"")
        first = int(done.stdout)
        done = dev.run("lock", "code", "--", "sh", "-c", "echo $DSTASH_LOCK_TOKEN")
        assert int(done.stdout) > first

    def test_commands_of_dstash_do_not_warn_of_the_token(self, dev: DevCluster) -> None:
        inner = [sys.executable, "-m", "dstash.cli.main", "put", "things", "k", "v"]
        done = dev.run("lock", "inner", "--", *inner)
        assert (done.returncode, done.stderr) == (0, b"")

    def test_file_that_is_not_executable_is_named(self, inside: InProcess, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text("#!/bin/sh\n")
        script.chmod(0o644)
        code, text = inside.refusal("lock", "job", "--", str(script))
        assert (code, text) == (2, f"'{script}' is not executable; allowed is an executable file")
        code, text = inside.refusal("lock", "job", "--", str(tmp_path))
        assert (code, text) == (2, f"'{tmp_path}' is a directory; allowed is an executable file")
        code, text = inside.refusal("lock", "job", "--", str(tmp_path / "missing"))
        assert (code, text) == (2, f"there is no command '{tmp_path / 'missing'}'")

    def test_held_lock_is_exit_code_4(self, dev: DevCluster, inside: InProcess) -> None:
        command = [sys.executable, "-m", "dstash.cli.main", "lock", "busy", "--", "sleep", "60"]
        holder = subprocess.Popen(command, cwd=dev.folder, env=clean_environment())
        try:
            wait_until(lambda: _holds(inside, "busy"), 20, "the lock is held")
            code, text = inside.refusal("lock", "busy", "--wait", "0", "--", "true")
            assert code == 4
            assert text.startswith("lock 'busy' is held by ")
            holder.send_signal(signal.SIGTERM)
            assert holder.wait(20) == 143
            assert inside.out("lock", "busy", "--wait", "0", "--", "true") == ""
        finally:
            holder.kill()
            holder.wait()

    def test_lost_lock_ends_the_command(self, dev: DevCluster, inside: InProcess) -> None:
        command = [sys.executable, "-m", "dstash.cli.main", "lock", "lost", "--ttl", "1"]
        holder = subprocess.Popen(
            [*command, "--", "sleep", "60"],
            cwd=dev.folder,
            env=clean_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: _holds(inside, "lost"), 20, "the lock is held")
            inside.out("del", "@locks", "lost")
            assert holder.wait(20) == 4
            assert holder.stderr is not None
            assert "lock 'lost' is not held any more: it expired, or was" in holder.stderr.read()
        finally:
            holder.kill()
            holder.communicate()

    def test_signal_while_the_command_starts_ends_the_command(
        self, dev: DevCluster, tmp_path: Path
    ) -> None:
        number = tmp_path / "number"
        script = 'echo $$ > "$1"; kill -TERM $PPID; exec sleep 60'
        done = dev.run("lock", "early", "--", "sh", "-c", script, "sh", str(number))
        assert done.returncode == 143
        with pytest.raises(ProcessLookupError):
            os.kill(int(number.read_text()), 0)
        assert dev.out("lock", "early", "--wait", "0", "--", "true") == ""

    def test_interrupted_start_of_the_command_loses_no_process(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[int] = []

        class Interrupted(subprocess.Popen[bytes]):
            def _execute_child(self, *args: Any) -> None:
                super()._execute_child(*args)  # type: ignore[misc]  # not public
                started.append(self.pid)
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(subprocess, "Popen", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock._run(["sleep", "60"], dict(os.environ), lambda: None)
        with pytest.raises(ProcessLookupError):
            os.kill(started[0], 0)

    def test_interrupt_while_signals_are_to_be_remembered_leaves_the_handlers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_handler, interrupts = signal.signal, [signal.SIGINT]

        def set_and_interrupt(number: int, handler: Any) -> Any:
            before = set_handler(number, handler)
            while interrupts:
                signal.raise_signal(interrupts.pop())
            return before

        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        monkeypatch.setattr(signal, "signal", set_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            lock._run(["true"], dict(os.environ), lambda: None)
        left = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        assert left == handlers

    def test_second_signal_kills_the_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lock, "_GRACE_S", 600.0)
        number = tmp_path / "number"
        survived = tmp_path / "survived"
        script = 'trap \': > "$2"\' TERM; echo $$ > "$1.new"; mv "$1.new" "$1"'
        script += "; while :; do sleep 0.05; done"

        def interrupt_twice() -> None:
            wait_until(number.exists, 20, "the command has started")
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(survived.exists, 20, "the command has got SIGTERM")  # else they are one
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt_twice)
        thread.start()
        command = ["sh", "-c", script, "sh", str(number), str(survived)]
        with pytest.raises(KeyboardInterrupt):
            lock._run(command, dict(os.environ), lambda: None)
        thread.join()
        with pytest.raises(ProcessLookupError):
            os.kill(int(number.read_text()), 0)


def _holds(inside: InProcess, name: str) -> bool:
    return inside.run("exists", "@locks", name).returncode == 0
