"""The files of import and export: devices, FIFOs, links, modes and compression."""

from __future__ import annotations

import gc
import gzip
import io
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dstash.cli.files import source, target
from dstash.errors import UsageError
from tests.harness.devcluster import DSTASH, clean_environment
from tests.harness.waiting import PATIENCE, wait_until


def write(file: Path | str, data: bytes = b"new") -> None:
    with target(str(file)) as out:
        out.write(data)


def read(file: Path) -> bytes:
    with source(str(file)) as origin:
        return b"".join(iter(lambda: origin.stream.read(1 << 16), b""))


def test_target_replaces_a_regular_file_and_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")
    file.chmod(0o604)
    earlier = file.stat().st_ino
    write(file)
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o604
    assert file.stat().st_ino != earlier  # replaced: a reader of the old file is not disturbed


def test_target_follows_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, link, dangling = tmp_path / "there/x", tmp_path / "link", tmp_path / "dangling"
    file.write_bytes(b"old")
    link.symlink_to("there/x")
    dangling.symlink_to("there/y")
    write(link)
    write(dangling)
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert [file.read_bytes(), (tmp_path / "there/y").read_bytes()] == [b"new", b"new"]
    assert sorted(os.listdir(tmp_path / "there")) == ["x", "y"]


def test_target_writes_to_a_fifo(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE) as reader:
        write(fifo)
        assert reader.communicate(timeout=PATIENCE)[0] == b"new"
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_target_writes_to_a_device() -> None:
    write("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write("/dev/full")


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_target_appends_to_a_descriptor(tmp_path: Path, name: str) -> None:
    with (tmp_path / "x").open("ab") as opened:
        opened.write(b"before ")
        opened.flush()
        write(name.format(opened.fileno()))
        opened.write(b" after")
    assert (tmp_path / "x").read_bytes() == b"before new after"


def test_target_is_stdout_by_name_where_the_name_is_no_link(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    write("/dev/stdout")
    assert capfd.readouterr().out == "new"


def test_target_writes_to_a_process_substitution(tmp_path: Path) -> None:
    script = "from dstash.cli.files import target\nimport sys\n"
    script += "with target(sys.argv[1]) as out: out.write(b'new')\n"
    line = f'"{sys.executable}" -c "$0" >(gzip >x.gz); wait $!'
    subprocess.run(["bash", "-c", line, script], cwd=tmp_path, check=True, timeout=PATIENCE)
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == b"new"


def test_target_leaves_the_old_file_after_an_exception(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")

    def interrupted() -> None:
        with target(str(file)) as out:
            out.write(b"half")
            assert len(os.listdir(tmp_path)) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.read_bytes(), os.listdir(tmp_path)] == [b"old", ["x"]]


@pytest.mark.parametrize(
    ("name", "words"),
    [(".", "Is a directory"), ("no/x", "No such file"), ("/dev/fd/999", "Bad file descriptor")],
)
def test_target_that_cannot_be_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        write(name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("signal_number", "file"),
    [
        (signal.SIGTERM, "x.jsonl"),
        (signal.SIGHUP, "x.jsonl.zst"),
        (signal.SIGINT, "x.csv.gz"),
    ],
)
def test_signal_leaves_no_partial_file(
    tmp_path: Path, signal_number: signal.Signals, file: str
) -> None:
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        peers = f"127.0.0.1:{silent.getsockname()[1]}"
        words = ["--peers", peers, "--timeout", "100", "export", "i", file]
        with subprocess.Popen(
            [DSTASH, *words], cwd=tmp_path, stderr=subprocess.PIPE, env=clean_environment()
        ) as process:
            try:
                wait_until(lambda: os.listdir(tmp_path), PATIENCE, "a partial file is there")
                process.send_signal(signal_number)
                _, said = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
    assert (process.returncode, said) == (128 + signal_number, b"dstash: interrupted\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".GZ"])
def test_compressed_file_is_read_back(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    data = b"a line\n" * 50_000
    write(file, data)
    assert 0 < file.stat().st_size < 10_000
    with source(str(file)) as origin:
        assert origin.size == file.stat().st_size
        first = origin.stream.readline(1 << 20)
        rest = b"".join(iter(lambda: origin.stream.read(1 << 16), b""))
        assert first + rest == data
        assert origin.position() == origin.size


def test_gzip_file_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a\n") + gzip.compress(b"b\n"))
    with source(str(tmp_path / "x.gz")) as origin:
        assert origin.stream.read(100) + origin.stream.read(100) == b"a\nb\n"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_data_is_not_ended_after_an_exception(tmp_path: Path, suffix: str) -> None:
    fifo, copy = tmp_path / f"fifo{suffix}", tmp_path / f"copy{suffix}"
    os.mkfifo(fifo)

    def interrupted() -> None:
        with target(str(fifo)) as out:
            out.write(os.urandom(300_000))
            raise KeyboardInterrupt

    with copy.open("wb") as opened, subprocess.Popen(["cat", str(fifo)], stdout=opened):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        gc.collect()
    with pytest.raises(UsageError, match=r"data ends early|not zst data"):
        read(copy)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_and_foreign_compressed_files_are_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    write(file, os.urandom(100_000))
    file.write_bytes(file.read_bytes()[:50_000])
    with pytest.raises(UsageError, match=r"data ends early|not zst data"):
        read(file)
    file.write_bytes(b"plain text\n")
    with pytest.raises(UsageError, match=f"not {suffix.removeprefix('.')} data"):
        read(file)


def test_zst_without_a_library_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression", "compression.zstd", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"Python 3.14, or the package pyarrow: pip install"):
        write(tmp_path / "x.zst")
    assert os.listdir(tmp_path) == []


def test_source_counts_the_bytes_of_a_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["sh", "-c", f'printf "a\\nb\\n" >"{fifo}"']), source(str(fifo)) as pipe:
        assert pipe.stream.readline(100) == b"a\n"
        assert (pipe.size, pipe.position()) == (None, 2)


def test_source_names_the_file_of_a_read_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory"), source(str(tmp_path)):
        pass
    with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'"):
        read(Path("/proc/self/mem"))


def test_source_of_a_dash_is_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    given = io.TextIOWrapper(io.BytesIO(b"a\nb\n"))
    monkeypatch.setattr(sys, "stdin", given)
    with source("-") as origin:
        assert [origin.stream.readline(100), origin.position(), origin.size] == [b"a\n", 2, None]
