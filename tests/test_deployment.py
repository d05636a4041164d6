"""The files of ``conf/`` for Docker and Kubernetes: valid by their schemas, and consistent."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]  # ships no annotations
import pytest
import yaml

from dstash import Client
from dstash.config import ClientSettings, PeerSettings, load_peer, unknown_variables
from dstash.peer.http.server import Answer, HttpServer
from tests.harness.devcluster import clean_environment
from tests.harness.ports import free_ports
from tests.harness.process import expirable
from tests.image import build, walk

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
DOCKERFILE = CONF / "docker" / "Dockerfile"
ENTRYPOINT = CONF / "docker" / "entrypoint.sh"
COMPOSE = CONF / "docker" / "compose.yaml"
KUBERNETES = CONF / "kubernetes"
PATIENCE: Final = 60.0
#: The oldest and the newest supported version of Kubernetes.
VERSIONS: Final = ("1.32", "1.37")
DRAIN: Final = PeerSettings.drain_seconds

# -- the start script of the container, outside one


def _environment(data: Path, **more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return clean_environment(PATH=path, DSTASH_DATA_DIR=str(data / "peer1"), **more)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket for notifications that systemd would provide."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE)
        yield listener


def _settings(folder: Path, port: int, http: int) -> dict[str, str]:
    return {
        "NOTIFY_SOCKET": str(folder / "notify"),
        "DSTASH_PORT": str(port),
        "DSTASH_HTTP_PORT": str(http),
        "DSTASH_ADVERTISE": "[::1]",
        "DSTASH_MIN_PEERS": "1",
        "DSTASH_LOCAL_DIR": str(folder / "membership"),
        "DSTASH_INSECURE": "true",
    }


def _page(port: int, path: str, host: str = "127.0.0.1") -> bytes:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=PATIENCE) as answer:
        body: bytes = answer.read()
    return body


def _probes() -> list[list[str]]:
    """Return the commands by which Docker and Compose check the health of a peer."""
    image = re.search(r"^HEALTHCHECK .* CMD \\\n\s*(\[.*\])$", DOCKERFILE.read_text(), re.M)
    compose = re.search(r"^    test: (\[.*\])$", COMPOSE.read_text(), re.M)
    assert image
    assert compose
    return [json.loads(image[1]), json.loads(compose[1])[1:]]


def _probe(program: str, page: str, port: int, bind: str = "*") -> int:
    """Return the exit status of a probe; a proxy of the environment is not for this machine."""
    more = {
        "http_proxy": "http://127.0.0.1:1",
        "DSTASH_HTTP_PORT": str(port),
        "DSTASH_HTTP_BIND": bind,
    }
    probe = [str(ENTRYPOINT.parent / program), page]
    silent = subprocess.DEVNULL
    return subprocess.run(probe, env=os.environ | more, stderr=silent, timeout=PATIENCE).returncode


def test_entrypoint_runs_a_peer(tmp_path: Path, manager: socket.socket) -> None:
    port, http = free_ports(2)
    environment = _environment(tmp_path, **_settings(tmp_path, port, http))
    command = expirable([str(ENTRYPOINT), "--cluster", "boxed"])
    # A umask that would leave not even the owner the right to write.
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, umask=0o277)
    try:
        assert manager.recv(100) == b"READY=1"
        for host in ("127.0.0.1", "[::1]"):  # where a probe may ask
            assert b'"healthy": true' in _page(http, "/healthz", host)
        assert b'cluster="boxed",peer="peer1"' in _page(http, "/metrics")
        with Client(f"127.0.0.1:{port}", cluster="boxed", timeout=PATIENCE) as client:
            client.put("i", "k", 1)  # at the address that the peer advertises
            assert client.lookup("i", "k") == 1
            (member,) = client.status()["members"]
            assert member["address"] == f"tcp://[::1]:{port}"
        for program, page in _probes():
            assert _probe(program, page, http) == 0
            assert _probe(program, "nothing", http) == 1
        process.send_signal(signal.SIGTERM)  # to the peer itself, which has replaced the script
        assert manager.recv(100) == b"STOPPING=1"
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    assert _probe("probe.sh", "healthz", http) == 1
    data = tmp_path / "peer1"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in data.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("stores", "given", "chosen"),
    [
        ([], {}, "box2"),
        (["box1"], {}, "box1"),
        (["."], {}, "."),
        (["box1", "box2"], {}, "box2"),
        (["box1"], {"DSTASH_ID": "box3"}, "box3"),
        (["box1", "box3"], {}, ""),
    ],
)
def test_entrypoint_uses_the_store_in_the_volume(
    tmp_path: Path, stores: list[str], given: dict[str, str], chosen: str
) -> None:
    volume = tmp_path / "volume"
    for store in stores:
        (volume / store).mkdir(parents=True)
        (volume / store / "data.mdb").touch()
    programs = {"uname": "echo box2", "dstash-peer": 'echo "$DSTASH_DATA_DIR"'}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    script = ENTRYPOINT.read_text().replace("/data/", f"{volume}/")
    done = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **given},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if chosen:
        assert (done.returncode, Path(done.stdout.strip())) == (0, volume / chosen)
    else:
        assert done.returncode == 2
        assert f"several stores: {volume}/box1 {volume}/box3; choose one" in done.stderr


@pytest.mark.parametrize("bind", ["::1", "[::1]", "::", "127.0.0.9", "localhost"])
def test_probe_asks_the_address_that_the_peer_listens_on(bind: str) -> None:
    server = HttpServer(bind.strip("[]"), 0, {"/healthz": lambda: Answer.json(200, {})})
    server.start()
    try:
        port = int(server.address.rpartition(":")[2])
        assert _probe("probe.sh", "healthz", port, bind) == 0
    finally:
        server.stop()


def test_entrypoint_does_not_set_insecure(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ENTRYPOINT)], env=_environment(tmp_path), capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 2
    assert b"set curve = true, or insecure = true" in done.stderr


def test_entrypoint_runs_other_commands(tmp_path: Path) -> None:
    command = [str(ENTRYPOINT), "dstash", "--version"]
    done = subprocess.run(
        command, env=_environment(tmp_path), capture_output=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_scripts_pass_shellcheck() -> None:
    scripts = [path for path in (ROOT / "bin").iterdir() if b"sh\n" in path.read_bytes()[:25]]
    assert len(scripts) >= 6
    _lint("shellcheck", *scripts, ENTRYPOINT)


def _lint(program: str, *files: Path) -> None:
    command = [str(Path(sys.executable).parent / program), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


# -- Docker


def test_dockerfile_passes_the_linter() -> None:
    _lint("hadolint", DOCKERFILE)


def test_dockerfile_copies_only_files_in_the_build_context() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    text = DOCKERFILE.read_text()
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.*)$", text, re.M)
        for source in line.split()[:-1]
    ]
    assert len(copied) >= 6
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == allowed or source.startswith(f"{allowed}/") for allowed in sent), (
            source
        )


def test_dockerfile_sets_user_and_ports() -> None:
    text = DOCKERFILE.read_text()
    assert re.findall(r"^USER (.*)$", text, re.M) == ["10001:10001"]
    for script in re.findall(r"\b\w+\.sh\b", text + COMPOSE.read_text()):
        assert os.access(ENTRYPOINT.parent / script, os.X_OK), script
    assert re.findall(r"^EXPOSE (.*)$", text, re.M) == [f"{_default('port')} 8080"]
    assert "DSTASH_HTTP_PORT:-8080" in ENTRYPOINT.read_text()


def test_image_run_makes_the_images_that_the_files_name() -> None:
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.M))
    assert {f"docker.io/library/{base}" for base in bases} == {build.BASE}
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert f"docker.io/{services['consul']['image']}" == build.CONSUL
    peers = {name: service for name, service in services.items() if name != "consul"}
    assert peers.keys() == set(walk.PEERS)
    assert {service["image"] for service in peers.values()} == {"dstash"}
    assert len([name for name in peers if "build" in peers[name]]) == 1
    ports = {name: service["ports"] for name, service in peers.items()}
    assert ports == {name: [f"127.0.0.1:{port}:8080"] for name, port in walk.PAGES.items()}


def _default(key: str) -> Any:
    return getattr(PeerSettings, key)


def test_compose_follows_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, str(COMPOSE)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _peer_settings(given: dict[str, str], name: str) -> PeerSettings:
    """Return the settings of a container, as the start script completes them."""
    environment = {
        "DSTASH_DATA_DIR": f"/data/{name}",
        "DSTASH_ADVERTISE": name,
        "DSTASH_BIND": "*",
        "DSTASH_HTTP_BIND": "*",
        "DSTASH_HTTP_PORT": "8080",
    } | given
    assert unknown_variables(environment) == []
    return load_peer(None, {}, environment)


def test_compose_peers_have_consistent_settings() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    peers = {
        name: service for name, service in compose["services"].items() if "hostname" in service
    }
    settings = [_peer_settings(peer["environment"], peer["hostname"]) for peer in peers.values()]
    assert {setting.min_peers for setting in settings} == {len(peers)} == {_default("replicas")}
    assert len({setting.zone for setting in settings}) == len(peers)
    assert {setting.consul for setting in settings} == {"http://consul:8500"}
    mounts = [mount for service in compose["services"].values() for mount in service["volumes"]]
    assert {mount.split(":")[0] for mount in mounts} == compose["volumes"].keys()
    for name, service in peers.items():
        assert service["hostname"] == name
        assert float(service["stop_grace_period"].removesuffix("s")) > DRAIN


# -- Kubernetes


Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifests() -> dict[tuple[str, str], Manifest]:
    """The manifests of kustomization.yaml, by kind and name."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    found = [
        manifest
        for name in kustomization["resources"]
        for manifest in yaml.safe_load_all((KUBERNETES / name).read_text())
    ]
    return {(block["kind"], block["metadata"]["name"]): block for block in found}


@pytest.fixture(scope="module")
def pod(manifests: dict[tuple[str, str], Manifest]) -> Manifest:
    """The template of the pods."""
    template: Manifest = manifests["StatefulSet", "dstash"]["spec"]["template"]
    return template


@pytest.fixture(scope="module")
def peer(pod: Manifest) -> Manifest:
    """The only container."""
    (container,) = pod["spec"]["containers"]
    return dict(container)


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_follow_their_schemas(
    manifests: dict[tuple[str, str], Manifest], version: str
) -> None:
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_kustomization_lists_every_manifest() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files
    for generator in kustomization["configMapGenerator"]:
        assert all((KUBERNETES / name).exists() for name in generator["envs"])


def test_manifests_select_the_pods(
    manifests: dict[tuple[str, str], Manifest], pod: Manifest
) -> None:
    labels = pod["metadata"]["labels"]
    specs = {kind: manifest["spec"] for (kind, _), manifest in manifests.items()}
    assert specs["StatefulSet"]["selector"]["matchLabels"] == labels
    assert specs["PodDisruptionBudget"]["selector"]["matchLabels"] == labels
    assert specs["NetworkPolicy"]["podSelector"]["matchLabels"] == labels
    for (kind, _), manifest in manifests.items():
        assert kind != "Service" or manifest["spec"]["selector"] == labels
    for spread in pod["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == labels


def test_manifests_use_the_same_port_names(
    manifests: dict[tuple[str, str], Manifest], pod: Manifest, peer: Manifest
) -> None:
    ports = {port["name"]: port["containerPort"] for port in peer["ports"]}
    assert ports == {"dstash": _default("port"), "http": 8080}
    for (kind, _), manifest in manifests.items():
        if kind == "Service":
            for port in manifest["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]
    rules = manifests["NetworkPolicy", "dstash"]["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == ports.keys()
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])


def test_probes_use_pages_of_a_peer(peer: Manifest) -> None:
    paths = {kind: peer[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in paths.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {probe["port"] for probe in paths.values()} == {"http"}


def test_pods_advertise_names_of_the_headless_service(
    manifests: dict[tuple[str, str], Manifest], peer: Manifest
) -> None:
    name = manifests["StatefulSet", "dstash"]["spec"]["serviceName"]
    service = manifests["Service", name]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    advertise = next(
        variable["value"] for variable in peer["env"] if variable["name"] == "DSTASH_ADVERTISE"
    )
    assert advertise == f"$(POD_NAME).{name}.$(POD_NAMESPACE).svc"


@pytest.mark.parametrize(
    ("node", "consul"),
    [("10.0.0.1", "http://10.0.0.1:8500"), ("fd00::1", "http://[fd00::1]:8500")],
)
def test_pods_have_valid_settings(peer: Manifest, node: str, consul: str) -> None:
    lines = (KUBERNETES / "peer.env").read_text().splitlines()
    shared = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    own = {variable["name"]: variable.get("value", "") for variable in peer["env"]}
    known = {"POD_NAME": "dstash-0", "POD_NAMESPACE": "default", "HOST_IP": node}
    given = {
        name: re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], text)
        for name, text in (shared | own).items()
        if name.startswith("DSTASH_")
    }
    settings = _peer_settings(given, "dstash-0")
    assert settings.advertise == "dstash-0.dstash-peers.default.svc"
    assert settings.consul == consul
    assert settings.membership == "consul"


def test_manifests_allow_forming_and_a_drain(
    manifests: dict[tuple[str, str], Manifest], pod: Manifest, peer: Manifest
) -> None:
    spec = manifests["StatefulSet", "dstash"]["spec"]
    env = (KUBERNETES / "peer.env").read_text()
    assert f"DSTASH_MIN_PEERS={spec['replicas']}\n" in env
    assert spec["podManagementPolicy"] == "Parallel", "in order, the first would wait for ever"
    assert manifests["PodDisruptionBudget", "dstash"]["spec"]["maxUnavailable"] == 1
    sleep = peer["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > DRAIN + sleep


def test_peers_ask_dns_again_before_a_call_times_out(pod: Manifest) -> None:
    compose = yaml.safe_load(COMPOSE.read_text())["services"]
    peers = [service for service in compose.values() if "hostname" in service]
    options = [dict(word.split(":") for word in peer["dns_opt"]) for peer in peers]
    options.append(
        {option["name"]: option["value"] for option in pod["spec"]["dnsConfig"]["options"]}
    )
    for chosen in options:
        assert 2 * float(chosen["timeout"]) < ClientSettings.timeout
        assert float(chosen["attempts"]) >= 3


def test_rolling_update_waits_for_dns_and_pods_never_share_a_node(
    manifests: dict[tuple[str, str], Manifest], pod: Manifest
) -> None:
    spec = manifests["StatefulSet", "dstash"]["spec"]
    # A DNS server was seen to give the old address of a pod for 8 s.
    assert spec["minReadySeconds"] > 8
    assert spec["updateStrategy"] == {"type": "RollingUpdate"}
    (rule,) = pod["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"]["matchLabels"] == pod["metadata"]["labels"]


def test_container_can_write_only_its_volume(
    manifests: dict[tuple[str, str], Manifest], pod: Manifest, peer: Manifest
) -> None:
    claims = manifests["StatefulSet", "dstash"]["spec"]["volumeClaimTemplates"]
    names = [claim["metadata"]["name"] for claim in claims]
    assert [(mount["name"], mount["mountPath"]) for mount in peer["volumeMounts"]] == [
        (names[0], "/data")
    ]
    assert peer["securityContext"]["readOnlyRootFilesystem"] is True
    user = re.findall(r"^USER (.*)$", DOCKERFILE.read_text(), re.M)
    ids = pod["spec"]["securityContext"]
    assert [f"{ids['runAsUser']}:{ids['runAsGroup']}"] == user
    assert f"VOLUME {peer['volumeMounts'][0]['mountPath']}\n" in DOCKERFILE.read_text()
