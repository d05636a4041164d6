"""Shell completion: the script that a shell loads, and the answers that it then gets."""

from __future__ import annotations

import subprocess

import pytest

from tests.harness.devcluster import DSTASH, DevCluster, InProcess, clean_environment


def offered(dev: DevCluster, typed: str) -> list[str]:
    """Return what bash is offered for the last word typed."""
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
def test_there_is_a_script_for_each_shell(inside: InProcess, shell: str) -> None:
    script = inside.out("--show-completion", shell)
    assert "_DSTASH_COMPLETE" in script


def test_bash_loads_the_script_and_completes(dev: DevCluster) -> None:
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


def test_commands_are_offered(dev: DevCluster) -> None:
    assert offered(dev, "dstash ex") == ["exists", "export"]
    assert offered(dev, "dstash cluster re") == ["remove", "replace", "resume", "repair"]


def test_peers_are_offered_by_their_ids(dev: DevCluster) -> None:
    assert offered(dev, "dstash cluster remove peer") == ["peer1", "peer2", "peer3"]
    assert offered(dev, "dstash cluster add peer") == []  # none waits
    assert offered(dev, "dstash cluster replace peer2 ") == []


def test_nothing_is_offered_and_nobody_complains_when_no_peer_answers(dev: DevCluster) -> None:
    assert offered(dev, "dstash --peers 127.0.0.1:1 cluster remove p") == []
