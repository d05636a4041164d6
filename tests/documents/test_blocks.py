"""Every code block of a document runs with the printed results, or states why not."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import typer
import yaml

from dstash.cli.main import app
from dstash.config import ClientSettings, PeerSettings, layered
from dstash.config.rules import rules_of
from dstash.peer.admission.authority import read_authority
from dstash.peer.main import app as peer_app
from dstash.wire.curve import KeyPair
from tests.documents import running
from tests.documents.answers import checked
from tests.documents.blocks import HELD_ELSEWHERE, ROOT, Block, blocks, pages, parse, spans
from tests.harness.devcluster import DevCluster
from tests.harness.ports import free_ports

PAGES = pages()
#: Folders whose files a command may name.
_OURS = re.compile(r"^(?:bin|conf|docs|examples|requirements|tests)/[\w./-]+$")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """The cluster of a reader after ``dstash dev up``."""
    cluster = DevCluster(tmp_path_factory.mktemp("pages"))
    try:
        cluster.out("dev", "up")
        yield cluster
    finally:
        cluster.out("dev", "down")


class Ports:
    """The ports to use for printed ports: of peers, of Consul, or free ports."""

    def __init__(self, cluster: DevCluster, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._known: dict[str, int] = {}
        for number, peer in enumerate(json.loads(cluster.out("-o", "json", "dev", "status"))):
            self._known[f"500{number}"] = int(peer["address"].rpartition(":")[2])
            self._known[f"510{number}"] = int(peer["http"].rpartition(":")[2])

    def __call__(self, printed: str) -> int:
        if printed not in self._known:
            self._known[printed] = self._consul() if printed == "8500" else free_ports(1)[0]
        return self._known[printed]

    def _consul(self) -> int:
        agent = self._request.getfixturevalue("consul_agent")
        return int(agent.url.rpartition(":")[2])


def _of(page: str, *languages: str) -> list[Block]:
    return [
        block
        for block in blocks(page)
        if block.language in languages and not block.why_not_run and not block.held_by
    ]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_page_run(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    todo = _of(page, *running.RUN)
    if not todo:
        return
    if any("dev down" in block.text for block in todo):
        cluster = DevCluster(tmp_path)  # a separate cluster, so that no other is stopped
        cluster.out("dev", "up")
    else:
        cluster = request.getfixturevalue("shared")
        (tmp_path / ".dstash").symlink_to(cluster.folder / ".dstash")
    for folder in ("conf", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    try:
        running.run(todo, tmp_path, Ports(cluster, request))
    finally:
        if cluster.folder == tmp_path:
            cluster.out("dev", "down")


@pytest.mark.parametrize("page", PAGES)
def test_other_blocks_of_page_are_valid(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.held_by:
            assert block.page in (ROOT / block.held_by).read_text() or (
                Path(block.page).name in (ROOT / block.held_by).read_text()
            )
        elif block.why_not_run:
            _check_unrun(block)
        elif block.language not in running.RUN:
            _check(block, tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_prose_exist(page: str) -> None:
    for typed in spans(page):
        words = shlex.split(typed)
        if "..." in typed or "--install-completion" in words:  # which would act immediately
            continue
        try:
            parses(COMMANDS[words[0]], words[0], words[1:], page)
        except AssertionError as error:
            # Prose may name a command without its arguments, or a group of commands.
            if "Missing" not in str(error) and not str(error).endswith(f"{typed}: "):
                raise


def _check_unrun(block: Block) -> None:
    if block.language == "python":
        compile(block.text, block.place, "exec")
        return
    assert block.language == "sh", f"{block.place}: only sh and python may be not-run"
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.place}: {done.stderr}"
    for words in running.commands(block):
        _check_command(block.place, words)


def _check_command(place: str, words: list[str]) -> None:
    for word in words:
        assert not _OURS.match(word) or (ROOT / word).exists(), f"{place}: there is no {word}"
    for number, word in enumerate(words):
        begins = number == 0 or "exec" in words[number - 2 : number]
        if begins and word in COMMANDS:
            parses(COMMANDS[word], word, words[number + 1 :], place)


COMMANDS = {"dstash": app, "dstash-peer": peer_app}


def parses(program: typer.Typer, name: str, words: list[str], place: str) -> None:
    """Fail unless a command line can be parsed; it is not run."""
    command = typer.main.get_command(program)
    try:
        context = command.make_context(name, list(words))
        while hasattr(command, "resolve_command") and context._protected_args + context.args:
            rest = [*context._protected_args, *context.args]
            _, command, rest = command.resolve_command(context, rest)
            context = command.make_context(command.name, rest, parent=context)
    except typer.TyperException as error:
        raise AssertionError(f"{place}: {name} {' '.join(words)}: {error}") from None


def _check(block: Block, folder: Path) -> None:
    check = _CHECKS.get(block.language)
    assert check, f"{block.place}: no check for {block.language}; see CONTRIBUTING.md"
    check(block, folder)


def _check_toml(block: Block, folder: Path) -> None:
    """Load the block as the settings of a peer or of a client."""
    file = folder / "settings.toml"
    text = block.text.replace("/etc/dstash", str(folder))
    text = re.sub("the public key of peer[0-9]", KeyPair.generate().public, text)
    for public in re.findall(r'cert_file = "(.*)"', text):
        if not Path(public).exists():
            KeyPair.generate().save(Path(public), Path(f"{public}_secret"))
    (folder / "authorised_keys").touch(0o600)
    (folder / "consul-ca.pem").touch()
    (folder / "consul.token").write_text("secret")
    (folder / "consul.token").chmod(0o600)
    keys = {line.partition("=")[0].strip() for line in block.text.splitlines() if "=" in line}
    model = PeerSettings if keys <= rules_of(PeerSettings).keys() else ClientSettings
    flags = {} if model is ClientSettings or "data_dir" in keys else {"data_dir": "data"}
    file.write_text(text)
    layered(model, file, flags, {})


def _check_json(block: Block, folder: Path) -> None:
    try:
        json.loads(block.text)
    except ValueError:
        for line in block.text.splitlines():  # one value a line
            json.loads(line)


def _check_yaml(block: Block, folder: Path) -> None:
    assert yaml.safe_load(block.text) is not None


def _check_text(block: Block, folder: Path) -> None:
    """Text blocks are pictures or layouts; a command needs a language."""
    typed = re.findall(r"^(?:\$ .*|(?:dstash|dstash-peer|pip|curl) [^|]*)$", block.text, re.M)
    assert not typed, f"{block.place}: is {typed[0]!r} a command?"


def _check_keys(block: Block, folder: Path) -> None:
    """Parse the block as a list of authorised keys."""
    file = folder / "authorised_keys"
    file.write_text(block.text)
    assert len(read_authority(file)) > 0, block.place


_CHECKS: Final = {
    "json": _check_json,
    "keys": _check_keys,
    "text": _check_text,
    "toml": _check_toml,
    "yaml": _check_yaml,
}

# -- tests of the tools


def test_every_block_names_its_language() -> None:
    for text in ("```\nls\n```\n", "    indented\n", '```sh never="no"\nls\n```\n'):
        with pytest.raises(ValueError, match=r"x\.md:\d"):
            list(parse("x.md", text))
    (block,) = parse("x.md", 'a\n\n```sh not-run="it needs a daemon"\nls\n```\n')
    assert (block.line, block.why_not_run) == (4, "it needs a daemon")


def test_block_of_unchecked_language_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no check for ruby"):
        _check(Block("x.md", 1, "ruby", "puts 1"), tmp_path)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("sh", "true\nfalse\ntrue"),
        ("sh", "cd nowhere"),
        ("python", "1 / 0"),
        ("python", "len('ab')  # 3"),
        ("output", "something else"),
    ],
)
def test_block_with_wrong_output_fails(language: str, text: str, tmp_path: Path) -> None:
    good = Block("x.md", 1, "sh", "echo this")
    with pytest.raises(AssertionError, match=r"x\.md:9"):
        running.run([good, Block("x.md", 9, language, text)], tmp_path, lambda printed: 0)


def test_output_may_vary_where_marked(tmp_path: Path) -> None:
    page = [Block("x.md", 1, "sh", "echo took 12 ms, 3 peers"), Block("x.md", 3, "output", "")]
    page[1] = Block("x.md", 3, "output", "took ... ms, 3 peers")
    running.run(page, tmp_path, lambda printed: 0)


def test_blocks_share_directory_shell_and_ports(tmp_path: Path) -> None:
    typed = (
        ("sh", "export WORD=127.0.0.1:7000\nmkdir sub\ncd sub\nsleep 60 &"),
        ("python", "import os\nassert os.environ['WORD'] == '127.0.0.1:7777'"),
        ("python", "import os\nos.path.basename(os.getcwd())  # 'sub'"),
        ("sh", "kill %1"),
    )
    page = [Block("x.md", line, *fields) for line, fields in enumerate(typed, start=1)]
    running.run(page, tmp_path, lambda printed: 7777)


@pytest.mark.parametrize(
    "words", ["dstash fetch", "dstash --peer x get i k", "dstash cluster plan", "cat conf/no.toml"]
)
def test_command_that_is_not_run_is_parsed(words: str) -> None:
    with pytest.raises(AssertionError, match=r"x\.md:1"):
        _check_unrun(Block("x.md", 1, "sh", words, "why"))
    _check_unrun(Block("x.md", 1, "sh", "dstash -o json get i k", "why"))


def test_output_is_checked_and_prose_is_not() -> None:
    source = "x = [1]\nfor one in x:\n    one + 1  # 2\nx  # a list\nx  # [1]\n"
    exec(checked(source), {})  # noqa: S102  # the text above
    with pytest.raises(AssertionError, match="line 3"):
        exec(checked(source.replace("# 2", "# 3")), {})  # noqa: S102


def test_pages_tested_elsewhere_exist() -> None:
    for (page, language), test in HELD_ELSEWHERE.items():
        assert (ROOT / test).exists()
        assert any(block.language == language for block in blocks(page)), page
    assert "README.md" in PAGES
