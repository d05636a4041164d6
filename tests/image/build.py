"""The images: a base made of Debian packages, Consul on it, and dstash by its Dockerfile."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.image.podman import ROOT, Failed, Podman, main, require, say, step

#: What the images of Python and Consul in conf/docker are called; no registry is asked for them.
BASE: Final = "docker.io/library/python:3.12-slim"
IMAGE: Final = "localhost/dstash"
CONSUL: Final = "docker.io/hashicorp/consul:1.20"
PACKAGES: Final = ("ca-certificates", "python-is-python3", "python3", "python3-venv")
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
#: Seconds to make the base image, and to build an image.
PATIENCE: Final = 900.0

CONSULFILE: Final = f"""\
FROM {BASE}
COPY consul /usr/local/bin/
VOLUME /consul/data
ENTRYPOINT ["consul"]
"""


def build(podman: Podman) -> None:
    """Build all images that compose.yaml names, and check the image of a peer."""
    with step("base image"):
        # Containers of a run that failed and kept its images.
        for kind in (("pod",), (), ("volume",)):
            podman(*kind, "rm", "--all", "--force")
        podman("import", "--quiet", str(make_base(podman.home)), BASE, patience=PATIENCE)
    with step("image of Consul"):
        build_consul(podman)
    with step("image of dstash"):
        build_dstash(podman)
    with step("contents of the image"):
        check_settings(podman)
        check_contents(podman)


def make_base(home: Path) -> Path:
    """Return an archive with a small Debian and its Python, made once."""
    release = Path("/etc/os-release").read_text()
    codename = re.search(r"^VERSION_CODENAME=(.+)$", release, re.M)
    require(codename, "/etc/os-release names no release of Debian")
    assert codename
    archive = home / f"base-{codename[1]}.tar"
    if archive.exists():
        return archive
    sources = [
        str(path)
        for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*"))
        if path.is_file()
        and path.suffix in (".list", ".sources")
        and codename[1] in path.read_text()
    ]
    require(sources, f"no list in /etc/apt has the release {codename[1]}")
    say(f"making a base image of {codename[1]} with {', '.join(PACKAGES)}")
    part = home / "base.part.tar"
    done = subprocess.run(
        [
            *("mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *(codename[1], str(part), *sources),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    (home / "base.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise Failed(f"mmdebstrap ended with {done.returncode} (see {home / 'base.log'})")
    part.replace(archive)
    return archive


def build_consul(podman: Podman) -> None:
    """Build an image with the Consul that the other tests use, in place of HashiCorp's."""
    found = subprocess.run(
        [ROOT / "bin" / "get-consul"], capture_output=True, text=True, check=True
    ).stdout.strip()
    context = podman.home / "consul"
    context.mkdir(exist_ok=True)
    shutil.copy(found, context / "consul")
    (context / "Containerfile").write_text(CONSULFILE)
    podman("build", "--pull-never", "--tag", CONSUL, str(context), patience=PATIENCE)


def build_dstash(podman: Podman) -> None:
    """Build the image by compose, as docs/deployment.md says.

    The build downloads from the package index that pip of this machine uses, with its certificates.
    """
    lines = ["[global]", *(f"{key} = {value}" for key, value in pip_settings().items())]
    settings = podman.home / "pip.conf"
    settings.write_text("\n".join(lines) + "\n")
    words = ["--format docker", "--pull-never", "--network host", "--isolation chroot"]
    words.append(f"--volume {settings}:/etc/pip.conf:ro")
    if CERTIFICATES.exists():
        words.append(f"--volume {CERTIFICATES}:{CERTIFICATES}:ro")
    podman.compose("--podman-build-args", " ".join(words), "build", patience=PATIENCE)


def pip_settings() -> dict[str, str]:
    """Return the package index of this machine, if pip is set to use another one than its own."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = {"cert": str(CERTIFICATES)} if CERTIFICATES.exists() else {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in ("index-url", "trusted-host"):
            found[key] = value.strip("'\"")
    return found


def check_settings(podman: Podman) -> None:
    """Check user, volume, ports, signal, health check and entry point of the image."""
    config = podman.inspect(IMAGE)["Config"]
    expected = {
        "User": "10001:10001",
        "Volumes": {"/data": {}},
        "ExposedPorts": {"5000/tcp": {}, "8080/tcp": {}},
        "Entrypoint": ["entrypoint.sh"],
        "StopSignal": "SIGTERM",
    }
    for key, value in expected.items():
        require(config.get(key) == value, f"{key} of the image is {config.get(key)}, not {value}")
    health = podman.inspect(IMAGE).get("Healthcheck")
    require(
        health and health["Test"] == ["CMD", "probe.sh", "healthz"],
        f"the health check of the image is {health}",
    )


#: Prints a line for each thing that is wrong inside a container of the image.
INSPECTION: Final = """
import importlib.util, os, pathlib, shutil, sys, sysconfig
for name in ("pip", "setuptools"):
    if importlib.util.find_spec(name):
        print(f"the image has {name}")
for name in ("gcc", "cc"):
    if shutil.which(name):
        print(f"the image has a compiler, {name}")
for root in (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")):
    missing = [
        path for path in pathlib.Path(root).rglob("*.py")
        if not os.path.exists(importlib.util.cache_from_source(path))
    ]
    if missing:
        print(f"{len(missing)} modules are not compiled, such as {missing[0]}")
if (os.getuid(), os.getgid()) != (10001, 10001):
    print(f"it runs as {os.getuid()}:{os.getgid()}")
for folder, may in (("/data", True), ("/", False), ("/opt/dstash", False)):
    if os.access(folder, os.W_OK) is not may:
        print(f"{folder} is {'not ' * may}writable")
"""


def check_contents(podman: Podman) -> None:
    """Check in a container what the image contains, and that other commands run."""
    alone = ("run", "--rm", "--network=none", "--read-only", IMAGE)
    wrong = podman(*alone, "python", "-c", INSPECTION).strip()
    require(not wrong, wrong.replace("\n", "; "))
    version = podman(*alone, "dstash", "--version").strip()
    require(
        re.fullmatch(r"dstash \d+\.\S+ \(compiled loops\)", version),
        f"dstash --version prints {version!r}",
    )
    status = podman.status(*alone)
    require(status == 2, f"a peer without curve and without insecure ends with {status}, not 2")
    complaint = podman.complaint("run", "--rm", "--read-only", "-e", "DSTASH_INSECURE=true", IMAGE)
    require("set local_dir" in complaint, f"a peer that cannot write its home says {complaint!r}")
    size = json.loads(podman("image", "inspect", IMAGE))[0]["Size"]
    base = json.loads(podman("image", "inspect", BASE))[0]["Size"]
    say(f"the image adds {(size - base) / 1e6:.0f} MB to its base")


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(build))
