"""Accounts with unique user names, and a rename that cannot lose or double a name.

    dstash dev up && python examples/unique_names.py

Names are keys of an index that begins with @, so ``add`` decides between two people who want the
same name.
"""

from __future__ import annotations

import sys
import uuid

from dstash import Client, Conflict, DStashError

_NAMES = "@names"
_ACCOUNTS = "@accounts"


class NameTaken(Exception):
    """Another account has the name."""


def register(client: Client, name: str) -> str:
    """Create an account with a name; return its id."""
    account = uuid.uuid4().hex
    _claim(client, name, account)
    client.add(_ACCOUNTS, account, {"name": name})
    return account


def rename(client: Client, account: str, name: str) -> None:
    """Give an account another name: claim it, switch to it, release the old name."""
    while True:
        entry = client.lookup_entry(_ACCOUNTS, account)
        if entry is None:
            raise KeyError(account)
        old = entry.value["name"]
        if old == name:
            return
        _claim(client, name, account)
        try:
            client.compare_and_set(_ACCOUNTS, account, {**entry.value, "name": name}, entry.version)
        except Conflict:
            _release(client, name, account)
            continue  # another rename of this account came first
        _release(client, old, account)
        return


def _claim(client: Client, name: str, account: str) -> None:
    if not client.add(_NAMES, name, account) and client.lookup(_NAMES, name) != account:
        raise NameTaken(name)


def _release(client: Client, name: str, account: str) -> None:
    entry = client.lookup_entry(_NAMES, name)
    if entry is not None and entry.value == account:
        client.delete(_NAMES, name, version=entry.version)


def main() -> None:
    """Register two accounts that want one name, and rename the first."""
    end = uuid.uuid4().hex[:8]  # so that the example can run again
    with Client() as client:
        first = register(client, f"ada-{end}")
        try:
            register(client, f"ada-{end}")
        except NameTaken:
            print("the name is taken")
        rename(client, first, f"countess-{end}")
        second = register(client, f"ada-{end}")
        names = [client.lookup(_ACCOUNTS, account)["name"] for account in (first, second)]
    print([name.removesuffix(f"-{end}") for name in names])


if __name__ == "__main__":
    try:
        main()
    except DStashError as error:
        sys.exit(f"{type(error).__name__}: {error}")
