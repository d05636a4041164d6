"""README.md as an index of packages shows it."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.documents.blocks import ROOT

URL = "https://example.org/dstash"


def page(*arguments: str) -> str:
    """Return what bin/index-page writes."""
    with (ROOT / "README.md").open() as readme:
        command = [sys.executable, str(ROOT / "bin" / "index-page"), *arguments]
        return subprocess.run(
            command, stdin=readme, capture_output=True, text=True, check=True
        ).stdout


def test_page_with_the_url_has_absolute_links_and_images() -> None:
    text = page(f"{URL}.git")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 20
    assert all(target.startswith("https://") for target in targets)
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert f"{URL}/raw/HEAD/docs/picture.svg" in images
    for image in images:
        assert (ROOT / image.removeprefix(f"{URL}/raw/HEAD/")).is_file()
    assert f"git clone {URL} dstash" in text


def test_page_without_a_url_has_no_image_and_no_relative_link() -> None:
    text = page()
    assert "![" not in text
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]+)\)", text))
    labels = re.findall(r"(?<!!)\[([^\]]*)\]\((?!https:)", (ROOT / "README.md").read_text())
    assert {"Python API", "command line"} < set(labels)
    assert all(label in text and f"[{label}]" not in text for label in labels)
    assert "client.batch_put(" in text
