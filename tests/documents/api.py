"""Generation of docs/api.md from the docstrings of the public names of ``dstash``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import griffe

_RESULTS: Final = (
    "client.results.BatchResult",
    "client.results.ChangeResult",
    "client.results.Entry",
    "wire.values.Undecodable",
    "types.Level",
    "types.OnError",
    "outcome.Outcome",
)
_LOCKS: Final = (
    "client.registers.locks.Lock",
    "client.registers.locks.Semaphore",
    "client.registers.limiters.Limiter",
    "client.registers.async_locks.AsyncLock",
    "client.registers.async_locks.AsyncSemaphore",
    "client.registers.limiters.AsyncLimiter",
)
#: The documented names, in this order, by the module that defines them.
_PUBLIC: Final = (
    ("Clients", ("client.blocking.Client", "client.asyncio.AsyncClient")),
    ("Administration", ("client.admin.Admin", "client.admin.AsyncAdmin")),
    ("One index", ("client.indexes.index.Index", "client.indexes.async_index.AsyncIndex")),
    ("Locks and limits", _LOCKS),
    ("Results and words", _RESULTS),
    ("Types of your own", ("wire.values.TypeRegistry",)),
)
_HEAD: Final = """\
# The Python API

Made from the docstrings by `make docs`; do not edit it here. All of it is typed, and clean under
`mypy --strict`. Names come from `dstash` itself: `from dstash import Client, TimedOut`.

Every call takes `timeout` in seconds, for the whole call with its retries; reads take `read` and
writes `write`, a level: `one`, `quorum` (the default of the defaults) or `all`. Keys are `str`,
`bytes` or `int`.
"""


def api() -> str:
    """Return the page."""
    package = griffe.load("dstash", docstring_parser="google", resolve_aliases=False)
    parts = [_HEAD]
    for title, names in _PUBLIC:
        parts.append(f"## {title}\n")
        for name in names:
            parts.extend(_class(package[name]))
    parts.extend(_errors(package))
    return "\n".join(parts)


def _class(cls: Any) -> Iterator[str]:
    yield f"### {cls.name}\n"
    yield from _docstring(cls)
    if constants := [
        name for name, it in cls.members.items() if it.is_attribute and name.isupper()
    ]:
        yield "Members: " + ", ".join(f"`{cls.name}.{name}`" for name in constants) + "\n"
    for name, member in _members(cls):
        if name.startswith("_") and name != "__init__":
            continue
        if member.is_function and member.docstring:
            yield f"#### {_heading(cls, member)}\n"
            yield from _docstring(member)
        elif member.is_attribute and member.docstring:
            yield f"#### `{name}`\n"
            yield from _docstring(member)


def _members(cls: Any) -> Iterator[tuple[str, Any]]:
    """Yield the members of a class, those of its base classes in dstash first."""
    yield from cls.inherited_members.items()
    yield from cls.members.items()


def _heading(cls: Any, method: Any) -> str:
    given = ", ".join(_parameter(p) for p in _visible(method))
    is_awaited = "async" in method.labels or _returns_awaitable(cls, method)
    prefix = "await " if is_awaited else ""
    if str(method.returns).startswith("AsyncIterator"):
        prefix = "async for ... in "
    dotted = f"{cls.name}.{method.name}" if "classmethod" in method.labels else method.name
    if "property" in method.labels:
        return f"`{method.name}`"
    return f"`{prefix}{dotted}({given})`"


def _returns_awaitable(cls: Any, method: Any) -> bool:
    """Whether a method that both clients share returns an awaitable in the asyncio client."""
    return cls.name.startswith("Async") and str(method.returns) == "T"


def _visible(method: Any) -> Iterator[Any]:
    starred = False
    for parameter in method.parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is griffe.ParameterKind.keyword_only and not starred:
            starred = True
            yield None
        starred = starred or parameter.kind is griffe.ParameterKind.var_positional
        yield parameter


def _parameter(parameter: Any) -> str:
    if parameter is None:
        return "*"
    stars = {
        griffe.ParameterKind.var_positional: "*",
        griffe.ParameterKind.var_keyword: "**",
    }.get(parameter.kind, "")
    default = "" if stars or parameter.default is None else f"={parameter.default}"
    return f"{stars}{parameter.name}{default}"


def _docstring(documented: Any) -> Iterator[str]:
    if documented.docstring is None:
        return
    for section in documented.docstring.parse("google", warnings=False):
        if section.kind is griffe.DocstringSectionKind.text:
            yield section.value.replace("``", "`") + "\n"
        elif section.kind is griffe.DocstringSectionKind.returns:
            yield f"Returns {' '.join(_text(item) for item in section.value)}\n"
        else:
            yield from _items(section)


def _items(section: Any) -> Iterator[str]:
    kinds = griffe.DocstringSectionKind
    heads = {kinds.raises: "Raises", kinds.parameters: "Arguments", kinds.attributes: "Attributes"}
    yield f"{heads[section.kind]}:\n"
    for item in section.value:
        name = str(item.annotation) if section.kind is kinds.raises else item.name
        names = ", ".join(f"`{part}`" for part in name.strip("()").split(", "))
        yield f"- {names}: {_text(item)}"
    yield ""


def _text(item: Any) -> str:
    return " ".join(item.description.split()).replace("``", "`")


def _errors(package: Any) -> Iterator[str]:
    yield "## Errors\n"
    yield (
        "All of them are a `dstash.DStashError`, from `dstash`. `retryable` says whether "
        "the same call may succeed later; `details` has the same information for programs.\n"
    )
    yield "| error | is a | code | may be retried | when |\n|---|---|---|---|---|"
    for name, error in package["errors"].classes.items():
        if error.is_alias:
            continue
        bases = ", ".join(f"`{base}`" for base in error.bases)
        said = error.docstring.value.splitlines()[0].replace("``", "`")
        yield f"| `{name}` | {bases} | {_of(error, 'code')} | {_retry(package, error)} | {said} |"
    yield ""


def _of(error: Any, name: str) -> str:
    found = error.members.get(name)
    return str(found.value) if found else ""


def _retry(package: Any, error: Any) -> str:
    value = _of(error, "retryable")
    known = package["errors"].classes
    while not value and (base := str(error.bases[0])) in known:
        error = known[base]
        value = _of(error, "retryable")
    return "yes" if value == "True" else "no"
