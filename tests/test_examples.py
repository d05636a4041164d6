"""Runs every example as a user would."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dstash import Client
from tests.harness.devcluster import COMMAND_TIMEOUT, DevCluster, clean_environment
from tests.harness.ports import free_ports
from tests.harness.process import expirable
from tests.harness.waiting import wait_until

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Three peers, as a value of ``DSTASH_PEERS``."""
    cluster = DevCluster(tmp_path_factory.mktemp("examples"))
    try:
        cluster.out("dev", "up", "-n", "3")
        status = json.loads(cluster.out("-o", "json", "dev", "status"))
        yield ",".join(peer["address"] for peer in status)
    finally:
        cluster.out("dev", "down")


@pytest.fixture(scope="module")
def run(peers: str) -> Run:
    """Runs an example against three peers."""

    def example(name: str, *words: str) -> Done:
        return subprocess.run(
            [sys.executable, str(EXAMPLES / name), *words],
            capture_output=True,
            text=True,
            env=clean_environment(DSTASH_PEERS=peers),
            timeout=COMMAND_TIMEOUT,
        )

    return example


def _printed(done: Done) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_cache_computes_each_result_once(run: Run) -> None:
    assert _printed(run("cache.py")) == "3 calls, computed 2 times; same answer: True"


def test_feature_store_computes_missing_features(run: Run) -> None:
    printed = _printed(run("feature_store.py"))
    assert printed == "1000 rows, 500 of users that are known; the first is [20, 2250.0]"


def test_values_of_registered_types_round_trip(run: Run) -> None:
    assert _printed(run("custom_types.py")) == "round trip is equal: True"


def test_job_runs_and_stores_its_result(run: Run) -> None:
    assert _printed(run("job_lock.py")) == "run 1: {'total': 30}"
    assert _printed(run("job_lock.py")) == "run 2: {'total': 30}"


def test_rate_limit_refuses_requests_above_it(run: Run) -> None:
    printed = _printed(run("rate_limit.py"))
    assert printed == "served {'grace': 4, 'ada': 5}, refused {'ada': 3}, counted 9"


def test_name_belongs_to_one_account(run: Run) -> None:
    printed = _printed(run("unique_names.py"))
    assert printed == "the name is taken\n['countess', 'ada']"


def test_csv_file_is_loaded(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    people = "".join(f"p{number},Person {number},{1900 + number % 100}\n" for number in range(3000))
    file.write_text("id,name,born\n" + people)
    assert _printed(run("bulk_load.py", str(file))) == "3000 stored, 0 skipped, 0 not stored"


def test_bad_csv_rows_are_reported_by_number(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text('id,name\na,"two\nlines"\n,unknown\nb\nc,Curie,1867\nd,Dirac\n')
    done = run("bulk_load.py", str(file), "--index", "bad")
    assert done.stdout == "2 stored, 3 skipped, 0 not stored\n"
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "line 4",
        "line 5",
        "line 6",
    ]
    assert done.returncode == 1


def test_wrong_column_or_file_is_one_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("name\nada\n")
    for words in ((str(file),), (str(tmp_path / "missing.csv"),)):
        done = run("bulk_load.py", *words)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1


def test_secrets_are_rotated_and_forgeries_detected(run: Run) -> None:
    printed = _printed(run("key_management.py"))
    assert printed == "2 keys rotated, same=True, noticed=True, shredded=True"


def test_peers_never_see_a_secret(peers: str) -> None:
    spec = importlib.util.spec_from_file_location("vault", EXAMPLES / "key_management.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with Client(*peers.split(","), timeout=30) as client:
        old, new = bytes(32), bytes(range(32))
        vault = module.Vault(client, {"old": old}, "own")
        vault.store("token", b"the secret")
        first = client.lookup("own", "token")["key"]
        vault.store("token", b"the secret itself")
        assert not client.exists("own.keys", first)  # shredded
        stored = [*client.items("own"), *client.items("own.keys")]
        assert b"secret" not in repr(stored).encode()
        both = module.Vault(client, {"old": old, "new": new}, "own")
        assert both.read("token") == b"the secret itself"
        assert (both.rotate(), both.rotate()) == (1, 0)
        with pytest.raises(KeyError):
            vault.read("token")  # the old master key decrypts no record any more
        with pytest.raises(KeyError):
            both.read("nothing")


@pytest.fixture
def service(peers: str) -> Iterator[str]:
    """The web service and its address."""
    (port,) = free_ports(1)
    command = expirable([sys.executable, str(EXAMPLES / "service.py"), "--port", str(port)])
    environment = clean_environment(DSTASH_PEERS=peers)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _listens(port), COMMAND_TIMEOUT, "it listens")
        yield url
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=COMMAND_TIMEOUT)
        assert complaints == b""
    finally:
        process.kill()
        process.communicate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ask(method: str, url: str, body: object = None) -> tuple[int, Any]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=COMMAND_TIMEOUT)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, parts.path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def test_service_answers_concurrent_requests(service: str) -> None:
    names = [f"user{number}" for number in range(50)]
    with ThreadPoolExecutor(16) as pool:
        stored = list(pool.map(lambda n: _ask("PUT", f"{service}/users/{n}", {"name": n}), names))
        assert stored == [(204, None)] * 50
        found = list(pool.map(lambda n: _ask("GET", f"{service}/users/{n}"), names))
        assert found == [(200, {"name": name}) for name in names]
    assert _ask("DELETE", f"{service}/users/user0") == (204, None)
    assert _ask("GET", f"{service}/users/user0") == (404, {"detail": "no user 'user0'"})
    status, several = _ask("POST", f"{service}/users/lookup", ["user0", "user1", "user2"])
    assert (status, sorted(several)) == (200, ["user1", "user2"])
    assert _ask("GET", f"{service}/healthz") == (200, {"peers": 3})
    status, answer = _ask("PUT", f"{service}/users/{'n' * 500}", {})
    assert status == 422
    assert "400" in answer["detail"]


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text()
    # The demo needs no cluster: it starts its own, and bin/demo runs it.
    missing = {path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text}
    assert missing <= {"demo.py"}
