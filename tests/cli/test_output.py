"""Output that is safe for terminals and never truncated."""

from __future__ import annotations

import pytest

from dstash.cli.console import output
from dstash.errors import UsageError
from dstash.wire.keys import Key


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


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("plain ä ☃", "plain ä ☃"),
        ("a\\tb", "a\\tb"),
        (5, "5"),
        ("5", '"5"'),
        (-7, "-7"),
        ("-0", '"-0"'),
        ("007", "007"),
        ("1_000", "1_000"),
        (1 << 63, "9223372036854775808"),
        (b"\x00\xff", "0x00ff"),
        ("0x00ff", '"0x00ff"'),
        ("0x0", "0x0"),
        ("0xAB", "0xAB"),
        ('"5"', '"\\"5\\""'),
        ("a\tb\n\x1b[2J", '"a\\tb\\n\\u001b[2J"'),
        ("\u202egnp", '"\\u202egnp"'),
        (" space", '" space"'),
        ('{"$bytes":"AA=="}', '{"$bytes":"AA=="}'),
    ],
)
def test_key_text_is_read_back(key: Key, shown: str) -> None:
    assert output.key_text(key) == shown
    assert output.parse_key_text(shown) == key
    assert type(output.parse_key_text(shown)) is type(key)


@pytest.mark.parametrize("text", ['"a', '"a" b', '"'])
def test_key_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a JSON string"):
        output.parse_key_text(text)


def test_wrapped_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "some words that are longer than a line"
    monkeypatch.delenv("COLUMNS", raising=False)
    assert output.wrapped(text) == 1
    monkeypatch.setenv("COLUMNS", "20")
    assert output.wrapped(text) == 2
    assert capsys.readouterr().out.splitlines() == [
        text,
        "some words that are",
        "  longer than a line",
    ]


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
