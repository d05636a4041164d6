"""``dstash config``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Dstash

CONF = Path(__file__).parent.parent.parent / "conf"


def test_check_accepts_the_files_of_the_project(dstash: Dstash) -> None:
    files = [str(file) for file in sorted(CONF.rglob("*.toml"))]
    done = dstash("config", "check", *files)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [f"{file}: ok" for file in files]


@pytest.mark.parametrize("kind", ["peer", "client"])
def test_example_prints_the_file_of_the_project(dstash: Dstash, kind: str) -> None:
    done = dstash("config", "example", kind)
    assert (done.code, done.err) == (0, "")
    assert done.out == (CONF / f"{kind}.toml").read_text()


def test_check_reports_every_problem_of_every_file(dstash: Dstash, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("prot = 5000\nweight = -1\n")
    (tmp_path / "b.toml").write_text("timeout = 0\n")
    (tmp_path / "ok.toml").write_text("timeout = 1\n")
    done = dstash("config", "check", "a.toml", "b.toml", "ok.toml", "gone.toml")
    assert done.code == 2
    assert done.out == "ok.toml: ok\n"
    problems = sorted(done.err.splitlines())
    assert problems == [
        "dstash: a.toml, line 1: unknown key 'prot'; did you mean 'port'?",
        "dstash: a.toml, line 2: weight is -1; allowed is a number above 0 below 1000000",
        "dstash: b.toml, line 1: timeout is 0; allowed is a number above 0 up to 3155760000",
        "dstash: gone.toml: cannot be read: No such file or directory",
    ]


def test_check_guesses_the_kind_by_the_keys(dstash: Dstash, tmp_path: Path) -> None:
    lines = ["curve = true", 'cert_file = "a.key"', 'key_file = "a.key_secret"']
    (tmp_path / "peer.toml").write_text("\n".join([*lines, 'authorised_keys = "keys"']))
    assert dstash("cert", "new", "a").code == 0
    (tmp_path / "keys").touch()
    assert dstash("config", "check", "peer.toml").code == 0
    (tmp_path / "a.key_secret").chmod(0o644)
    done = dstash("config", "check", "peer.toml")
    assert (done.code, done.out) == (2, "")
    secret = tmp_path / "a.key_secret"
    assert done.err == (
        f"dstash: {secret} is a secret key that other users can read (mode 644); "
        f"run: chmod 600 {secret}\n"
    )


def test_check_does_not_require_data_dir(dstash: Dstash, tmp_path: Path) -> None:
    (tmp_path / "peer.toml").write_text("port = 5001\n")
    assert dstash("config", "check", "peer.toml").code == 0


def test_kind_option_overrides_the_guess(dstash: Dstash, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("port = 5001\n")
    done = dstash("config", "check", "x.toml", "--kind", "client")
    assert done.code == 2
    assert "unknown key 'port'" in done.err


def test_check_reads_the_environment(dstash: Dstash, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTASH_TIMEOUT", "never")
    done = dstash("config", "check")
    assert done.code == 2
    assert "DSTASH_TIMEOUT: timeout is 'never'" in done.err


def test_show_prints_the_origin_of_each_setting(
    dstash: Dstash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text('cluster = "blue"\nzone = "z"\n')
    monkeypatch.setenv("DSTASH_ZONE", "y")
    monkeypatch.setenv("DSTASH_CONSUL_TOKEN", "s3cret")
    done = dstash("-c", "c.toml", "--read", "one", "-o", "json", "config", "show")
    shown = json.loads(done.out)
    assert shown["cluster"] == {"value": "blue", "from": "c.toml, line 1"}
    assert shown["zone"] == {"value": "y", "from": "DSTASH_ZONE"}
    assert shown["read"] == {"value": "one", "from": "command line"}
    assert shown["timeout"] == {"value": 5.0, "from": "default"}
    assert set(shown["consul_token"]["value"]) == {"*"}
    table = dstash("config", "show").out
    assert "s3cret" not in table + done.out
    assert table.splitlines()[0].split() == ["setting", "value", "from"]


def test_show_prints_where_a_client_looks_without_settings(
    dstash: Dstash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shown = json.loads(dstash("-o", "json", "config", "show").out)
    assert shown["peers"]["value"][0] == "tcp://127.0.0.1:5000"
    assert shown["peers"]["from"] == (
        f"fallback without peers and consul: there is no directory {tmp_path}/state/dstash/dstash"
    )
    (tmp_path / ".dstash/membership").mkdir(parents=True)
    shown = json.loads(dstash("-o", "json", "config", "show").out)
    assert shown["local_dir"] == {
        "value": str(tmp_path / ".dstash/membership"),
        "from": "fallback without peers and consul: this directory exists",
    }
    assert shown["peers"] == {"value": [], "from": "default"}
    shown = json.loads(dstash("--peers", "h:1", "-o", "json", "config", "show").out)
    assert shown["local_dir"] == {"value": None, "from": "default"}


def test_show_guesses_the_kind_of_a_file_with_a_byte_order_mark(
    dstash: Dstash, tmp_path: Path
) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbfport = 5001\r\n# \xe2\x98\x83\r\n")
    assert dstash("config", "check", "x.toml").out == "x.toml: ok\n"


def test_show_prints_settings_of_a_peer(dstash: Dstash) -> None:
    done = dstash("config", "show", str(CONF / "peer.toml"))
    rows = [line.split(maxsplit=2) for line in done.out.splitlines()]
    assert rows[0] == ["setting", "value", "from"]
    assert ["replicas", "3"] in [row[:2] for row in rows]
