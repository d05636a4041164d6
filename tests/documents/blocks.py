"""The code blocks of the documents, and their info strings.

CONTRIBUTING.md has the convention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt

ROOT: Final = Path(__file__).resolve().parent.parent.parent

#: Blocks that a separate test runs, which names the page: (page, language) -> test.
HELD_ELSEWHERE: Final = {
    ("docs/operations.md", "bash"): "tests/integration/test_operations.py",
    ("docs/backup.md", "bash"): "tests/backup/test_page.py",
    ("docs/security.md", "sh"): "tests/security/test_changing.py",
    ("docs/security.md", "hcl"): "tests/security/test_consul.py",
    ("docs/cli.md", "usage"): "tests/documents/test_reference.py",
    ("docs/protocol.md", "frames"): "tests/wire/test_protocol.py",
}

#: A language, optionally a name with a meaning in it, optionally why it is not run.
_INFO: Final = re.compile(r'^([a-z]+)(?: [A-Z]\w*)?(?: not-run="(.+)")?$')


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        line: where its text begins, counted from 1.
        why_not_run: the reason why no test can run it; None if a test can.
    """

    page: str
    line: int
    language: str
    text: str
    why_not_run: str | None = None

    @property
    def place(self) -> str:
        """Its position as ``path:line``."""
        return f"{self.page}:{self.line}"

    @property
    def held_by(self) -> str | None:
        """The separate test that runs it, if there is one."""
        return HELD_ELSEWHERE.get((self.page, self.language))


def pages() -> list[str]:
    """Return every document, relative to the root."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page.

    Raises:
        ValueError: an info string is missing or does not follow the convention.
    """
    return list(parse(page, (ROOT / page).read_text()))


def parse(page: str, text: str) -> Iterator[Block]:
    """Yield the blocks of a Markdown text."""
    for token in MarkdownIt("commonmark").parse(text):
        if token.type not in ("fence", "code_block"):
            continue
        assert token.map is not None
        first = token.map[0] + 1
        if token.type == "code_block":
            raise ValueError(f"{page}:{first}: fence the block, and say what is in it")
        yield _block(page, first + 1, token.info, token.content)


def spans(page: str) -> list[str]:
    """Return the inline code of a page that looks like a command of dstash."""
    text = (ROOT / page).read_text()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    found = [token.content for token in inline if token.type == "code_inline"]
    return [text for text in found if re.match(r"dstash(-peer)? ", text)]


def _block(page: str, line: int, info: str, text: str) -> Block:
    found = _INFO.match(info.strip())
    if found is None:
        raise ValueError(
            f'{page}:{line}: {info!r} is not a language, or a language and not-run="the reason"'
        )
    return Block(page, line, found[1], text, found[2])
