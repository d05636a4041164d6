"""The line editor of ``dstash shell``: history and completion."""

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

#: A file next to the directories of clusters.
_HISTORY: Final = ".shell_history"
#: Short, because the user waits after pressing the tab key.
_STATUS_TIMEOUT_S: Final = 1.0


def line_editor(root: Any, kept: Invocation) -> PromptSession[str]:
    """Return a prompt for lines. All shells of a user share one history."""
    return PromptSession(
        completer=CommandCompleter(root, kept),
        complete_while_typing=False,
        history=_history(state_dir(_HISTORY)),
        auto_suggest=AutoSuggestFromHistory(),
    )


class PrivateHistory(FileHistory):
    """A history file for its owner only. A line that begins with a space is not kept."""

    def store_string(self, string: str) -> None:
        """Add a line to the file."""
        if not string.startswith(" "):
            super().store_string(string)


def _history(file: Path) -> History:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError:
        return InMemoryHistory()  # the shell works without a history file
    return PrivateHistory(file)


class CommandCompleter(Completer):
    """Offers commands, their options, and the ids of peers.

    Args:
        root: the top-level command.
        kept: the shell's invocation, whose client lists the peers.
    """

    def __init__(self, root: Any, kept: Invocation) -> None:
        self._root = root
        self._kept = kept

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield the completions of the last word."""
        text = document.text_before_cursor
        try:
            words = shlex.split(text)
        except ValueError:
            return  # inside quotes
        prefix = "" if not text or text[-1].isspace() else words.pop()
        for offer, description in self._offers(words, prefix):
            if offer.startswith(prefix):
                yield Completion(offer, -len(prefix), display_meta=description)

    def _offers(self, words: list[str], prefix: str) -> Iterator[tuple[str, str]]:
        command, arguments = self._root, list[str]()
        for word in words:
            below = getattr(command, "commands", {}).get(word)
            command, arguments = (below, []) if below else (command, [*arguments, word])
        if hasattr(command, "commands"):
            for name, below in command.commands.items():
                yield name, below.get_short_help_str()
            yield from _SHELL_COMMANDS if command is self._root else ()
        elif prefix.startswith("-"):
            for parameter in command.params:
                if getattr(parameter, "hidden", False):
                    continue
                yield from ((name, parameter.help or "") for name in parameter.opts)
        elif any(parameter.name in _PEER_ARGUMENTS for parameter in command.params):
            yield from self._peers()

    def _peers(self) -> Iterator[tuple[str, str]]:
        try:
            with self._kept.client() as client:
                status = client.status(timeout=_STATUS_TIMEOUT_S)
        except DStashError:
            return
        for member in status["members"]:
            yield member["id"], member["state"]
        for candidate in status["candidates"]:
            yield candidate, "waits to be added"


#: Names of the arguments that are ids of peers.
_PEER_ARGUMENTS: Final = ("peers", "old", "new")
_SHELL_COMMANDS: Final = (("help", "List the commands."), ("exit", "End the shell."))
