"""``python -m tests.fuzz.guided``: coverage-guided fuzzing of the core.

Needs ``atheris``, which ``make fuzz`` installs. The command line is
libFuzzer's: ``-runs=1000000 folder_for_the_corpus``.
"""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Run until a failure is found, or for the given number of runs."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["dstash"]):
        target = importlib.import_module("tests.fuzz.target")
        mutation = importlib.import_module("tests.fuzz.mutation")
    core = target.Target()

    def hit(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        seeds = mutation.seeds(target.NOW)
        chosen = seeds[provider.ConsumeIntInRange(0, len(seeds) - 1)]
        parts = mutation.frames(chosen, target.EPOCH)
        place = provider.ConsumeIntInRange(0, len(parts) - 1)
        at = provider.ConsumeIntInRange(0, len(parts[place]))
        cut = provider.ConsumeIntInRange(0, 16)
        given = provider.ConsumeBytes(200)
        parts[place] = parts[place][:at] + given + parts[place][at + cut :]
        core.hit(parts)

    atheris.Setup(sys.argv, hit)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
