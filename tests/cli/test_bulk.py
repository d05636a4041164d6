"""``dstash import`` and ``dstash export`` against real peers."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from dstash import Client
from tests.harness import devcluster
from tests.harness.devcluster import DevCluster, InProcess


def jsonl(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.fixture(autouse=True)
def every_replica_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes at level all, because scans and counts ask one replica of each partition."""
    monkeypatch.setitem(devcluster.settings, "DSTASH_WRITE", "all")


def test_export_then_import_restores_the_records(dev: DevCluster, index: str) -> None:
    records = [
        {"key": "text", "value": "ä\n"},
        {"key": 5, "value": {"$bytes": "AP8="}},
        {"key": {"$bytes": "AA=="}, "value": {"$map": [[1, {"$tuple": []}]]}},
        {"key": "none", "value": None},
    ]
    dev.out("import", index, "-", stdin=jsonl(*records))
    for name in ("x.jsonl", "x.msgpack"):
        dev.out("export", index, name)
        dev.out("import", f"{index}2", name)
        lines = dev.out("export", f"{index}2", "-").splitlines()
        by_line = sorted(map(str, map(json.loads, lines)))
        assert by_line == sorted(map(str, records))
        dev.out("del", f"{index}2", "text")
    assert dev.out("count", index) == "4\n"


def test_import_compresses_values_and_export_reads_them(
    dev: DevCluster, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = jsonl(*({"key": key, "value": f"{key} and the same " * 50} for key in range(9)))
    dev.out("import", f"{index}-plain", "-", stdin=records)
    monkeypatch.setitem(devcluster.settings, "DSTASH_COMPRESSION", "zstd")
    dev.out("import", index, "-", stdin=records)
    dev.out("export", index, "x.msgpack")
    monkeypatch.delitem(devcluster.settings, "DSTASH_COMPRESSION")
    dev.out("import", f"{index}3", "x.msgpack")
    for name in (index, f"{index}-plain", f"{index}3"):
        lines = dev.out("export", name, "-").splitlines()
        exported = sorted(map(json.loads, lines), key=lambda record: record["key"])
        assert jsonl(*exported) == records
    lines = dev.out("-o", "json", "indexes").splitlines()
    sizes = {found["name"]: found["bytes"] for found in map(json.loads, lines)}
    assert 5 * sizes[index] < min(sizes[f"{index}-plain"], sizes[f"{index}3"])


def test_import_and_export_csv(inside: InProcess, index: str) -> None:
    (inside.folder / "x.csv").write_text('id,name,note\n1,one,"a, b"\n2,two,\n')
    inside.out("import", index, "x.csv", "--int")
    assert inside.out("get", index, "1", "--int") == '{"name":"one","note":"a, b"}'
    inside.out("export", index, "y.csv", "--key", "id")
    lines = (inside.folder / "y.csv").read_text().splitlines()
    assert lines[0] == "id,name,note"
    assert sorted(lines[1:]) == ['1,one,"a, b"', "2,two,"]
    inside.out("import", index, "x.csv", "--key", "name", "--value", "id")
    assert inside.out("get", index, "two") == "2"


@pytest.mark.parametrize("name", ["x.tsv", "x.csv.gz", "x.jsonl.zst"])
def test_format_and_compression_follow_the_name(inside: InProcess, index: str, name: str) -> None:
    index = index[:40]
    inside.out("put", index, "k", '{"key": "a\\rb", "x": ";"}', "--json")
    inside.out("export", index, name)
    inside.out("import", f"{index}2", name)
    assert inside.out("get", f"{index}2", "k") == '{"key":"a\\rb","x":";"}'
    file = inside.folder / name
    file.write_bytes(file.read_bytes()[:-4])
    done = inside.run("import", f"{index}2", name)
    if name != "x.tsv":
        assert done.returncode == 1
        assert b"; stored " in done.stderr


def test_import_and_export_with_a_delimiter(inside: InProcess, index: str) -> None:
    (inside.folder / "semi.csv").write_text("\ufeffid;price, EUR\r\n1;1,50\r\n", newline="")
    inside.out("import", index, "semi.csv")
    assert inside.out("get", index, "1") == '{"price, EUR":"1,50"}'
    inside.out("export", index, "colon.csv", "--delimiter", ":")
    assert (inside.folder / "colon.csv").read_text() == "key:price, EUR\n1:1,50\n"
    code, text = inside.refusal("import", index, "colon.csv", "--delimiter", ";")
    assert (code, "only one column" in text) == (1, True)


def test_import_csv_stops_at_or_skips_bad_rows_by_number(inside: InProcess, index: str) -> None:
    rows = 'id,name\n1,one\n2\n3,"thr"ee\n,four\n"5\n",five\n6,six\n'
    (inside.folder / "bad.csv").write_text(rows)
    code, text = inside.refusal("import", index, "bad.csv")
    assert (code, text) == (
        1,
        "bad.csv, line 3: 1 cells, but the header has 2; stored 1 record",
    )
    done = inside.run("import", index, "bad.csv", "--on-error", "skip")
    assert done.returncode == 9
    assert done.stderr.decode().splitlines()[1] == (
        "dstash: bad.csv: skipped 3 (lines 3-5; line 3: 1 cells, but the header has 2)"
    )
    keys = map(json.loads, inside.out("-o", "json", "scan", index, "--keys").splitlines())
    assert sorted(record["key"] for record in keys) == ["1", "5\n", "6"]


def test_import_and_export_parquet(inside: InProcess, index: str) -> None:
    lines = jsonl(*({"key": n, "value": {"n": n, "any": [n]}} for n in range(50)))
    inside.out(
        "import",
        index,
        "-",
        stdin=lines,
    )
    inside.out("export", index, "x.parquet", "--with-ttl")
    inside.out("import", f"{index}2", "x.parquet", "--ttl", "500")
    exported = inside.out("export", f"{index}2", "-").splitlines()
    assert sorted(exported) == sorted(inside.out("export", index, "-").splitlines())
    assert inside.out("get", f"{index}2", "7", "--int") == '{"n":7,"any":[7]}'
    assert 400 < float(inside.out("ttl", f"{index}2", "7", "--int")) <= 500
    code, text = inside.refusal("import", index, "-", "--format", "parquet", stdin=b"PAR1")
    assert code == 1
    assert text == "stdin, parquet cannot be read from a pipe; name a file; stored 0 records"


def test_export_with_ttl_keeps_the_time_to_live(inside: InProcess, index: str) -> None:
    lines = jsonl({"key": "a", "value": 1, "ttl": 500}, {"key": "b", "value": 2})
    inside.out("import", index, "-", "--ttl", "1.5h", stdin=lines)
    assert 400 < float(inside.out("ttl", index, "a")) <= 500
    assert 5300 < float(inside.out("ttl", index, "b")) <= 5400
    exported = map(json.loads, inside.out("export", index, "-", "--with-ttl").splitlines())
    assert {line["key"]: line["ttl"] > 400 for line in exported} == {"a": True, "b": True}


def test_import_stops_at_a_bad_line_and_reports_progress(inside: InProcess, index: str) -> None:
    lines = (
        jsonl({"key": "a", "value": 1}) + b'\n{"key": broken}\n' + jsonl({"key": "b", "value": 1})
    )
    code, text = inside.refusal("import", index, "-", stdin=lines)
    assert code == 1
    assert text == ("stdin, line 3: not JSON: Expecting value (column 9); stored 1 record")
    assert inside.out("-o", "json", "scan", index, "--keys") == '{"key":"a"}\n'


def test_import_skips_counts_and_lists_bad_lines(inside: InProcess, index: str) -> None:
    lines = b"x\n" + jsonl({"key": "a", "value": 1}) + b"y\n" + jsonl({"key": "b", "value": 1})
    words = ("-o", "json", "import", index, "-", "--on-error", "skip")
    done = inside.run(*words, stdin=lines)
    assert done.returncode == 9
    counts = json.loads(done.stdout)
    assert (counts["stored"], counts["skipped"], counts["failed"]) == (2, 2, 0)
    first, second = done.stderr.decode().splitlines()
    assert first.startswith("dstash: imported 2 records in")
    assert second == (
        "dstash: stdin: skipped 2 (lines 1, 3; line 1: not JSON: Expecting value (column 1))"
    )
    assert inside.out("count", index) == "2\n"


def test_import_stores_the_last_record_of_a_key(inside: InProcess, index: str) -> None:
    lines = jsonl(*({"key": "k", "value": n} for n in range(50)))
    inside.out("import", index, "-", stdin=lines)
    assert inside.out("get", index, "k") == "49"


def test_failed_export_leaves_no_file(inside: InProcess, index: str) -> None:
    lines = jsonl({"key": "a", "value": {"x": 1}}, {"key": "b", "value": {"y": 1}})
    inside.out("import", index, "-", stdin=lines)
    before = sorted(os.listdir(inside.folder))
    code, text = inside.refusal("export", index, "partial.csv")
    assert code == 2
    assert "its columns differ from those of the first record" in text
    assert sorted(os.listdir(inside.folder)) == before


def test_failed_export_names_its_key_once(inside: InProcess, index: str) -> None:
    inside.out("import", index, "-", stdin=jsonl({"key": {"$bytes": "AA=="}, "value": 1}))
    assert inside.refusal("export", index, "bytes.csv") == (
        2,
        "key b'\\x00': CSV cannot hold keys that are bytes; use jsonl",
    )


def test_export_creates_files_with_the_usual_mode(inside: InProcess, index: str) -> None:
    inside.out("export", index, "mode.jsonl")
    umask = os.umask(0)
    os.umask(umask)
    assert (inside.folder / "mode.jsonl").stat().st_mode & 0o777 == 0o666 & ~umask


def test_export_to_stdout_by_name_keeps_the_redirection(dev: DevCluster, index: str) -> None:
    dev.out("put", index, "k", "v")
    with (dev.folder / "log").open("ab") as log:
        log.write(b"before\n")
        log.flush()
        process = dev.start(["export", index, "/dev/stdout", "--format", "jsonl"], stdout=log)
        assert process.wait(60) == 0
    assert (dev.folder / "log").read_text() == 'before\n{"key":"k","value":"v"}\n'


def test_import_without_peer_reports_that_no_record_was_stored(
    inside: InProcess, index: str
) -> None:
    words = ("--peers", "127.0.0.1:1", "--timeout", "0.3", "import", index, "-")
    done = inside.run(*words, stdin=jsonl({"key": "a", "value": 1}))
    assert done.returncode == 5
    assert b"stored 0 records" in done.stderr
    assert b"no peer answered" in done.stderr


def test_import_reports_stored_records_on_ctrl_c(dev: DevCluster, index: str) -> None:
    process = dev.start(
        ["import", index, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    # More than one batch, then a pause in the input, as when a user types: the first is stored.
    for start in range(0, 60_000, 1000):
        numbers = range(start, start + 1000)
        process.stdin.write(jsonl(*({"key": n, "value": n} for n in numbers)))
    process.stdin.flush()
    while int(dev.out("count", index)) < 50_000:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode() == "dstash: interrupted; stored 50,000 records\n"
    assert dev.out("count", index) == "50000\n"


@pytest.mark.parametrize("words", [["import", "{index}", "many.jsonl"], ["export", "{index}", "-"]])
def test_import_shows_a_bar_on_a_terminal(dev: DevCluster, index: str, words: list[str]) -> None:
    index = index[:30]
    lines = jsonl(*({"key": n, "value": "v" * 50} for n in range(3000)))
    Path(dev.folder / "many.jsonl").write_bytes(lines)
    dev.out("import", index, "many.jsonl")
    ours, theirs = pty.openpty()
    command = [word.format(index=index) for word in words]
    process = dev.start(command, stdout=subprocess.DEVNULL, stderr=theirs, TERM="xterm")
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 10_000):
            shown += chunk
    except OSError:  # the terminal reports that the other side has closed it
        pass
    os.close(ours)
    assert process.wait(60) == 0
    assert f"{words[0]} {index}".encode() in shown
    assert b"3,000 records in" in shown


def test_value_that_cannot_be_decoded_is_named_and_left_out(inside: InProcess, index: str) -> None:
    [address, *_] = [
        peer["address"] for peer in json.loads(inside.out("-o", "json", "dev", "status"))
    ]
    with Client(address, write="all", timeout=20) as client:
        client.types.register(
            range, code=9, encode=lambda value: b"%d" % value.stop, decode=lambda data: range(1)
        )
        client.batch_put(index, {"good": 1, "strange": range(3), "also": "text"})
    reason = "stored value has type code 9, which is not registered on this client"
    done = inside.run("scan", index)
    assert sorted(done.stdout.decode().splitlines()) == ["also\ttext", "good\t1"]
    assert done.stderr.decode() == f"dstash: left out 1 value: key 'strange': {reason}\n"
    assert done.returncode == 9
    assert inside.run("scan", index, "--keys").returncode == 0
    done = inside.run("-o", "json", "get", index, "good", "strange")
    assert done.stdout.decode() == '{"key":"good","value":1}\n'
    assert done.stderr.decode().startswith("dstash: the value of key 'strange' cannot be decoded: ")
    assert done.returncode == 1
    assert "--on-error" not in done.stderr.decode(), "an option of another command"
    code, text = inside.refusal("export", index, "strange.jsonl")
    assert text.endswith("; --on-error skip leaves such values out")
    assert (code, text.count("key 'strange'"), text.count("--on-error skip")) == (1, 1, 1)
    assert not (inside.folder / "strange.jsonl").exists()
    done = inside.run("export", index, "strange.jsonl", "--on-error", "skip")
    assert done.returncode == 9
    assert done.stderr.decode().splitlines()[1:] == [
        f"dstash: left out 1 value: key 'strange': {reason}"
    ]
    written = map(json.loads, (inside.folder / "strange.jsonl").read_text().splitlines())
    assert {record["key"]: record["value"] for record in written} == {"good": 1, "also": "text"}
