"""Log events as machines and people see them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

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


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    structlog.get_logger().info("peer ready", port=5000, path=b"\xff")
    structlog.get_logger().debug("dropped")
    logging.getLogger("urllib3").warning("retrying %s", "x")
    out, err = capsys.readouterr()
    first, second = map(json.loads, err.splitlines())
    assert out == ""
    assert (first["event"], first["level"], first["port"]) == ("peer ready", "info", 5000)
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"]) == ("retrying x", "warning")


def test_json_exceptions_are_structured_and_show_no_locals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("json")
    password = "hunter2"  # noqa: S105
    try:
        raise ValueError(f"no {len(password)}")
    except ValueError:
        structlog.get_logger().exception("failed")
    err = capsys.readouterr().err
    (exception,) = json.loads(err)["exception"]
    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "no 7")
    assert "hunter2" not in err.replace('password = "hunter2"', "")


def test_console_is_readable_and_without_colours_in_a_pipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("console", "debug")
    structlog.get_logger().debug("syncing", partition=7)
    err = capsys.readouterr().err
    assert "syncing" in err
    assert "partition=7" in err
    assert "\x1b" not in err
