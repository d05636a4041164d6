"""The first lines of a command, so that nothing looks like a crash before its code is loaded.

Loading takes a good part of a second. Ctrl-C in that time just ends the process, as it ends any
other; and a standard stream that the caller has closed is replaced, before a socket takes its
number and gets what was meant for it (gnulib's ``stdopen`` is the model).
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Final

#: Opened the wrong way round, so that using them is an error: data must not get lost unnoticed.
#: Messages may.
_MISSING: Final = (
    ("stdin", os.O_WRONLY, "r"),
    ("stdout", os.O_RDONLY, "w"),
    ("stderr", os.O_WRONLY, "w"),
)


def launch(module: str) -> None:
    """Import a module and run its ``main``."""
    _open_missing_streams()
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:  # it is not where a shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _import_structlog()
    run = import_module(module).main
    signal.signal(signal.SIGINT, on_interrupt)
    run()


def _open_missing_streams() -> None:
    for name, flags, mode in _MISSING:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, flags), mode))  # noqa: SIM115  # stays open as the stream


def _import_structlog() -> None:
    """Import structlog without rich.

    structlog imports rich, if it is there, for a traceback format that dstash does not use: a
    seventh of the start of a peer. Commands that show tables import rich themselves.
    """
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
