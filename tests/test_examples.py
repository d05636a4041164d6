"""Every example is run, as a user would run it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.devcluster import COMMAND_TIMEOUT, DevCluster, clean_environment

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs an example against three peers."""
    cluster = DevCluster(tmp_path_factory.mktemp("examples"))
    try:
        cluster.out("dev", "up", "-n", "3")
        status = json.loads(cluster.out("-o", "json", "dev", "status"))
        peers = ",".join(one["address"] for one in status)

        def example(name: str, *words: str) -> Done:
            return subprocess.run(
                [sys.executable, str(EXAMPLES / name), *words],
                capture_output=True,
                text=True,
                env=clean_environment(DSTASH_PEERS=peers),
                timeout=COMMAND_TIMEOUT,
            )

        yield example
    finally:
        cluster.out("dev", "down")


def _printed(done: Done) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_cache_computes_each_result_once(run: Run) -> None:
    assert _printed(run("cache.py")) == "3 calls, computed 2 times; same answer: True"


def test_the_feature_store_fills_in_what_it_does_not_know(run: Run) -> None:
    printed = _printed(run("feature_store.py"))
    assert printed == "1000 rows, 500 of users that are known; the first is [20, 2250.0]"


def test_values_of_own_types_come_back_equal(run: Run) -> None:
    assert _printed(run("custom_types.py")) == "came back equal: True"


def test_a_csv_file_is_loaded(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    people = "".join(f"p{number},Person {number},{1900 + number % 100}\n" for number in range(3000))
    file.write_text("id,name,born\n" + people)
    assert _printed(run("bulk_load.py", str(file))) == "3000 stored, 0 skipped, 0 not stored"


def test_bad_rows_are_numbered_and_the_others_loaded(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text('id,name\na,"two\nlines"\n,nobody\nb\nc,Curie,1867\nd,Dirac\n')
    done = run("bulk_load.py", str(file), "--index", "bad")
    assert done.stdout == "2 stored, 3 skipped, 0 not stored\n"
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "line 4",
        "line 5",
        "line 6",
    ]
    assert done.returncode == 1


def test_a_wrong_column_or_file_ends_in_one_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("name\nada\n")
    for words in ((str(file),), (str(tmp_path / "missing.csv"),)):
        done = run("bulk_load.py", *words)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text()
    # The demo needs no cluster: it starts its own, and bin/demo runs it.
    missing = {one.name for one in EXAMPLES.glob("*.py") if f'"{one.name}"' not in text}
    assert missing <= {"demo.py"}
