"""Coverage of dstash by tests in their own process: a plugin for pytest.

``bin/test`` loads it and prints the figure of a few folders; ``make coverage`` prints a table of
everything. Measured code takes twice as long, so measuring is on only while tests of the folders
run. The processes that tests start are not measured.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest
from coverage import Coverage
from coverage.exceptions import CoverageException

ROOT: Final = Path(__file__).parents[2]

#: What ``bin/test`` measures: the fast tests, each folder for the package that it mirrors.
FOLDERS: Final = ("tests/wire", "tests/store", "tests/cluster/topology")

#: Each process that runs tests leaves a file here.
_RESULTS: Final = ROOT / ".cache" / "coverage"
_CONFIG: Final = str(ROOT / "pyproject.toml")

# It begins before any test is collected, because what imports run counts as well.
_coverage = Coverage(data_file=str(_RESULTS / str(os.getpid())), config_file=_CONFIG)
_coverage.start()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("coverage")
    group.addoption("--covered", nargs="+", default=list(FOLDERS), help="folders of tests")
    group.addoption("--table", action="store_true", help="print the coverage of every module")


class _Covering:
    """Measures in one process, and reports in the process that has the results of all."""

    def __init__(self, config: pytest.Config) -> None:
        self._folders = [str(folder).strip("/") for folder in config.option.covered]
        self._table = bool(config.option.table)
        self._is_worker = hasattr(config, "workerinput")
        self._distributes = not self._is_worker and bool(getattr(config.option, "numprocesses", 0))
        self._is_on = True
        if not self._is_worker:
            shutil.rmtree(_RESULTS, ignore_errors=True)
            _RESULTS.mkdir(parents=True)

    def _switch(self, *, on: bool) -> None:
        if on != self._is_on:
            self._is_on = on
            _coverage.start() if on else _coverage.stop()

    def pytest_sessionstart(self) -> None:
        """Stop in a process that runs no test itself."""
        self._switch(on=not self._distributes)

    def pytest_collection_finish(self) -> None:
        """Stop when everything is imported."""
        self._switch(on=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Measure a test if it is in one of the folders."""
        path = item.path.relative_to(ROOT).as_posix()
        self._switch(on=any(path.startswith(f"{folder}/") for folder in self._folders))
        return (yield)

    def pytest_sessionfinish(self) -> None:
        """Save what was measured."""
        self._switch(on=False)
        if not self._distributes:
            _coverage.save()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the figure; in the process that started the others, after their end."""
        if self._is_worker:
            return
        table = io.StringIO()
        result = Coverage(data_file=str(_RESULTS / "all"), config_file=_CONFIG)
        try:
            result.combine([str(file) for file in _RESULTS.iterdir()])
            total = result.report(file=table, include=None if self._table else self._mirrored())
        except CoverageException as error:  # as when no test of these folders was run
            terminalreporter.write_line(f"coverage: {error}")
            return
        what = "dstash" if self._table else ", ".join(self._packages())
        terminalreporter.write_line(table.getvalue() if self._table else "")
        terminalreporter.write_line(
            f"coverage of {what}, lines and branches: {total:.1f} %, by {', '.join(self._folders)} "
            "alone, without the processes that tests start"
        )

    def _packages(self) -> list[str]:
        """Return the packages that the folders mirror."""
        return [folder.replace("tests", "dstash", 1) for folder in self._folders]

    def _mirrored(self) -> list[str]:
        return [str(ROOT / package / "*") for package in self._packages()]


def pytest_configure(config: pytest.Config) -> None:
    """Begin, in the process that distributes the tests and in those that run them."""
    config.pluginmanager.register(_Covering(config), "covering")
