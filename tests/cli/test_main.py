"""Global options, and errors: one line on stderr, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dstash import errors
from dstash.cli.commands import data
from dstash.cli.invocation import Invocation
from tests.cli.conftest import Dstash


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["fetch"], "No such command 'fetch'"),
        (["set", "i", "k", "v"], "No such command 'set'. Did you mean 'put'?"),
        (["KEYS", "i"], "No such command 'KEYS'. Did you mean 'scan --keys'?"),
        (["cluster", "set"], "No such command 'set'."),
        (["get"], "Missing argument 'INDEX'"),
        (["get", "index"], "Missing argument 'KEY...'"),
        (["--nope"], "No such option: --nope"),
        (["-o", "xml", "count", "i"], "--output': 'xml' is not one of 'table', 'json'"),
        (["count", "i", "-o", "xml"], "--output': 'xml' is not one of 'table', 'json'"),
        (["count", "i", "--read", "most"], "read is 'most'; allowed is one | quorum | all"),
        (["cluster", "watch", "-c", "none.toml"], "none.toml: cannot be read"),
        (["import", "i", "x.csv", "--delimiter", ";;"], "allowed are one character, such as ';'"),
        (["put", "i", "k", "v", "--ttl", "soon"], "--ttl"),
        (["put", "i", "k", "v", "--json", "--bytes"], "cannot be combined"),
        (["put", "i", "k", "{", "--json"], "not JSON: Expecting property name"),
        (["put", "i", "k", "1e400", "--json"], "number 1e400 is beyond the range of floats"),
        (["put", "i", "k", '{"$bytes": 1}', "--json"], "bad $bytes"),
        (["import", "i", "/nosuch"], "/nosuch: No such file or directory"),
        (["import", "i", "/"], "/: Is a directory"),
        (["import", "i", "/dev/null"], "/dev/null: unknown suffix"),
        (["export", "i", "/"], "/: Is a directory"),
        (["export", "i", "/nosuch"], "/nosuch: unknown suffix"),
        (["put", "i", "k", '{"$decimal": "x"}', "--json"], "'x' is not a decimal number"),
        (["scan", "i", "\udcff"], "not valid Unicode text"),
        (["get", "i", "x", "--int"], "key 'x' is not an integer"),
        (["get", "i", "x", "--hex"], "key 'x' is not hexadecimal bytes"),
        (["get", "i", "1", "--hex", "--int"], "--int, --hex and --typed cannot be combined"),
        (["get", "i", '"1', "--typed"], 'key "1 is not a JSON string'),
        (
            ["put", "i", "k", "v", "--ttl", "1w"],
            "--ttl': '1w' is not a time; allowed are forms like 90, 1.5s, 15m, 12h, 7d",
        ),
        (["put", "i", "k", "v", "--ttl", "-1h"], "ttl is -3600.0 s"),
        (["touch", "i", "k"], "either --ttl TIME or --forever"),
        (["touch", "i", "k", "--ttl", "5", "--forever"], "either --ttl TIME or --forever"),
        (["import", "", "x.jsonl"], "index name has 0 bytes"),
        (["import", "i", "x.txt"], "x.txt: No such file or directory"),
        (["import", "i", "x.jsonl"], "x.jsonl: No such file or directory"),
        (["import", "i", "x.jsonl", "--ttl", "nan"], "'nan' is not a time"),
        (["import", "i", "x.jsonl", "--on-error", "pray"], "--on-error"),
        (["export", "i", "no/such/x.jsonl"], "no/such/x.jsonl: No such file or directory"),
        (["--timeout", "0", "count", "i"], "timeout is 0.0; allowed is a number above 0"),
        (["--read", "most", "count", "i"], "read is 'most'; allowed is one | quorum | all"),
        (["--peers", "here", "count", "i"], "allowed is tcp://host:port"),
        (["-c", "none.toml", "count", "i"], "none.toml: cannot be read"),
        (["dev", "up", "-n", "0"], "-n"),
        (["health", "--wait", "-1"], "--wait"),
    ],
)
def test_wrong_usage_is_exit_code_2(dstash: Dstash, words: list[str], text: str) -> None:
    done = dstash(*words)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert done.err.startswith("dstash: ")
    assert text in done.err


def test_missing_peer_is_exit_code_5(dstash: Dstash) -> None:
    done = dstash("--peers", "127.0.0.1:1", "--timeout", "0.3", "count", "i")
    assert (done.code, done.out, done.err.count("\n")) == (5, "", 1)
    assert "no peer answered" in done.err


def test_missing_peer_is_unhealthy(dstash: Dstash) -> None:
    done = dstash("--peers", "127.0.0.1:1", "-o", "json", "health", "--wait", "0.1")
    assert done.code == 8
    assert done.out.startswith('{"healthy":false,"reasons":["no peer answered')
    assert done.err.startswith("dstash: unhealthy: no peer answered")


def test_global_options_may_follow_the_command(dstash: Dstash, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('zone = "z"\n')
    options = ["-o", "json", "--timeout", "7", "--read", "one", "-c", "c.toml", "--peers", "h:1"]
    shown = json.loads(dstash("config", "show", *options).out)
    assert shown["timeout"] == {"value": 7.0, "from": "command line"}
    assert shown["read"]["value"] == "one"
    assert shown["zone"]["from"] == "c.toml, line 1"
    assert shown["peers"]["value"] == ["tcp://h:1"]
    assert "timeout" in json.loads(dstash("config", "-o", "json", "show").out)
    # The last one counts, as it does for other options.
    assert dstash("-o", "json", "config", "show", "-o", "table").out.startswith("setting ")
    # An option of the command itself goes before.
    assert "'-n' / '--peers': 0 is not in the range" in dstash("dev", "up", "--peers", "0").err


def test_help_and_version_succeed(dstash: Dstash) -> None:
    assert dstash("--version").out.startswith("dstash 0.")
    done = dstash("-h")
    assert done.code == 0
    assert "Exit codes" in done.out
    for command in ("put", "import", "dev", "config"):
        assert dstash(command, "--help").code == 0


def test_help_wraps_paragraphs_once_and_flags_have_no_type(
    dstash: Dstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    shown = dstash("export", "--help").out
    assert "whose mode it keeps. A symbolic link is followed; a device, a" in shown
    for words in (["export"], ["put"], ["cluster"], []):
        assert "<bool>" not in dstash(*words, "--help").out


@pytest.mark.parametrize(
    ("line", "help_for"),
    [("puut", "dstash"), ("put", "dstash put"), ("cluster plan", "dstash cluster plan")],
)
def test_usage_error_names_the_matching_help(dstash: Dstash, line: str, help_for: str) -> None:
    done = dstash(*line.split())
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.endswith(f" (see {help_for} --help)\n")
    assert dstash(*help_for.split()[1:], "--help").code == 0


def test_missing_command_is_a_usage_error(dstash: Dstash) -> None:
    done = dstash()
    assert (done.code, done.out) == (2, "")
    assert "Usage" in done.err


def test_group_without_command_prints_its_help(dstash: Dstash) -> None:
    done = dstash("dev")
    assert (done.code, done.err) == (2, "")
    assert "status" in done.out


def test_unknown_variable_is_a_warning(dstash: Dstash, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTASH_TIMOUT", "5")
    done = dstash("config", "show")
    assert done.code == 0
    assert (
        done.err == "dstash: warning: DSTASH_TIMOUT is not a setting of dstash; it has no effect\n"
    )


class Broken:
    """Simulates a client with a defect, and an interrupted client."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __enter__(self) -> Broken:
        raise self._error

    def __exit__(self, *_: object) -> None:
        pass


def test_internal_error_is_one_line(dstash: Dstash, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Invocation, "client", lambda self: Broken(KeyError("oops\nmore")))
    done = dstash("count", "i")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "internal error: KeyError" in done.err
    assert "DSTASH_DEBUG=1" in done.err


def test_debug_variable_shows_the_traceback(
    dstash: Dstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Invocation, "client", lambda self: Broken(KeyError("oops")))
    monkeypatch.setenv("DSTASH_DEBUG", "1")
    with pytest.raises(KeyError):
        dstash("count", "i")


def test_ctrl_c_is_exit_code_130(dstash: Dstash, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Invocation, "client", lambda self: Broken(KeyboardInterrupt()))
    assert dstash("count", "i") == (130, "", "dstash: interrupted\n")


def test_os_error_is_one_line(dstash: Dstash, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(28, "No space left on device", "/data/x")
    monkeypatch.setattr(Invocation, "client", lambda self: Broken(error))
    assert dstash("count", "i") == (1, "", "dstash: /data/x: No space left on device\n")


def test_removed_working_directory_is_named(
    dstash: Dstash, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "removed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    code, _, err = dstash("dev", "status")
    assert (code, err) == (1, "dstash: the working directory: No such file or directory\n")


def test_every_command_has_a_description() -> None:
    for command in (data.put, data.get, data.delete, data.scan):
        assert command.__doc__


def test_error_suggests_the_next_step(dstash: Dstash, monkeypatch: pytest.MonkeyPatch) -> None:
    done = dstash("--peers", "127.0.0.1:1", "--timeout", "0.3", "get", "i", "k")
    assert done.err == (
        "dstash: no peer answered at tcp://127.0.0.1:1 "
        "(connection refused: no process listens on that port); is it running? "
        "start a cluster with dstash dev up, or set --peers or --consul\n"
    )
    for error, step in (
        (errors.Unavailable("too few"), "too few; dstash status lists the peers that are down"),
        (errors.Unauthorised("no"), "no; check authorised_keys of the peers; see docs/security.md"),
        (errors.UsageError("bad"), "bad"),  # the text already has it
    ):
        monkeypatch.setattr(Invocation, "client", lambda self, error=error: Broken(error))
        assert dstash("count", "i").err == f"dstash: {step}\n"
