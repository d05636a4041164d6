"""Log output: JSON, console, and a target that blocks or fails."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from dstash import log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def test_json_log_has_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    structlog.get_logger().info("peer ready", port=5000, path=b"\xff")
    structlog.get_logger().debug("dropped")
    logging.getLogger("urllib3").warning("retrying %s", "x")
    log.flush()
    out, err = capsys.readouterr()
    first, second = map(json.loads, err.splitlines())
    assert out == ""
    assert (first["event"], first["level"], first["port"]) == ("peer ready", "info", 5000)
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"]) == ("retrying x", "warning")


def test_every_line_has_the_id_of_the_peer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("json")
    log.identify(peer="p1")
    try:
        structlog.get_logger().info("serving")
        structlog.get_logger().info("serving", peer="p2")
        logging.getLogger("urllib3").warning("retrying")
        log.flush()
    finally:
        log._identity.clear()
    lines = map(json.loads, capsys.readouterr().err.splitlines())
    assert [line["peer"] for line in lines] == ["p1", "p2", "p1"]


def test_json_log_has_structured_exceptions_without_locals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("json")
    password = "hunter2"  # noqa: S105
    try:
        raise ValueError(f"no {len(password)}")
    except ValueError:
        structlog.get_logger().exception("failed")
    log.flush()
    err = capsys.readouterr().err
    (exception,) = json.loads(err)["exception"]
    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "no 7")
    assert "hunter2" not in err.replace('password = "hunter2"', "")


def test_console_log_has_no_colours_in_a_pipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("console", "debug")
    structlog.get_logger().debug("syncing", partition=7)
    log.flush()
    err = capsys.readouterr().err
    assert "syncing" in err
    assert "partition=7" in err
    assert "\x1b" not in err


#: The start of each script below.
PREAMBLE = """
import os, signal, sys, threading, time
import structlog
from dstash import log
log.configure("json")
logger = structlog.get_logger()
"""


def start(script: str, stderr: int) -> subprocess.Popen[bytes]:
    """Start a process that logs."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", PREAMBLE + script]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=stderr)


def logged(script: str, tmp_path: Path) -> list[dict[str, object]]:
    """Run a script to its end and return its log."""
    with (tmp_path / "log").open("wb") as file, start(script, file.fileno()) as process:
        assert process.wait(timeout=60) == 0, (tmp_path / "log").read_text()[-2000:]
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


class TestLogCall:
    def test_log_call_does_not_block_on_a_full_pipe(self) -> None:
        script = """
for number in range(60_000):
    logger.info("a line", number=number, padding="x" * 100)
print("continued", flush=True)
log.flush(30)
"""
        reading, writing = os.pipe()
        with start(script, writing) as process, os.fdopen(reading) as read:
            os.close(writing)
            assert process.stdout is not None
            assert process.stdout.readline() == b"continued\n"
            lines = [json.loads(line) for line in read]
            assert process.wait(timeout=60) == 0
        lost = [line["lost"] for line in lines if "lost" in line]
        numbers = [line["number"] for line in lines if "number" in line]
        assert numbers == sorted(numbers)
        assert numbers[:1000] == list(range(1000))
        assert sum(lost) > 0
        assert len(numbers) + sum(lost) == 60_000

    def test_log_does_not_block_process_exit(self) -> None:
        reading, writing = os.pipe()
        with start("[logger.info('x' * 1000) for _ in range(500)]", writing) as process:
            os.close(writing)
            assert process.wait(timeout=30) == 0
        os.close(reading)

    @pytest.mark.parametrize("close", ["os.close(2)", "sys.stderr.close()"])
    def test_log_call_does_not_raise_when_stderr_is_closed(
        self, close: str, tmp_path: Path
    ) -> None:
        script = f"""
{close}
logger.info("lost")
log.flush(30)
print(log._writer.lost)
"""
        with start(script, subprocess.DEVNULL) as process:
            assert process.communicate(timeout=60)[0] == b"1\n"
            assert process.returncode == 0

    def test_log_call_does_not_raise_on_a_full_disk(self, tmp_path: Path) -> None:
        script = """
kept = os.dup(2)
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
for _ in range(10):
    logger.info("lost")
log.flush(30)
os.dup2(kept, 2)
logger.info("written")
"""
        events = [(line["event"], line["level"]) for line in logged(script, tmp_path)]
        assert events == [("10 log lines were lost", "warning"), ("written", "info")]

    def test_lost_lines_are_reported_without_a_following_line(self, tmp_path: Path) -> None:
        script = """
kept = os.dup(2)
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
logger.info("lost")
log.flush(30)
os.dup2(kept, 2)
while log._writer.lost:
    time.sleep(0.05)
"""
        assert [line["event"] for line in logged(script, tmp_path)] == ["1 log lines were lost"]

    def test_log_call_is_safe_in_a_signal_handler(self, tmp_path: Path) -> None:
        script = """
signal.signal(signal.SIGALRM, lambda *_: logger.info("handler"))
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for number in range(5000):
    logger.info("main", number=number)
signal.setitimer(signal.ITIMER_REAL, 0)
log.flush(30)
"""
        lines = logged(script, tmp_path)
        assert [line["number"] for line in lines if "number" in line] == list(range(5000))
        assert sum(line["event"] == "handler" for line in lines) > 10

    def test_log_call_is_safe_after_fork(self, tmp_path: Path) -> None:
        script = """
stop = threading.Event()
def log_all_the_time():
    while not stop.is_set():
        logger.debug("below the level")
        logger.info("parent")
threads = [threading.Thread(target=log_all_the_time) for _ in range(3)]
for thread in threads:
    thread.start()
for number in range(30):
    child = os.fork()
    if child == 0:
        logger.info("child", number=number)
        os._exit(0 if log.flush(10) else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
"""
        lines = logged(script, tmp_path)
        assert [line["number"] for line in lines if "number" in line] == list(range(30))

    def test_log_keeps_the_order_of_each_thread(self, tmp_path: Path) -> None:
        script = """
def log_some(name):
    for number in range(2000):
        logger.info("line", name=name, number=number)
threads = [threading.Thread(target=log_some, args=(name,)) for name in "abc"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
        lines = logged(script, tmp_path)
        for name in "abc":
            numbers = [line["number"] for line in lines if line["name"] == name]
            assert numbers == list(range(2000))

    def test_event_that_cannot_be_rendered_leaves_a_line(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Unprintable:
            def __repr__(self) -> str:
                raise RuntimeError("no")

        log.configure("console")
        structlog.get_logger().info("peer ready", what=Unprintable())
        logging.getLogger("urllib3").warning("retrying %d", "x")
        log.flush()
        first, second = capsys.readouterr().err.splitlines()
        assert re.match(r"a log line could not be rendered \(RuntimeError\): peer ready", first)
        assert re.match(r"a log line could not be rendered \(TypeError\): retrying %d", second)
