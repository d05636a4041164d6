"""A cluster of compose.yaml from start to stop: a killed peer, a rolling recreation, a new name."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from tests.image.podman import ROOT, Failed, Podman, main, require, say, step, wait_until

PEERS: Final = ("peer1", "peer2", "peer3")
NETWORK: Final = "dstash_default"
TRAFFIC: Final = ROOT / "tests" / "image" / "traffic.py"
#: As in compose.yaml: podman's DNS server loses questions when containers come or go.
LOOKUPS: Final = ("--dns-opt", "timeout:1", "--dns-opt", "attempts:5")
#: Ports of this machine that compose.yaml forwards to the pages of the peers.
PAGES: Final = {"peer1": 8081, "peer2": 8082, "peer3": 8083}
#: The longest call of a client while a peer is away, in seconds: half of its timeout.
SLOWEST: Final = 2.5
#: Folders in the container of a peer, and whether it can write them.
WRITABLE: Final = {"/data": True, "/tmp": True, "/opt": False, "/": False}  # noqa: S108
#: Seconds in which a removed peer would join again if nothing kept it out.
REJOIN: Final = 4.0
MARKER: Final = "written-before"


def walk(podman: Podman) -> None:
    """Run all steps; the containers end with the namespace, so a failure leaves none behind."""
    start_loopback()
    try:
        run_steps(podman)
    except Failed:
        record_state(podman)
        raise
    say("passed")


def record_state(podman: Podman) -> None:
    """Write into the log what explains most failures: addresses, names, status, logs."""
    for box in podman("ps", "--all", "--quiet").split():
        podman.status("inspect", "--format", "{{.Name}} {{json .NetworkSettings.Networks}}", box)
        podman.status("exec", box, "getent", "hosts", *PEERS)
        podman.status("exec", box, "dstash", "--peers", "localhost:5000", "status")
        podman.logs(box)


def run_steps(podman: Podman) -> None:
    """Take a cluster from its start to its removal."""
    with step("start of three peers and Consul"):
        podman.compose("up", "--detach", "--no-build")
        wait_for_cluster(podman)
    with step("limits of the containers"):
        check_limits(podman)
    with step("values written and read with the command line"):
        cli(podman, "peer1", "put", "walk", "key", MARKER)
        check_value(podman)
    with step("peer killed with SIGKILL, started again by its restart policy"):
        kill_peer(podman, "peer2")
    with step("rolling recreation of all peers"):
        recreate_peers(podman)
    with step("removed peer, started again by its restart policy, stays out until it is added"):
        remove_peer(podman, "peer3")
    with step("container with another name on the volume of a peer"):
        rename_peer(podman, "peer3")
    with step("stop"):
        stop_cluster(podman)
    with step("removal"):
        remove_cluster(podman)


def start_loopback() -> None:
    """Start the loopback device: a new network namespace has it, but it is down."""
    set_flags, up = 0x8914, 1  # SIOCSIFFLAGS, IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        fcntl.ioctl(device, set_flags, struct.pack("16sH14x", b"lo", up))


# -- state of the cluster


def container(podman: Podman, service: str) -> str:
    """Return the id of the container of a service."""
    label = f"label=com.docker.compose.service={service}"
    found = podman("ps", "--all", "--quiet", "--no-trunc", "--filter", label).split()
    require(len(found) == 1, f"{service} has {len(found)} containers, not one")
    return found[0]


def cli(podman: Podman, service: str, *words: str) -> str:
    """Run the command dstash in the container of a peer."""
    return podman("exec", container(podman, service), "dstash", "--peers", "localhost:5000", *words)


def members(podman: Podman) -> dict[str, dict[str, Any]]:
    """Return the members of the cluster by their ids."""
    status = json.loads(cli(podman, "peer1", "-o", "json", "status"))
    return {member["id"]: member for member in status["members"]}


def is_ready(podman: Podman, service: str) -> bool:
    """Return whether the health check of the container passes, and the page outside says so."""
    if podman.status("healthcheck", "run", container(podman, service)):
        return False
    return '"ready": true' in page(service, "/readyz")


def page(service: str, path: str) -> str:
    """Return a page of a peer from outside of its container; an empty text without an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PAGES[service]}{path}", timeout=5) as found:
            return str(found.read(), "utf-8")
    except urllib.error.HTTPError as error:
        return str(error.read(), "utf-8")
    except OSError:
        return ""


def wait_for_cluster(podman: Podman) -> None:
    """Wait until each peer passes its health check, and the cluster of three is healthy."""
    for service in PEERS:
        wait_until(partial(is_ready, podman, service), f"{service} is ready")
    cli(podman, "peer1", "health", "--wait", "60")
    found = members(podman).keys()
    require(found == set(PEERS), f"the members are {sorted(found)}, not {PEERS}")


def check_value(podman: Podman) -> None:
    """Read the value of the first step from each peer."""
    for service in PEERS:
        found = cli(podman, service, "get", "walk", "key").strip()
        require(found == MARKER, f"{service} returns {found!r}, not {MARKER!r}")


def check_limits(podman: Podman) -> None:
    """Check that a peer has no rights and can write only to its volume and /tmp."""
    box = container(podman, "peer1")
    lines = podman("exec", box, "cat", "/proc/1/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    expected = {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    for key, value in expected.items():
        require(status.get(key) == value, f"{key} of a peer is {status.get(key)}, not {value}")
    require(status["Uid"].split() == ["10001"] * 4, f"a peer runs as user {status['Uid']}")
    command = podman("exec", box, "cat", "/proc/1/cmdline")
    require("dstash-peer" in command, f"process 1 is {command!r}: it does not get the signals")
    for path, may in WRITABLE.items():
        written = podman.status("exec", box, "test", "-w", path) == 0
        require(written is may, f"a peer can{'not' if may else ''} write {path}")


# -- what happens to it


@contextmanager
def traffic(podman: Podman) -> Iterator[None]:
    """Write and read with a client in a container of its own; a failed call is ``Failed``."""
    process = podman.spawn(
        *("run", "--rm", "--name", "traffic", "--network", NETWORK, "--read-only", *LOOKUPS),
        *("--volume", f"{TRAFFIC}:/traffic.py:ro", "--env", "DSTASH_INSECURE=true"),
        *("localhost/dstash", "python", "/traffic.py"),
    )
    assert process.stdout
    assert process.stderr
    try:
        if process.stdout.readline() != "started\n":
            raise Failed(f"the client does not start: {process.stderr.read().strip()[-300:]}")
        yield
        podman("kill", "--signal", "TERM", "traffic")
        printed, complaint = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    require(printed, f"the client ended without a result: {complaint.strip()[-300:]}")
    outcome = json.loads(printed)
    errors = outcome["errors"]
    require(not errors, f"{len(errors)} calls failed, such as {errors[:1]}")
    require(outcome["writes"] > 100, f"the client wrote only {outcome['writes']} values")
    require(outcome["slowest"] < SLOWEST, f"a call took {outcome['slowest']:.1f} s")
    say(
        f"  {outcome['writes']} writes and {outcome['reads']} reads without an error,"
        f" the slowest pair {outcome['slowest']:.2f} s"
    )


def kill_peer(podman: Podman, service: str) -> None:
    """Kill the process of a peer as a crash would; its restart policy starts it again."""
    box = container(podman, service)
    with traffic(podman):
        before = podman.inspect(box)["State"]["Pid"]
        require(before > 1, f"{service} does not run")
        os.kill(before, signal.SIGKILL)
        wait_until(
            lambda: podman.inspect(box)["State"]["Pid"] not in (0, before),
            f"{service} runs again",
        )
        wait_until(lambda: is_ready(podman, service), f"{service} is ready again")
    wait_for_cluster(podman)
    require(container(podman, service) == box, "the restart made a new container")
    check_value(podman)


def recreate_peers(podman: Podman) -> None:
    """Give each peer a new container on its volume, the next when the cluster is healthy."""
    with traffic(podman):
        for service in PEERS:
            before = container(podman, service)
            podman.compose("up", "--detach", "--no-build", "--no-deps", "--force-recreate", service)
            require(container(podman, service) != before, f"{service} has its old container")
            wait_for_cluster(podman)
    check_value(podman)


def remove_peer(podman: Podman, service: str) -> None:
    """Remove a peer. Its container starts again, and it is no member until it is added again."""
    before = podman.inspect(container(podman, service))["State"]["Pid"]
    cli(podman, "peer1", "cluster", "remove", service, "--force", "--yes")
    wait_until(
        lambda: podman.inspect(container(podman, service))["State"]["Pid"] not in (0, before),
        f"{service} runs again",
    )
    reason = f"dstash cluster add {service}"
    wait_until(lambda: reason in page(service, "/readyz"), f"/readyz names {reason}")
    time.sleep(REJOIN)
    require(service not in members(podman), f"{service} has joined again by itself")
    require(not is_ready(podman, service), f"{service} is ready, but no member")
    cli(podman, "peer1", "cluster", "add", service, "--yes")
    wait_for_cluster(podman)
    check_value(podman)


def rename_peer(podman: Podman, service: str) -> None:
    """Run the volume of a peer in a container without a host name: the store keeps the id."""
    box = container(podman, service)
    podman("stop", box)
    environment = podman.inspect(box)["Config"]["Env"]
    settings = [part for line in environment if line.startswith("DSTASH_") for part in ("-e", line)]
    other = podman(
        *(
            "run",
            "--detach",
            "--network",
            NETWORK,
            *LOOKUPS,
            "--read-only",
            "--volume",
            f"dstash_{service}:/data",
        ),
        *(*settings, "localhost/dstash"),
    ).strip()
    try:
        wait_until(
            lambda: podman.status("exec", other, "probe.sh", "readyz") == 0,
            f"{service} is ready in a container with another name",
        )
        cli(podman, "peer1", "health", "--wait", "60")
        found = members(podman)
        require(found.keys() == set(PEERS), f"the members are {sorted(found)}, not {PEERS}")
    finally:
        podman("stop", "--time", "30", other)
    require(exit_code(podman, other) == 0, f"it stopped with {exit_code(podman, other)}")
    podman("rm", other)
    podman("start", box)
    wait_for_cluster(podman)


def exit_code(podman: Podman, box: str) -> int:
    """Return the exit status of a container that has ended."""
    return int(podman.inspect(box)["State"]["ExitCode"])


def stop_cluster(podman: Podman) -> None:
    """Stop everything by compose: peers answer what they have accepted, and exit with 0."""
    boxes = {service: container(podman, service) for service in PEERS}
    podman.compose("stop")
    for service, box in boxes.items():
        state = podman.inspect(box)["State"]
        require(not state["Running"], f"{service} still runs")
        require(state["ExitCode"] == 0, f"{service} stopped with {state['ExitCode']}")
        log = podman.logs(box)
        require('"stopped"' in log, f"{service} does not log that it stopped")
        require("Traceback" not in log, f"{service} logs a traceback")


def remove_cluster(podman: Podman) -> None:
    """Remove everything by compose, and check that nothing is left."""
    podman.compose("down", "--volumes")
    left = {
        "containers": podman("ps", "--all", "--quiet").split(),
        "volumes": podman("volume", "ls", "--quiet").split(),
        "networks": [
            name
            for name in podman("network", "ls", "--format", "{{.Name}}").split()
            if name != "podman"
        ],
    }
    for kind, names in left.items():
        require(not names, f"{kind} are left: {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(main(walk))
