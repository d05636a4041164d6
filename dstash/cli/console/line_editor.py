"""The line of ``dstash shell`` while it is typed: history, and what the tab key offers."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from dstash.cli.invocation import Invocation
from dstash.config.shared import state_dir
from dstash.errors import DStashError

#: Beside the directories of clusters, none of which can have this name.
_HISTORY: Final = ".shell_history"
#: Whoever presses the tab key waits.
_PATIENCE: Final = 1.0


def line_editor(root: Any, kept: Invocation) -> PromptSession[str]:
    """Return what asks for lines; the history is the user's, over all shells."""
    return PromptSession(
        completer=CommandCompleter(root, kept),
        complete_while_typing=False,
        history=_history(state_dir(_HISTORY)),
        auto_suggest=AutoSuggestFromHistory(),
    )


class PrivateHistory(FileHistory):
    """A file that only its owner reads; a line that begins with a space is not kept."""

    def store_string(self, string: str) -> None:
        """Add a line to the file."""
        if not string.startswith(" "):
            super().store_string(string)


def _history(file: Path) -> History:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError:
        return InMemoryHistory()  # no reason not to work
    return PrivateHistory(file)


class CommandCompleter(Completer):
    """Offers commands, their options, and the ids of peers.

    Args:
        root: the command of which each line is a run.
        kept: whose client knows the peers.
    """

    def __init__(self, root: Any, kept: Invocation) -> None:
        self._root = root
        self._kept = kept

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what the last word may become."""
        text = document.text_before_cursor
        try:
            words = shlex.split(text)
        except ValueError:
            return  # inside quotes
        begun = "" if not text or text[-1].isspace() else words.pop()
        for offer, told in self._offers(words, begun):
            if offer.startswith(begun):
                yield Completion(offer, -len(begun), display_meta=told)

    def _offers(self, words: list[str], begun: str) -> Iterator[tuple[str, str]]:
        command, arguments = self._root, list[str]()
        for word in words:
            below = getattr(command, "commands", {}).get(word)
            command, arguments = (below, []) if below else (command, [*arguments, word])
        if hasattr(command, "commands"):
            for name, below in command.commands.items():
                yield name, below.get_short_help_str()
            yield from _OF_THE_SHELL if command is self._root else ()
        elif begun.startswith("-"):
            for parameter in command.params:
                yield from ((name, parameter.help or "") for name in parameter.opts)
        elif any(one.name in _PEERS for one in command.params):
            yield from self._peers()

    def _peers(self) -> Iterator[tuple[str, str]]:
        try:
            with self._kept.client() as client:
                facts = client.status(timeout=_PATIENCE)
        except DStashError:
            return
        for one in facts["members"]:
            yield one["id"], one["state"]
        for candidate in facts["candidates"]:
            yield candidate, "waits to be let in"


#: Names of the arguments that take peers.
_PEERS: Final = ("peers", "old", "new")
_OF_THE_SHELL: Final = (("help", "List the commands."), ("exit", "End the shell."))
