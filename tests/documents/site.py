"""Collects the pages of the documentation site in ``.cache/site``, for mkdocs: ``make site``.

The pages link to each other and to files of the repository. mkdocs does not resolve links
to folders, so each folder gets a page that lists its files.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = ROOT / ".cache" / "site"
_FOLDERS = ("docs", "conf", "examples")
_LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")
#: The part of an info string that is for the tests only.
_NOTE = re.compile(r'^( *```\w+) not-run="[^"]*"$', re.MULTILINE)


def collect(target: Path = TARGET) -> None:
    """Write all pages, and the files that they link to, below ``target``."""
    shutil.rmtree(target, ignore_errors=True)
    for folder in _FOLDERS:
        shutil.copytree(
            ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "LICENSE", target)
    for page in ROOT.glob("*.md"):
        shutil.copy(page, target / ("index.md" if page.name == "README.md" else page.name))
    for folder in _folders(target):
        _write_list(folder)
    for page in target.rglob("*.md"):
        _rewrite(page)


def _folders(target: Path) -> list[Path]:
    found = [folder for folder in target.rglob("*") if folder.is_dir()]
    return [folder for folder in found if folder != target / "docs"]


def _write_list(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    lines = [f"# {folder.name}", "", *(f"- [{name}]({name})" for name in names)]
    (folder / "index.md").write_text("\n".join(lines) + "\n")


def _rewrite(page: Path) -> None:
    def led_to_list(link: re.Match[str]) -> str:
        is_folder = (page.parent / link[1]).is_dir()
        return f"]({link[1].rstrip('/')}/index.md)" if is_folder else link[0]

    text = _LINK.sub(led_to_list, page.read_text())
    page.write_text(_NOTE.sub(r"\1", text).replace("README.md", "index.md"))


if __name__ == "__main__":
    collect()
