"""Words that must not return: old names, and English that has to be read twice.

ARCHITECTURE.md has the glossary; it decides which term is used. This test reads every document,
docstring, comment, message and name.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

#: What to write instead, by what must not be written. Matches whole words, in any case.
INSTEAD: Final = {
    r"nobody|no-one|no one": "name the subject: 'no peer', 'no client'",
    r"somebody|someone|whoever|whomever": "name the subject: 'a client', 'the peer that ...'",
    r"anew": "again",
    r"beside": "next to, in addition to",
    r"under way": "running, in progress",
    r"bury|buries|buried|burying|bury_\w+": "drop, collect; tombstone GC; gc_interval, gc_grace",
    r"mend|mends|mended|mending": "repair",
    r"heal|heals|healer|healed|healing|heal_rate": "repair, maintenance; repair_rate",
    r"vacate|vacates|vacated|vacating": "clean up",
    r"uneven|even_all": "unreconciled, reconcile_horizons",
    r"holdings": "local partitions",
    r"recollected": "freshness_confirmed",
    r"doorkeeper": "ZapHandler",
    r"keepers?": "membership agent",
    r"slab|slabs": "batch",
    r"tainted": "indeterminate",
    r"thins_out": "survivors_lack_quorum",
    r"take_turns": "use_time_slice",
    r"(take|takes|took|by|in) turns": "alternate, alternately",
    r"whom|whomever": "name the subject: 'the members that ...'",
    r"whatever": "regardless of, for any",
    r"told": "reported, sent, informed",
    r"all the same": "nevertheless, still",
    r"for good": "permanently",
    r"(go|goes|going|gone|went) by": "use, follow",
    r"(go|goes|going|went) on": "continue, succeed",
    r"(give|gives|gave) way": "lose to, yield to",
    r"(hold|holds|held) up": "delay, block",
    r"(make|makes|made) up for": "compensate for, replace",
    r"(stand|stands|stood) for": "mean, represent",
    r"(say|says|said) nothing": "be silent, have no effect; name what is missing",
    r"in hand": "accepted, waiting",
    r"doubt|doubts|doubtful|in_doubt": "unconfirmed, indeterminate",
    r"damage|damages|damage_of": "corruption, corrupt",
    r"orderacks|topologyorder|by order of|(is|are) ordered, but": "request",
    r"(an|one|another|each|executed) order (to|about|has|that waives)": "request",
    r"seconds_since_turn|(a|one) turn of|(a|one) turn works": "iteration, tick",
    r"(tell|tells) (of|whether)": "return whether, say whether",
    r"turned away": "rejected as busy",
    r"the dead": "records that are dead, members that are down",
    r"mortal|mortals": "expirable",
    r"misfortune|misfortunes": "fault",
    r"tellinglookup": "CoalescedLookup",
    r"for one in|, one in|lambda one": "a variable named after the element",
}

#: Allowed uses of a word: (path, word as matched) -> reason.
EXCEPTIONS: Final[dict[tuple[str, str], str]] = {
    ("tests/simulation/faults/disks.py", "damage"): "a kind of fault; seeds.txt names it",
    ("tests/simulation/planted/refusals_as_acks.py", "damage"): "the same kind of fault",
    ("tests/simulation/profiles/clusters.py", "damage"): "the same kind of fault",
    ("dstash/config/problems.py", "bury_interval"): "the hint for a setting that was renamed",
    ("dstash/config/problems.py", "bury_lag"): "the hint for a setting that was renamed",
    ("dstash/config/problems.py", "heal_rate"): "the hint for a setting that was renamed",
    ("tests/test_config.py", "bury_interval"): "tests the hint",
    ("tests/test_config.py", "bury_lag"): "tests the hint",
    ("tests/test_config.py", "heal_rate"): "tests the hint",
}

#: Files that are not prose or code of dstash, and those with lists of words.
_SKIPPED: Final = re.compile(
    r"\.(png|svg|txt|lock)$|^LICENSE$|^tests/documents/test_(names|words)\.py$|^\.git-blame-ignore-revs$"
)


@cache
def _texts() -> list[tuple[str, str]]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [path for path in listed.stdout.split("\0") if path and not _SKIPPED.search(path)]
    return [(path, (ROOT / path).read_text()) for path in paths if (ROOT / path).is_file()]


@cache
def _all_found() -> dict[str, list[str]]:
    """Return where each pattern was found: all of them in one pass, which takes two seconds."""
    patterns = list(INSTEAD)
    alternatives = "|".join(f"(?P<p{place}>{each})" for place, each in enumerate(patterns))
    words = re.compile(rf"(?<![A-Za-z0-9_])(?:{alternatives})(?![A-Za-z0-9_])", re.IGNORECASE)
    found: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    for path, text in _texts():
        for number, line in enumerate(text.splitlines() if words.search(text) else (), 1):
            for match in words.finditer(line):
                if (path, match[0].lower()) not in EXCEPTIONS and match.lastgroup is not None:
                    pattern = patterns[int(match.lastgroup[1:])]
                    found[pattern].append(f"{path}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("pattern", INSTEAD)
def test_old_word_does_not_return(pattern: str) -> None:
    found = _all_found()[pattern]
    assert not found, f"write {INSTEAD[pattern]!r} instead:\n" + "\n".join(found)


def test_every_exception_is_needed() -> None:
    texts = dict(_texts())
    unused = [
        (path, word)
        for path, word in EXCEPTIONS
        if not re.search(rf"(?i)\b{re.escape(word)}\b", texts.get(path, ""))
    ]
    assert not unused
