"""Output that is safe for terminals and never truncated."""

from __future__ import annotations

import pytest

from dstash.cli.console import output


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain ä ☃", "plain ä ☃"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\tb\nc\r", "a\\tb\\nc\\r"),
        ("\u202egnp", "\\u202egnp"),
        (5, "5"),
        (b"\xff", '{"$bytes":"/w=="}'),
        ({"a": None}, '{"a":null}'),
    ],
)
def test_visible_escapes_control_characters(value: object, shown: str) -> None:
    assert output.visible(value) == shown


def test_message_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.message("first\n  second")
    assert capsys.readouterr() == ("", "dstash: first second\n")


def test_table_is_plain_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("key", "value"), [("a", "x" * 300), ("long key", "[bold]y")])
    assert capsys.readouterr().out.splitlines() == [
        "key       value",
        f"a         {'x' * 300}",
        "long key  [bold]y",
    ]


def test_table_is_framed_on_a_terminal_if_it_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output.table(("key",), [("[bold]a",)])
    framed = capsys.readouterr().out
    assert "━" in framed
    assert "[bold]a" in framed
    output.table(("key",), [("x" * 300,)])
    assert capsys.readouterr().out.splitlines()[1] == "x" * 300
