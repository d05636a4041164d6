"""Backups of real clusters: under load, interrupted, corrupted, restored into another cluster."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import signal
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dstash.backup.folder import Folder
from dstash.backup.manifest import PIECES
from tests.backup.conftest import Cluster
from tests.harness.load import INDEX as LOAD
from tests.harness.load import Load
from tests.harness.peers import Peers
from tests.harness.small_disks import SmallDisk
from tests.harness.waiting import wait_until

VALUES: list[Any] = [
    "text", "", b"\x00\xff", 5, -(1 << 70), 1.5, True, None, [1, [2]], {"a": {1: 2}}, (1, 2),
    {1, 2}, frozenset({3}), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.date(2024, 1, 1),
    dt.timedelta(1, 2, 3), Decimal("1.10"), uuid.UUID(int=5), 1j, "v" * 20_000,
]  # fmt: skip
KEYS: list[Any] = [f"key{number}" for number in range(1500)] + [b"\x00", b"\xff" * 300, 0, -7]


def content(cluster: Cluster, *indexes: str) -> dict[tuple[str, Any], Any]:
    """Return the entries of some indexes of a cluster."""
    return {(index, key): value for index in indexes for key, value in cluster.client.items(index)}


def fill(cluster: Cluster, index: str) -> None:
    """Put values of all types, delete some, and set a time to live on others."""
    client = cluster.client
    client.batch_put(index, [(key, VALUES[n % len(VALUES)]) for n, key in enumerate(KEYS)])
    client.batch_delete(index, KEYS[100:200])
    client.batch_put(index, [(key, "brief") for key in KEYS[300:320]], ttl=3600)
    client.put(index, "gone", 1, ttl=0.001)


def expect_equal(source: Cluster, target: Cluster, index: str) -> None:
    """Compare two clusters key by key, including deleted keys and times to live."""
    assert content(target, index) == content(source, index)
    assert not target.client.batch_lookup(index, KEYS[100:200])
    for key in KEYS[300:320]:
        theirs, ours = source.client.ttl(index, key), target.client.ttl(index, key)
        assert ours is not None
        assert theirs == pytest.approx(ours, abs=5)
    assert target.client.ttl(index, KEYS[0]) is None


def test_backup_under_load_restores_into_another_cluster(source: Cluster, target: Cluster) -> None:
    fill(source, "full")
    with Load(source.client, threads=2, pause=0.01) as load:
        wait_until(lambda: load.operations > 100, 30, "the load is on")
        during = source.backup("save", "during")
    assert not load.errors
    assert target.backup("restore", "during")["stored"] > 1400
    expect_equal(source, target, "full")
    # Later changes are newer in that cluster too.
    source.client.put("full", KEYS[0], "newer")
    source.client.delete("full", KEYS[1])
    source.backup("save", "after")
    fates = target.backup("restore", "after")
    assert fates["unchanged"] > 1400
    assert content(target, "full", LOAD) == content(source, "full", LOAD)
    again = target.backup("restore", "during", "--index", "full")
    assert (again["stored"], again["newer_kept"], again["deleted_kept"]) == (0, 1, 1)
    assert content(target, "full") == content(source, "full")
    assert during["cluster_id"] == source.client.topology().cluster_id


def test_restore_keeps_newer_values_unless_as_of_backup(source: Cluster) -> None:
    client = source.client
    client.batch_put("old", {"same": 1, "changed": 1, "deleted": 1})
    client.batch_put("other", {"changed": 1})
    source.backup("save", "old")
    client.batch_put("old", {"changed": 2, "new": 2})
    client.put("other", "changed", 2)
    client.delete("old", "deleted")
    now = {"same": 1, "changed": 2, "new": 2}
    fates = source.backup("restore", "old", "--index", "old")
    expected = {"stored": 0, "unchanged": 1, "newer_kept": 1, "deleted_kept": 1}
    assert fates.items() >= expected.items()
    assert dict(client.items("old")) == now
    fates = source.backup("restore", "old", "--index", "old", "--as-of-backup")
    assert fates.items() >= {"stored": 2, "unchanged": 1}.items()
    assert dict(client.items("old")) == now | {"changed": 1, "deleted": 1}
    assert client.lookup("other", "changed") == 2  # another index


def test_restore_keeps_deletes_below_horizon_in_same_cluster(
    target: Cluster, folder: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "peer.toml"
    settings.write_text("compare_interval = 0.2\ngc_interval = 0.2\ngc_grace = 0.2\n")
    with Peers.local(tmp_path, "--config", str(settings)) as peers:
        peers.form("h", "i")
        cluster = Cluster(peers, folder)
        cluster.client.batch_put("deleted", {"deleted": 1, "same": 1})
        cluster.backup("save", "deleted")
        cluster.client.delete("deleted", "deleted")
        wait_until(lambda: records(cluster) == 2, 60, "the tombstone has left the disk")
        fates = cluster.backup("restore", "deleted")
        assert fates.items() >= {"deleted_kept": 1, "unchanged": 1, "stored": 0}.items()
        assert dict(cluster.client.items("deleted")) == {"same": 1}
    # The other cluster never had the key, and has its own horizons.
    assert target.backup("restore", "deleted")["stored"] == 2


def records(cluster: Cluster) -> int:
    """Return the number of records on the disks, including dead records."""
    return sum(member["records"] for member in cluster.client.status()["members"])


def test_save_refuses_folder_of_another_running_save(source: Cluster, folder: Path) -> None:
    with Folder(folder / "shared").taken():
        code, lines = source.refused("save", "shared")
    assert code == 1
    assert "is in use by another save" in lines[0]


def test_save_continues_after_interrupt(source: Cluster, folder: Path) -> None:
    fill(source, "interrupted")
    done = folder / "interrupted"

    def pieces() -> set[str]:
        return {path.name for path in done.glob("piece-*.dstash")} if done.exists() else set()

    process = source.start("save", "interrupted", "--parallel", "1")
    wait_until(lambda: len(pieces()) > 10, 60, "some pieces are saved")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    kept = len(pieces())
    assert process.returncode == 130
    assert said.decode() == (
        f"dstash: interrupted; {kept} of {PIECES} pieces are saved; "
        "run the same command again to continue\n"
    )
    assert not list(done.glob("*.partial"))
    code, lines = source.refused("verify", "interrupted")
    assert (code, lines) == (
        1,
        ["dstash: interrupted is incomplete; save into it again to continue"],
    )
    process = source.start("save", "interrupted", "--parallel", "1")
    wait_until(lambda: len(pieces()) > kept, 60, "another piece is saved")
    process.terminate()
    _, said = process.communicate(timeout=60)
    kept = len(pieces())
    assert (process.returncode, f"{kept} of {PIECES} pieces" in said.decode()) == (143, True)
    assert not list(done.glob("*.partial"))
    process = source.start("save", "interrupted", "--parallel", "1")
    wait_until(lambda: len(pieces()) > kept + 5, 60, "some more pieces are saved")
    process.kill()
    process.communicate()
    crashed = len(pieces())
    assert crashed < PIECES
    broken = done / "piece-002.dstash"
    broken.write_bytes(broken.read_bytes()[:-1])
    facts = source.backup("save", "interrupted")
    assert facts["pieces_kept"] == crashed - 1
    assert source.backup("verify", "interrupted")["ok"] is True
    code, lines = source.refused("save", "interrupted")
    assert code == 2
    assert "has a finished backup already" in lines[0]


def test_save_to_a_full_disk_names_file_and_reason(source: Cluster, tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk", 64 * 1024) as disk:
        full = disk.inside / "saved"
        code, said = source.refused("save", str(full))
        assert (code, len(said)) == (1, 1)
        assert said[0].startswith(f"dstash: {full}/piece-")
        assert said[0].endswith(
            " cannot be written: No space left on device; finished pieces are kept, so the same "
            "command can continue"
        )
        assert all(file.name.startswith("piece-") for file in full.iterdir())
        assert not [file for file in full.iterdir() if file.suffix == ".partial"]


def test_save_continues_when_a_peer_is_killed(source: Cluster, folder: Path) -> None:
    fill(source, "dying")
    process = source.start("save", "dying", "--parallel", "2")
    wait_until(lambda: (folder / "dying" / "piece-005.dstash").exists(), 60, "it has begun")
    source.peers["b"].kill()
    try:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
    finally:
        source.peers["b"].start()
        source.peers["b"].wait_ready()
    indexes = source.backup("verify", "dying")["indexes"]
    assert (indexes["dying"]["records"], indexes["dying"]["deleted"]) == (len(KEYS) - 99, 100)


@pytest.fixture(scope="module")
def sound(source: Cluster, folder: Path) -> Path:
    """A backup; tests add defects to copies of it."""
    source.client.batch_put("sound", dict.fromkeys(KEYS, "value"))
    source.backup("save", "sound")
    return folder / "sound"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # In a storage key: in the length of a block, the file would seem to be truncated.
    data[data.index(b"sound", len(data) // 2)] ^= 16
    path.write_bytes(data)


def swap(folder: Path) -> None:
    (folder / "piece-008.dstash").replace(folder / "piece-007.dstash")
    shutil.copy(folder / "piece-009.dstash", folder / "piece-008.dstash")


def edit(path: Path, before: str, after: str) -> None:
    path.write_text(path.read_text().replace(before, after, 1))


DEFECTS: dict[str, Any] = {
    "flipped bit": (
        lambda folder: flip(folder / "piece-007.dstash"),
        "piece-007.dstash: it is corrupt",
    ),
    "missing piece": (
        lambda folder: (folder / "piece-255.dstash").unlink(),
        "piece-255.dstash is missing",
    ),
    "swapped pieces": (swap, "piece-007.dstash: the file has the content of another piece"),
    "truncated": (
        lambda folder: (folder / "piece-007.dstash").write_bytes(b""),
        "piece-007.dstash: it is truncated",
    ),
    "manifest": (
        lambda folder: edit(folder / "manifest.json", '"epoch": ', '"epoch": 1'),
        "its checksum",
    ),
    "unknown format": (
        lambda folder: edit(folder / "manifest.json", '"format": 1', '"format": 2'),
        "manifest.json: its format is 2; this version reads 1",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "is incomplete"),
    "nothing": (shutil.rmtree, "is not a backup: it has no manifest.json"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_restore_of_defective_backup_names_defect_and_writes_nothing(
    source: Cluster, folder: Path, sound: Path, name: str
) -> None:
    harm, words = DEFECTS[name]
    broken = folder / f"broken {name}"
    shutil.copytree(sound, broken)
    harm(broken)
    source.client.put("sound", KEYS[0], "newer")
    for command in (["verify"], ["restore", "--as-of-backup"]):
        code, lines = source.refused(*command, broken.name)
        assert code == 1
        assert words in lines[0]
    assert source.client.lookup("sound", KEYS[0]) == "newer"


def test_save_refuses_piece_of_another_cluster(
    source: Cluster, target: Cluster, folder: Path, sound: Path
) -> None:
    mixed = folder / "mixed"
    shutil.copytree(sound, mixed)
    (mixed / "manifest.json").unlink()
    code, lines = target.refused("save", "mixed")
    assert code == 1
    assert "is from another cluster" in lines[0]


def test_verify_prints_one_line_per_problem(source: Cluster, folder: Path, sound: Path) -> None:
    broken = folder / "twice"
    shutil.copytree(sound, broken)
    flip(broken / "piece-001.dstash")
    flip(broken / "piece-200.dstash")
    code, lines = source.refused("verify", "twice")
    assert code == 1
    assert ["piece-001" in lines[0], "piece-200" in lines[1], len(lines)] == [True, True, 2]


def test_restore_of_unknown_index_names_it(source: Cluster, sound: Path) -> None:
    code, lines = source.refused("restore", "sound", "--index", "sund")
    assert code == 2
    assert lines[0].startswith("dstash: sound has no index 'sund'; its indexes are: ")


def test_save_refuses_folder_with_other_files(source: Cluster, folder: Path) -> None:
    (folder / "busy").mkdir()
    (folder / "busy" / "letter.txt").touch()
    code, lines = source.refused("save", "busy")
    assert code == 2
    assert "has other files (letter.txt)" in lines[0]
    assert json.dumps(sorted(path.name for path in (folder / "busy").iterdir())) == '["letter.txt"]'
