"""Chapters of docs/security.md: securing an open cluster, and a new key for a peer."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from dstash import Client
from dstash.errors import DStashError, NoPeers, Unauthorised
from tests.harness.ports import free_port
from tests.harness.waiting import wait_until
from tests.security.closed import PATIENCE
from tests.security.manual import Block, Machine, Site, chapter

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as site:
        yield site


@contextmanager
def always_served(settings: Path) -> Iterator[Client]:
    """Write and read continuously; no call may fail."""
    stop = threading.Event()
    done, errors = [0], list[DStashError]()

    def work() -> None:
        while not errors and not (stop.wait(0.01) and done[0] > 3):
            try:
                client.put("i", "count", done[0] + 1)
                assert client.lookup("i", "count") == done[0] + 1
                done[0] += 1
            except DStashError as error:
                errors.append(error)

    with Client.from_config(settings) as client:
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield client
        finally:
            stop.set()
            thread.join()
    assert not errors


def restart(site: Site, machine: Machine) -> None:
    """Restart a peer as systemd does, and wait until it serves."""
    assert machine.stop() == 0
    machine.start()
    machine.wait_ready()
    wait_until(
        lambda: (
            len({machine.page("/status").get("epoch") for machine in site.machines.values()}) == 1
        ),
        PATIENCE,
        "all know the topology",
    )


def put_in_place(machine: Machine, site: Site, lines: Block) -> None:
    """Replace the port in the settings of a peer by lines."""
    assert lines.language == "toml"
    machine.port = free_port()  # now, because another process may use it later
    text = site.local(f"{site.unchanged(machine.name)}{lines.text}", machine.name)
    site.write(machine.settings, text)


def patient(text: str) -> str:
    return f"{text}timeout = {PATIENCE}\n"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_open_cluster_is_secured_without_downtime(site: Site) -> None:
    title = "Closing an open cluster without stopping it"
    peer_keys, app_keys, admin_keys, listed, both, begin, *later = chapter(title)
    keyed, status, admin, end, strangers = later
    site.open_up()
    site.write(site.client, patient(site.client.read_text()))
    open_client = site.folder / "old.toml"
    open_client.write_text(site.client.read_text())
    with always_served(open_client) as old:
        old.put("i", "before", 1)
        # 1.
        for name in site.machines:
            site.run(Block("sh", site.local(peer_keys.text, name)))
        site.run(Block("sh", site.local(app_keys.text)))
        site.run(Block("sh", site.local(admin_keys.text)))
        site.run(Block("sh", site.local(listed.text)))
        # 2.
        for name, machine in site.machines.items():
            put_in_place(machine, site, both)
            local = Block("sh", site.local(begin.text, name))
            site.run(local, partial(restart, site, machine))
        members = old.topology().members
        assert {member.key for member in members} == {site.key(name) for name in site.machines}
        # 3.
        site.write(site.client, patient(site.local(keyed.text)))
        site.run(Block("sh", site.local(status.text)))
        site.run(Block("sh", site.local(admin.text)))
    with always_served(site.client) as new:
        # 4.
        for name, machine in site.machines.items():
            local = Block("sh", site.local(end.text, name))
            site.run(local, partial(restart, site, machine))
        assert {member.plain for member in new.topology().members} == {""}
        assert new.lookup("i", "before") == 1
    for line in site.local(strangers.text).splitlines():
        done = site.attempt(line)
        assert done.returncode == NoPeers.exit_code, line
    with Client.from_config(open_client) as stranger, pytest.raises(NoPeers):
        stranger.lookup("i", "before", timeout=2)


def test_ports_of_the_manual_are_free_while_the_readme_is_tried() -> None:
    manual, readme = (
        set(re.findall(r"(?<=[:_ ])[5-9]\d{3}\b", (ROOT / page).read_text()))
        for page in ("docs/security.md", "README.md")
    )
    assert manual >= {"5500", "5600"}
    assert readme >= {"5000", "5100", "6000"}
    assert manual & readme <= {"8500"}  # Consul, which both use


def begin_closed(site: Site) -> None:
    """Start the cluster of the chapter on new secured clusters."""
    site.make_keys()
    settings, client, _ = chapter("A new closed cluster")
    for name, machine in site.machines.items():
        rest = settings.text.partition("\n")[2]  # except for its data directory
        site.write(machine.settings, site.local(site.unchanged(name) + rest, name))
        machine.start()
    site.wait_ready()
    site.write(site.client, patient(site.local(client.text)))


@pytest.mark.timeout(300)
def test_peer_key_is_rotated_without_downtime(site: Site) -> None:
    begin_closed(site)
    machine, old_key = site.machines["peer1"], site.key("peer1")
    added, used, taken = (
        Block(block.language, site.local(block.text)) for block in chapter("A new key for a peer")
    )
    with always_served(site.client) as app:
        # 1. and 2.
        site.run(added)
        site.run(used, partial(restart, site, machine))
        members = {member.id: member.key for member in app.topology().members}
        assert members["peer1"] == site.key("peer1-new") != old_key
        # 3. The client continues unchanged.
        # 4.
        stolen = {
            part: (site.folder / f"peer1.{part}").read_bytes() for part in ("key", "key_secret")
        }
        site.run(taken)
        app.batch_put("i", {f"k{n}": n for n in range(300)}).raise_for_failures()
        # The old key is rejected.
        assert_shut_out(site, stolen)
    # A restarted peer needs the new key.
    text = site.client.read_text().replace(old_key, site.key("peer1-new"))
    site.write(site.client, text)
    with Client.from_config(site.client) as newcomer:
        assert newcomer.lookup("i", "k7") == 7


def assert_shut_out(site: Site, stolen: dict[str, bytes]) -> None:
    for part, content in stolen.items():
        file = site.folder / f"stolen.{part}"
        file.write_bytes(content)
        file.chmod(0o600)
    text = site.client.read_text().replace("/app.key", "/stolen.key")
    thief = site.folder / "thief.toml"
    thief.write_text(text)

    def is_shut_out() -> bool:
        with Client.from_config(thief) as client:
            try:
                client.topology(timeout=1.0)
            except (NoPeers, Unauthorised):
                return True
            return False

    wait_until(is_shut_out, PATIENCE, "the old key opens nothing any more")
