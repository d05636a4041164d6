"""Addresses of clusters: ``dstash://host:port,host:port/?setting=value&setting=value``."""

from __future__ import annotations

from typing import Any, Final

SCHEME: Final = "dstash://"
_FORM: Final = f"allowed is {SCHEME}host:port,host:port/?setting=value&setting=value"


def address_in(peers: Any) -> str | None:
    """Return the address that is given as ``peers``, alone or in a list; None if there is none.

    Raises:
        ValueError: it is not the only element of the list.
    """
    parts = [peers] if isinstance(peers, str) else peers
    if not isinstance(parts, list | tuple):
        return None
    found = [part for part in parts if isinstance(part, str) and part.strip().startswith(SCHEME)]
    if found and len(parts) > 1:
        raise ValueError(f"allowed is one {SCHEME} address, with several peers in it")
    return found[0].strip() if found else None


def settings_in(address: str) -> dict[str, Any]:
    """Return the settings in an address: ``peers``, if it has any, and those of its query.

    Raises:
        ValueError: the address is malformed, or has a setting twice.
    """
    from urllib.parse import parse_qsl  # most clients have no such address

    places, mark, query = address.removeprefix(SCHEME).partition("?")
    places = places.removesuffix("/")
    if set(places) & set("/@#") or "#" in query:
        raise ValueError(_FORM)
    try:
        pairs = parse_qsl(query, strict_parsing=bool(query), keep_blank_values=True)
    except ValueError:
        raise ValueError(_FORM) from None
    settings: dict[str, Any] = {"peers": places} if places else {}
    for key, value in pairs:
        if key in settings:
            raise ValueError(f"{key} must appear in it only once")
        settings[key] = value
    if not settings or (mark and not query):
        raise ValueError(_FORM)
    return settings
