"""The start of a command, before its code is loaded, and its end.

Loading takes up to a second. Ctrl-C in that time ends the process without a traceback; so does
Ctrl-C while the interpreter ends. A standard stream that the caller has closed is replaced before a
socket can take its descriptor number and receive its data (gnulib's ``stdopen`` is the model). If
the extra of a command is not installed, one line says so.
"""

from __future__ import annotations

import os
import sys

#: stdin and stdout are opened in the wrong direction, so that using them is an error: data must
#: not be lost silently. Messages on stderr may be.
_MISSING = (
    ("stdin", os.O_WRONLY, "r"),
    ("stdout", os.O_RDONLY, "w"),
    ("stderr", os.O_WRONLY, "w"),
)
#: What a shell reports for a program that Ctrl-C has ended.
_INTERRUPTED = 130


def launch(module: str, *, command: str, extra: str, packages: tuple[str, ...]) -> None:
    """Import a module and run its ``main``.

    Args:
        module: the module of the command.
        command: the name of the command, for messages.
        extra: the extra of dstash that installs ``packages``.
        packages: the packages that the command needs and the client does not.
    """
    # The module without the enumerations of ``signal``, which take milliseconds to import.
    import _signal as signal  # type: ignore[import-not-found]  # it has no stubs

    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:  # otherwise the shell ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _use_utf8()
    _open_missing_streams()
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            sys.exit(
                f"{command}: package {package} is not installed; run: pip install 'dstash[{extra}]'"
            )
    _import_structlog()
    from importlib import import_module

    run = import_module(module).main
    if on_interrupt is not signal.default_int_handler:
        run()
        return
    try:
        try:
            signal.signal(signal.SIGINT, on_interrupt)
            run()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.exit(_INTERRUPTED)


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode if the locale has another encoding.

    So arguments, stdin and file names have the same meaning in every locale.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  # our own command


def _open_missing_streams() -> None:
    for name, flags, mode in _MISSING:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, flags), mode))  # noqa: SIM115  # stays open as the stream


def _import_structlog() -> None:
    """Import structlog without rich.

    structlog imports rich, if installed, for a traceback format that dstash does not use. That
    takes a seventh of the start of a peer. Commands that print tables import rich themselves.
    """
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import structlog  # noqa: F401  # its import is its use
    finally:
        del sys.modules["rich"]
