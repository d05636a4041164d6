"""Shell completion: the script that a shell loads, and the completions."""

from __future__ import annotations

import subprocess

import pytest

from tests.harness.devcluster import DSTASH, DevCluster, InProcess, clean_environment


def offered(dev: DevCluster, typed: str) -> list[str]:
    """Return the completions that bash gets for the last word."""
    variables = {
        "_DSTASH_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    done = subprocess.run(
        [DSTASH],
        capture_output=True,
        text=True,
        cwd=dev.folder,
        env=clean_environment(**variables),
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_exists_for_each_shell(inside: InProcess, shell: str) -> None:
    script = inside.out("--show-completion", shell)
    assert "_DSTASH_COMPLETE" in script


def test_completion_script_works_in_bash(dev: DevCluster) -> None:
    script = dev.out("--show-completion", "bash")
    typed = f"{script}\nCOMP_WORDS=(dstash clus); COMP_CWORD=1\n_dstash_completion {DSTASH}\n"
    done = subprocess.run(
        ["bash", "-c", f'{typed}echo "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("cluster\n", "")


def test_completion_offers_commands(dev: DevCluster) -> None:
    assert offered(dev, "dstash ex") == ["exists", "export"]
    assert offered(dev, "dstash cluster re") == ["remove", "replace", "resume", "repair"]


def test_completion_offers_ids_of_peers(dev: DevCluster) -> None:
    assert offered(dev, "dstash cluster remove peer") == ["peer1", "peer2", "peer3"]
    assert offered(dev, "dstash cluster add peer") == []  # there is no candidate
    assert offered(dev, "dstash cluster replace peer2 ") == []


def test_completion_is_empty_when_no_peer_answers(dev: DevCluster) -> None:
    assert offered(dev, "dstash --peers 127.0.0.1:1 cluster remove p") == []
