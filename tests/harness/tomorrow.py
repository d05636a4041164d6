"""``python -P tests/harness/tomorrow.py dstash-peer|dstash ...``: the next version of dstash.

It also supports protocol version 3, and its messages and topology have additional fields. When it
ends, it prints the protocol versions of the requests that it received. There is no such version
yet: it runs today's modules with edits that simulate it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Final

#: By module, today's text and its replacement.
EDITS: Final = {
    "dstash.wire.protocol": (("HIGHEST_PROTOCOL: Final = 2", "HIGHEST_PROTOCOL: Final = 3"),),
    "dstash.wire.messages": (
        (
            '    payloads: Frame\n    replaces: bytes = rarely_set(b"")\n',
            '{}    tenant: str = "default"\n',
        ),
        ('    unsure: bytes = rarely_set(b"")\n', "{}    took_us: int = 5\n"),
    ),
    "dstash.wire.envelope": (
        ("    values = read_fields(", "    _note(protocol)\n{}"),
        (
            "def decode(",
            "_heard = set()\n\n\ndef _note(protocol):\n    _heard.add(protocol)\n\n\n{}",
        ),
    ),
    "dstash.cluster.topology.topology": (('    plain: str = ""\n', '{}    rack: str = "r1"\n'),),
    "dstash.about": ((' = version("dstash")', '{} + ".next"'),),
}


class Tomorrow(SourceFileLoader):
    """Loads a module with the edits."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the edited source."""
        source = self.get_source(fullname) or ""
        for today, tomorrow in EDITS[fullname]:
            if today not in source:
                raise AssertionError(f"{today!r} is not in {fullname} any more")
            source = source.replace(today, tomorrow.replace("{}", today))
        code: CodeType = compile(source, self.path, "exec", dont_inherit=True)
        return code


class Finder(MetaPathFinder):
    """Finds the edited modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of an edited module; None for any other."""
        spec = PathFinder.find_spec(fullname, path) if fullname in EDITS else None
        if spec is not None and spec.origin is not None:
            spec.loader = Tomorrow(fullname, spec.origin)
        return spec


def main() -> None:
    """Run the program that the command line names."""
    sys.meta_path.insert(0, Finder())
    from dstash.cli.main import main as dstash
    from dstash.peer.main import main as dstash_peer
    from dstash.wire import envelope

    del sys.argv[0]
    try:
        {"dstash": dstash, "dstash-peer": dstash_peer}[sys.argv[0]]()
    finally:
        sys.stderr.write(f"heard versions {sorted(envelope._heard)}\n")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
