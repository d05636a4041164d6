"""Names of tests: subject, condition, result; and every test that a document names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

#: Beginnings that leave out the subject, or are those of a sentence.
_START: Final = (
    *("a", "an", "the", "that", "those", "this", "these", "it", "its", "not"),
    *("who", "whom", "whose", "what", "which", "nobody", "nothing", "somebody"),
    *("are", "be", "can", "comes", "do", "does", "goes", "has", "have", "may", "was", "were"),
    *("after", "as", "at", "before", "by", "for", "from", "in", "of", "on", "under", "until"),
    *("when", "while", "with", "without"),
)
#: Words of sentences and metaphors; ARCHITECTURE.md has the terms.
_ANYWHERE: Final = (
    *("who", "whom", "whoever", "whatever", "nobody", "somebody", "someone"),
    *("told", "tell", "tells", "says", "trouble", "troubles", "dead_are", "given_up"),
    *("damaged", "cured", "cure", "mended", "healed", "heals", "healing", "buried", "anew"),
    *("early_request", "order_is", "turned_away", "taken_over", "all_the_same"),
)
_FORBIDDEN: Final = re.compile(
    # Functions named is_... are a subject: list them here.
    rf"^test_(({'|'.join(_START)})_|is_(?!key_|live_head_))"
    rf"|_({'|'.join(_ANYWHERE)})(_|$)"
    r"|^Test(A|An|The)[A-Z]"
)
_MAX_LENGTH: Final = 80


@cache
def _names() -> dict[str, str]:
    """Return the paths of all tests and of classes of tests, by their names."""
    found = {}
    for path in sorted(ROOT.glob("tests/**/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if node.name.startswith("test_"):
                    found[node.name] = str(path.relative_to(ROOT))
            elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                found[node.name] = str(path.relative_to(ROOT))
    return found


def fault(name: str) -> str:
    """Return why a test must not have this name, or an empty string."""
    if match := _FORBIDDEN.search(name):
        return f"{match[0].strip('_')!r} is no part of subject, condition and result"
    if len(name) > _MAX_LENGTH:
        return f"{len(name)} characters, allowed are {_MAX_LENGTH}"
    return ""


def test_names_state_subject_and_result() -> None:
    faults = [f"{path}: {name}: {fault(name)}" for name, path in _names().items() if fault(name)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "name",
    [
        *("test_a_put_is_acked", "test_nobody_there", "test_is_taken_again", "TestALogCall"),
        *("test_client_is_told_the_reason", "test_twice" + "_and_again" * 8),
    ],
)
def test_sentence_as_name_is_found(name: str) -> None:
    assert fault(name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_named_in_document_exist(document: Path) -> None:
    text = document.read_text()
    files = {
        path for path in re.findall(r"\btests/[\w/]+\.py\b", text) if not (ROOT / path).is_file()
    }
    named = re.findall(r"`(test_\w+|Test[A-Z]\w+)(?!\.py)\b[^`]*`", text)
    assert files | {name for name in named if name not in _names()} == set()
