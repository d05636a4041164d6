"""Secrets that peers store but cannot read: envelope encryption, and rotation of the master key.

    pip install cryptography
    dstash dev up && python examples/key_management.py

Each secret is encrypted with its own key (AES-256-GCM), which is wrapped with a master key that
never leaves the program. A new master key rewraps only the small keys; the secrets stay unchanged.
Keep master keys in an HSM, a KMS, or a file that only this program reads.

Secrets and wrapped keys are two indexes, and each stored secret has a key with a new id. So
rotation never overwrites a secret that was stored meanwhile, which matters because the later write
wins. Deleting the key of a secret makes it unreadable, also in backups of the index of secrets.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dstash import Client

_NONCE: Final = 12


class Damaged(Exception):
    """The stored secret was not sealed with this key under this name."""


class Vault:
    """Secrets by name.

    Args:
        client: the caller closes it.
        masters: master keys of 32 bytes by name; the last one encrypts, all of them decrypt.
        index: the secrets; their keys are in ``<index>.keys``.
    """

    def __init__(self, client: Client, masters: Mapping[str, bytes], index: str = "vault") -> None:
        self._client = client
        self._masters = dict(masters)
        self._newest = list(masters)[-1]
        self._index = index
        self._keys = f"{index}.keys"

    def store(self, name: str, secret: bytes) -> None:
        """Store a secret; replace the secret of that name."""
        before = self._client.lookup(self._index, name)
        key_id = uuid.uuid4().hex
        key = AESGCM.generate_key(bit_length=256)
        # The key first, so that no reader finds a secret without its key.
        self._client.put(self._keys, key_id, self._wrap(key, key_id))
        self._client.put(self._index, name, {"key": key_id, "sealed": seal(key, secret, name)})
        if before is not None:
            self._client.delete(self._keys, before["key"])

    def read(self, name: str) -> bytes:
        """Return a secret.

        Raises:
            KeyError: there is no secret of that name, or no master key for it.
            Damaged: the value was changed or moved to another name.
        """
        for _ in range(2):  # again, in case the secret is being replaced
            envelope = self._client.lookup(self._index, name)
            if envelope is None:
                raise KeyError(name)
            wrapped = self._client.lookup(self._keys, envelope["key"])
            if wrapped is not None:
                key = self._unwrap(wrapped, envelope["key"])
                return unseal(key, envelope["sealed"], name)
        raise KeyError(f"the key of {name}")

    def shred(self, name: str) -> None:
        """Make a secret unreadable, including all copies of it."""
        envelope = self._client.lookup(self._index, name)
        if envelope is not None:
            self._client.delete(self._keys, envelope["key"])
            self._client.delete(self._index, name)

    def rotate(self) -> int:
        """Wrap all keys with the newest master key; return how many were rewrapped.

        No program may shred secrets at the same time: a key that is deleted after it was read here
        would come back. A program that began earlier may still store secrets with the old master
        key. So before you destroy it, rotate again after the last of these programs has ended.
        """
        found = self._client.batch_lookup(self._keys, list(self._client.keys(self._keys)))
        old = [
            (key_id, self._unwrap(wrapped, key_id))
            for key_id, wrapped in found.items()
            if wrapped["master"] != self._newest
        ]
        rewrapped = {key_id: self._wrap(key, key_id) for key_id, key in old}
        self._client.batch_put(self._keys, rewrapped)
        return len(rewrapped)

    def _wrap(self, key: bytes, key_id: str) -> dict[str, str | bytes]:
        sealed = seal(self._masters[self._newest], key, key_id)
        return {"master": self._newest, "sealed": sealed}

    def _unwrap(self, wrapped: Mapping[str, str | bytes], key_id: str) -> bytes:
        return unseal(self._masters[str(wrapped["master"])], bytes(wrapped["sealed"]), key_id)


def seal(key: bytes, secret: bytes, name: str) -> bytes:
    """Encrypt; the result opens only with the same key and name."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, secret, name.encode())


def unseal(key: bytes, sealed: bytes, name: str) -> bytes:
    """Decrypt the result of ``seal``."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], name.encode())
    except InvalidTag:
        raise Damaged(f"{name}: not what was sealed") from None


def main() -> None:
    """Store secrets, rotate the master key, shred a secret, and detect a forgery."""
    masters = {"2024": AESGCM.generate_key(256)}
    with Client() as client:
        vault = Vault(client, masters)
        vault.store("database", b"correct horse")
        vault.store("mail", b"battery staple")
        masters["2025"] = AESGCM.generate_key(256)
        rotated = Vault(client, masters).rotate()
        vault = Vault(client, {"2025": masters["2025"]})  # without the old master key
        same = vault.read("database") == b"correct horse"
        client.put("vault", "mail", client.lookup("vault", "database"))  # a forger
        try:
            vault.read("mail")
            noticed = False
        except Damaged:
            noticed = True
        vault.shred("database")
        shredded = not client.exists("vault", "database")
    print(f"{rotated} keys rotated, {same=}, {noticed=}, {shredded=}")


if __name__ == "__main__":
    main()
