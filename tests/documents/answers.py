"""Comments in Python blocks that state results, as checks.

``client.count("users")  # 3`` fails unless it returns 3. A comment that is not a literal is prose.
"""

from __future__ import annotations

import ast
import io
import tokenize


def checked(source: str) -> str:
    """Return a program that does the same, and fails where a result differs from its comment."""
    expected = _literals(source)
    tree = ast.parse(source)
    for parent in ast.walk(tree):
        for body in (getattr(parent, "body", None), getattr(parent, "orelse", None)):
            if isinstance(body, list):
                body[:] = [_checking(command, expected) for command in body]
    return ast.unparse(ast.fix_missing_locations(tree))


def _literals(source: str) -> dict[int, object]:
    """Return the literals in comments, by line."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            try:
                found[token.start[0]] = ast.literal_eval(token.string.lstrip("# "))
            except (ValueError, SyntaxError):
                continue
    return found


def _checking(statement: ast.stmt, expected: dict[int, object]) -> ast.stmt:
    if not isinstance(statement, ast.Expr) or statement.end_lineno not in expected:
        return statement
    printed = expected[statement.end_lineno]
    template = f"assert (answer := 0) == {printed!r}, f'line {statement.lineno}: {{answer!r}}'"
    check = ast.parse(template).body[0]
    assert isinstance(check, ast.Assert)
    assert isinstance(check.test, ast.Compare)
    assert isinstance(check.test.left, ast.NamedExpr)
    check.test.left.value = statement.value
    return ast.copy_location(check, statement)
