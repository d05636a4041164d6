"""The commands on keys, against real peers."""

from __future__ import annotations

import json
import os
import pty
import subprocess

import pytest

from tests.harness import devcluster
from tests.harness.devcluster import DevCluster, InProcess


@pytest.fixture(autouse=True)
def every_replica_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes at level all, because scans and counts ask one replica of each partition."""
    monkeypatch.setitem(devcluster.settings, "DSTASH_WRITE", "all")


def test_get_prints_the_text_that_put_stored(dev: DevCluster, index: str) -> None:
    assert dev.out("put", index, "k", "välue") == ""
    assert dev.out("get", index, "k") == "välue"
    assert dev.out("-o", "json", "get", index, "k") == '{"key":"k","value":"välue"}\n'


@pytest.mark.parametrize("content", [b"", b"text\n", b"\x00\xff\xfe\r\n", bytes(range(256)) * 4000])
def test_put_and_get_keep_bytes_in_pipes(dev: DevCluster, index: str, content: bytes) -> None:
    assert dev.run("put", index[:60], "k", stdin=content).returncode == 0
    assert dev.run("get", index[:60], "k").stdout == content


def test_put_stores_stdin_as_bytes_by_default(inside: InProcess, index: str) -> None:
    def stored(*words: str, stdin: bytes = b"") -> object:
        inside.out("put", index, "k", *words, stdin=stdin)
        return json.loads(inside.out("-o", "json", "get", index, "k"))["value"]

    assert stored(stdin=b"x") == {"$bytes": "eA=="}
    assert stored("-", stdin=b"x") == {"$bytes": "eA=="}
    assert stored("--text", stdin=b"x") == "x"
    assert stored("--json", stdin=b'{"a": [1]}') == {"a": [1]}
    assert stored("x", "--bytes") == {"$bytes": "eA=="}
    assert stored("[1, 2]", "--json") == [1, 2]
    assert stored("[1, 2]") == "[1, 2]"
    code, text = inside.refusal("put", index, "k", "--text", stdin=b"\xff")
    assert (code, text) == (2, "value is not UTF-8 text (byte 0); use --bytes")


def test_get_prints_other_types_as_json(inside: InProcess, index: str) -> None:
    inside.out("put", index, "k", '{"t": {"$datetime": "2024-01-01T00:00:00"}}', "--json")
    assert inside.out("get", index, "k") == '{"t":{"$datetime":"2024-01-01T00:00:00"}}'


def test_get_prints_a_table_for_several_keys(inside: InProcess, index: str) -> None:
    inside.out("put", index, "a", "1\n")
    inside.out("put", index, "b", "2")
    assert inside.out("get", index, "b", "a").splitlines() == ["key  value", "b    2", "a    1\\n"]
    done = inside.run("-o", "json", "get", index, "a", "zz", "b", "yy")
    assert done.returncode == 3
    assert done.stdout == b'{"key":"a","value":"1\\n"}\n{"key":"b","value":"2"}\n'
    expected = f'dstash: 2 keys are not in index \'{index}\': "zz", "yy"\n'
    assert done.stderr.decode() == expected


def test_missing_key_is_exit_code_3(inside: InProcess, index: str) -> None:
    text = f"no key \"k\" in index '{index}'"
    assert inside.refusal("get", index, "k") == (3, text)
    assert inside.refusal("del", index, "k") == (3, text)
    assert inside.refusal("ttl", index, "k") == (3, text)
    hint = "; for keys that are integers, use --int"
    assert inside.refusal("get", index, "--", "-5") == (
        3,
        f"no key \"-5\" in index '{index}'{hint}",
    )
    assert inside.refusal("get", index, "5", "k") == (
        3,
        f'2 keys are not in index \'{index}\': "5", "k"{hint}',
    )
    assert inside.refusal("del", index, "5", "k")[1].endswith(hint)
    assert inside.refusal("get", index, "5", "--int") == (3, f"no key 5 in index '{index}'")
    assert inside.refusal("exists", index, "5")[1].endswith(hint)
    assert inside.refusal("touch", index, "k", "--ttl", "5") == (3, text)
    done = inside.run("exists", index, "k")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"false\n", b"")


def test_delete_reports_deleted_and_missing_keys(inside: InProcess, index: str) -> None:
    for key in "abc":
        inside.out("put", index, key, "v")
    assert inside.out("exists", index, "a") == "true\n"
    inside.out("del", index, "a")
    inside.out("del", index, "b", "b")
    assert inside.refusal("del", index, "b", "c", "d") == (
        3,
        f'2 of 3 keys were not in index \'{index}\': "b", "d"',
    )
    numbers = list(map(str, range(12)))
    code, text = inside.refusal("del", index, *numbers, "--int")
    assert code == 3
    assert text == f"12 of 12 keys were not in index '{index}': {', '.join(numbers[:10])}, ..."
    assert inside.out("count", index) == "0\n"


def test_int_and_hex_options_parse_keys(inside: InProcess, index: str) -> None:
    inside.out("put", index, "5", "text")
    inside.out("put", index, "5", "number", "--int")
    inside.out("put", index, "35", "bytes", "--hex")
    assert inside.out("get", index, "5") == "text"
    assert inside.out("get", index, "5", "--int") == "number"
    assert inside.out("get", index, "35", "--hex") == "bytes"
    keys = {
        line.split('"key":')[1]
        for line in inside.out("-o", "json", "scan", index, "--keys").split()
    }
    assert keys == {'"5"}', "5}", '{"$bytes":"NQ=="}}'}
    printed = inside.out("scan", index, "--keys").splitlines()
    assert sorted(printed) == ['"5"', "0x35", "5"]
    values = {key: inside.out("get", index, key, "--typed") for key in printed}
    assert values == {'"5"': "text", "0x35": "bytes", "5": "number"}
    assert inside.out("get", index, "0x35", "--hex") == "bytes"
    assert inside.out("get", index, "5", '"5"', "--typed").splitlines()[1:] == [
        "5    number",
        '"5"  text',
    ]
    assert inside.run("put", index, "--int", "--", "-7", "v").returncode == 0
    assert inside.out("get", index, "--int", "--", "-7") == "v"


def test_ttl_and_touch_report_the_time_to_live(inside: InProcess, index: str) -> None:
    inside.out("put", index, "k", "v", "--ttl", "1000")
    assert 900 < float(inside.out("ttl", index, "k")) <= 1000
    inside.out("touch", index, "k", "--ttl", "5000")
    assert 4900 < json.loads(inside.out("-o", "json", "ttl", index, "k"))["ttl"] <= 5000
    inside.out("touch", index, "k", "--forever")
    assert inside.out("ttl", index, "k") == "never\n"
    code, text = inside.refusal("put", index, "k", "v", "--ttl", "-1")
    assert (code, "ttl is -1.0 s" in text) == (2, True)


def test_indexes_are_listed_with_records_and_size(inside: InProcess, index: str) -> None:
    inside.out("put", index, "a", "1")
    inside.out("put", index, "b", "2")
    size = 2 * (2 + 1 + len(index) + 1 + 37 + 2)
    row = {"name": index, "records": 2, "bytes": size, "exact": True, "ttl": None, "max_ttl": None}
    lines = [json.loads(line) for line in inside.out("-o", "json", "indexes").splitlines()]
    assert row in lines
    assert any(
        line.split() == [index, "2", f"{size}", "B", "-", "-"]
        for line in inside.out("indexes").splitlines()
    )


def test_index_set_gives_later_puts_an_expiry(inside: InProcess, index: str) -> None:
    assert (
        inside.out("index", "show", index).split()
        == ["index", "ttl", "max", "ttl", index] + ["-"] * 2
    )
    shown = inside.out("index", "set", index, "ttl=1h", "max-ttl=1.5h")
    assert shown.splitlines()[1].split() == [index, "1h", "1h", "30m"]
    inside.out("put", index, "a", "1")
    inside.out("put", index, "b", "1", "--ttl", "7d")
    assert 3500 < float(inside.out("ttl", index, "a")) <= 3600
    assert 5300 < float(inside.out("ttl", index, "b")) <= 5400
    inside.out("touch", index, "a", "--forever")
    assert 5300 < float(inside.out("ttl", index, "a")) <= 5400
    row = {"name": index, "ttl": 3600.0, "max_ttl": 5400.0}
    assert json.loads(inside.out("-o", "json", "index", "show", index)) == row
    listed = [json.loads(line) for line in inside.out("index", "show", "-o", "json").splitlines()]
    assert row in listed
    found = [json.loads(line) for line in inside.out("-o", "json", "indexes").splitlines()]
    assert [each for each in found if row.items() <= each.items()]
    shown = inside.out("index", "set", index, "ttl=none", "max_ttl=None", "-o", "json")
    assert json.loads(shown) == {"name": index, "ttl": None, "max_ttl": None}
    assert index not in inside.out("index", "show")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ttl"], "'ttl' is not a setting; allowed are ttl=TIME and max_ttl=TIME, where TIME is"),
        (["tll=1h"], "'tll=1h' is not a setting; allowed are ttl=TIME and max_ttl=TIME"),
        (["ttl=1h", "ttl=2h"], "ttl is given twice"),
        (["ttl=soon"], "'soon' is not a time; allowed are forms like 90, 1.5s, 15m, 12h, 7d"),
        (["ttl=0"], "ttl is 0.0 s; allowed is more than 0 s and less than 100 years"),
        (["max_ttl=-5"], "max_ttl is -5.0 s; allowed is more than 0 s and less than 100 years"),
        (["max_ttl=36501d"], "max_ttl is 3153686400000 ms; allowed are 1 ms to 36,500 days"),
    ],
)
def test_index_set_refuses_what_is_no_setting(
    inside: InProcess, index: str, words: list[str], text: str
) -> None:
    code, said = inside.refusal("index", "set", index, *words)
    assert (code, said.startswith(text)) == (2, True), said


def test_index_set_refuses_names_of_registers(inside: InProcess) -> None:
    code, said = inside.refusal("index", "set", "@locks", "ttl=1h")
    assert (code, said) == (
        2,
        "index '@locks' is reserved for registers; it cannot have settings",
    )


def test_drop_removes_an_index_or_a_prefix_and_shows_how(inside: InProcess, index: str) -> None:
    lines = "".join(json.dumps({"key": f"k{n:03}", "value": n}) + "\n" for n in range(300))
    inside.out("import", index, "-", stdin=lines.encode())
    code, text = inside.refusal("drop", index)
    assert (code, text) == (
        2,
        "drop asks for confirmation on a terminal; in a script, use --yes",
    )
    assert inside.out("drop", index, "k1", "--yes") == ""
    assert inside.out("count", index) == "200\n"
    shown = inside.out("-o", "json", "drop", index, "-y", "--watch").splitlines()
    assert json.loads(shown[0]) == {"index": index, "prefix": "", "dropped": True}
    ends = {row["peer"]: row for row in map(json.loads, shown[1:])}
    assert [row["partitions_left"] for row in ends.values()] == [0, 0, 0]
    assert all(row["removed_records"] >= 200 for row in ends.values())
    assert inside.out("scan", index) == ""
    inside.out("put", index, "k001", "again")
    assert inside.out("count", index) == "1\n"
    status = json.loads(inside.out("-o", "json", "status"))
    assert {"index": index, "prefix": ""}.items() <= status["drops"][-1].items()


def test_scan_and_count_use_prefix(inside: InProcess, index: str) -> None:
    for key in ("a1", "a2", "b\t1"):
        inside.out("put", index, key, f"v-{key}")
    assert sorted(inside.out("scan", index).splitlines()) == [
        '"b\\t1"\tv-b\\t1',
        "a1\tv-a1",
        "a2\tv-a2",
    ]
    assert sorted(inside.out("scan", index, "a", "--keys").splitlines()) == ["a1", "a2"]
    assert len(inside.out("scan", index, "-n", "2").splitlines()) == 2
    assert inside.out("scan", index, "-n", "0") == ""
    assert inside.out("count", index) == "3\n"
    assert inside.out("-o", "json", "count", index, "a") == (
        f'{{"index":"{index}","prefix":"a","count":2}}\n'
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["put", "x" * 65, "k", "v"], "65 bytes; allowed are 1 to 64 bytes"),
        (["put", "tab\t", "k", "v"], "control characters"),
        (["put", "i", "", "v"], "key is empty"),
        (["put", "i", "k" * 401, "v"], "401 bytes encoded; allowed are 1 to 400 bytes"),
        (["get", "i", "9" * 30, "--int"], "key"),
        (["put", "i", "k\udcff", "v"], "not valid Unicode"),
    ],
)
def test_limit_error_names_the_limit(inside: InProcess, words: list[str], text: str) -> None:
    code, line = inside.refusal(*words)
    assert code == 2
    assert text in line


def test_put_refuses_a_value_above_the_maximum(inside: InProcess, index: str) -> None:
    code, line = inside.refusal("put", index, "k", stdin=bytes(8 * 1024 * 1024 + 1))
    assert code == 2
    assert "8388608" in line


def test_locale_does_not_change_keys(dev: DevCluster, index: str) -> None:
    ascii_alone = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = dev.run("put", index, "schlüssel", "größe", environ=ascii_alone)
    assert (done.returncode, done.stderr) == (0, b"")
    assert dev.out("scan", index) == "schlüssel\tgröße\n"
    script = f"get {index} schlüssel\n".encode()
    assert dev.run("shell", stdin=script, environ=ascii_alone).stdout.decode() == "größe\n"


def test_get_adds_a_newline_on_a_terminal(dev: DevCluster, index: str) -> None:
    dev.out("put", index, "k", "v")
    ours, theirs = pty.openpty()
    process = dev.start(["get", index, "k"], stdout=theirs)
    os.close(theirs)
    assert process.wait(60) == 0
    assert os.read(ours, 100) == b"v\r\n"
    os.close(ours)


def test_closed_pipe_prints_no_error(dev: DevCluster, index: str) -> None:
    lines = b"".join(b'{"key": %d, "value": "%s"}\n' % (n, b"v" * 1000) for n in range(500))
    dev.out("import", index, "-", stdin=lines)
    process = dev.start(["scan", index], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141


def test_full_disk_is_one_line_on_stderr(dev: DevCluster, index: str) -> None:
    dev.out("put", index, "k", "v")
    with open("/dev/full", "wb") as full:
        process = dev.start(["get", index, "k"], stdout=full.fileno(), stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == b"dstash: reading stdin or writing stdout: No space left on device\n"


def test_exit_code_is_right_when_stderr_cannot_be_written(dev: DevCluster, index: str) -> None:
    with open("/dev/full", "wb") as full:
        process = dev.start(["get", index, "k"], stderr=full.fileno())
        assert process.wait(60) == 3
    process = dev.start(["get", index, "k"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()  # before it has anything to say
    assert process.wait(60) == 3
