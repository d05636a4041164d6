"""A peer that cannot start prints the reason in one line on stderr, with the right exit code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.devcluster import clean_environment
from tests.harness.peers import DSTASH_PEER, Peers
from tests.harness.ports import free_port
from tests.harness.process import expirable

pytestmark = pytest.mark.usefixtures("no_leaks")


def refusal(
    data: Path, membership: Path, *options: str, port: int | None = None, before: str = ""
) -> tuple[int, str]:
    """Start a peer that must fail; return its exit code and its error line."""
    command = [DSTASH_PEER, str(data), "127.0.0.1", str(port or free_port())]
    command += ["--local-dir", str(membership), "--log-level", "error", *options]
    if before:
        command = ["sh", "-c", f'{before} && exec "$@"', "sh", *command]
    done = subprocess.run(
        expirable(command), capture_output=True, text=True, timeout=60, env=clean_environment()
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("dstash-peer: ")
    return done.returncode, done.stderr.strip()


def test_second_process_with_same_id_is_refused(trio: Peers, tmp_path: Path) -> None:
    code, said = refusal(tmp_path / "other", trio.folder / "membership", "--id", "a")
    assert code == 1
    assert "peer id 'a' is in use by a live process" in said
    assert trio["a"].is_ready()


def test_second_process_on_same_data_is_refused(trio: Peers) -> None:
    code, said = refusal(trio["a"].data, trio.folder / "membership")
    assert code == 1
    assert trio["a"].process is not None
    assert f"{trio['a'].data} is in use by process" in said
    assert trio["a"].is_ready()


def test_port_in_use_is_refused(trio: Peers, tmp_path: Path) -> None:
    code, said = refusal(tmp_path / "data", tmp_path / "membership", port=trio["a"].port)
    assert code == 2
    assert f"cannot listen on tcp://127.0.0.1:{trio['a'].port}: Address already in use" in said
    code, said = refusal(
        tmp_path / "data", tmp_path / "membership", "--http-port", str(trio["a"].http_port)
    )
    assert code == 2
    assert "cannot serve HTTP on" in said


def test_data_of_another_cluster_or_peer_is_refused(tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a")
        assert peers["a"].stop() == 0
        data = peers["a"].data
    code, said = refusal(data, tmp_path / "membership", "--id", "b")
    assert code == 1
    assert "belongs to peer 'a', not to 'b'" in said
    with Peers.local(tmp_path / "other") as others:
        (tmp_path / "other").mkdir()
        others.form("x")
        code, said = refusal(data, tmp_path / "other" / "membership")
    assert code == 1
    assert "belongs to peer 'a' of cluster" in said
    assert "was founded without this store" in said


def test_data_of_cluster_with_another_name_is_refused_unchanged(
    tmp_path: Path,
) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a")
        assert peers["a"].stop() == 0
        data = peers["a"].data
    before = (data / "data.mdb").read_bytes()
    code, said = refusal(data, tmp_path / "elsewhere", "--cluster", "two")
    assert code == 1
    assert f"{data} belongs to cluster 'dstash', and the configured cluster is 'two'" in said
    assert (data / "data.mdb").read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "membership" / "two").exists()


def test_corrupt_data_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "data.mdb").write_bytes(b"garbage" * 5000)
    code, said = refusal(data, tmp_path / "membership")
    assert code == 1
    assert "data" in said


def test_file_as_data_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    code, said = refusal(tmp_path / "data", tmp_path / "membership")
    assert code == 1
    assert "cannot create data directory" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes the right to mount")
def test_read_only_disk_is_refused(tmp_path: Path) -> None:
    for folder in ("data", "membership"):
        (tmp_path / folder).mkdir()
    data, membership = tmp_path / "data", tmp_path / "membership"
    alone = "exec unshare -m sh -c 'mount --bind -o ro {0} {0} && mount -o remount,bind,ro {0}"
    # The shell that mounts executes the rest of the command.
    before = alone.format(data) + ' && exec "$@"\' sh "$@" && true'
    code, said = refusal(data, membership, before=before)
    assert code == 1
    assert "set data_dir to a directory that can be" in said
    before = alone.format(membership) + ' && exec "$@"\' sh "$@" && true'
    code, said = refusal(data, membership, before=before)
    assert code == 1
    assert f"cannot use {membership}: Read-only file system; set local_dir to " in said


def test_full_disk_is_refused(tmp_path: Path) -> None:
    code, said = refusal(tmp_path / "data", tmp_path / "membership", before="ulimit -f 0")
    assert code == 1
    assert f"cannot use {tmp_path / 'data'}: " in said


def test_file_as_membership_directory_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "membership").write_text("not a directory")
    code, said = refusal(tmp_path / "data", tmp_path / "membership")
    assert code == 1
    assert str(tmp_path / "membership") in said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--durability", "maybe"], "sync | interval | none"),
        (["--weight", "0"], "weight"),
        (["--replicas", "0"], "replicas"),
        (["--zone", ""], "zone"),
    ],
)
def test_invalid_setting_is_refused(tmp_path: Path, options: list[str], text: str) -> None:
    code, said = refusal(tmp_path / "data", tmp_path / "membership", *options)
    assert code == 2
    assert text in said
