"""Keys, key files, the list of authorised keys, and the ZAP handler."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dstash.config.fields import is_key
from dstash.errors import ConfigError, Unauthorised
from dstash.peer.admission.authority import _NEEDED, Role, fingerprint, read_authority
from dstash.wire.curve import KeyPair, ZapHandler, load_public
from dstash.wire.messages import AdminRequest, Hello, Lookup, Put
from dstash.wire.registers import Change, Settle
from dstash.wire.replication import Push
from dstash.wire.router import Received, Router
from dstash.wire.shapes import EMPTY, SHAPES
from dstash.wire.sockets import Context, Link, LinkState
from tests.harness.devcluster import InProcess
from tests.harness.waiting import stays_true, wait_until


@contextmanager
def limited_file_size(most: int) -> Iterator[None]:
    """Let writes fail that make a file larger, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    on_excess = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, on_excess)


@pytest.fixture
def pair() -> KeyPair:
    return KeyPair.generate()


class TestKeyFiles:
    def test_key_pair_round_trip(self, tmp_path: Path, pair: KeyPair) -> None:
        cert, key = tmp_path / "a.key", tmp_path / "a.key_secret"
        before = os.umask(0)
        try:
            pair.save(cert, key)
        finally:
            os.umask(before)
        assert KeyPair.load(cert, key) == pair
        assert load_public(key) == load_public(cert) == pair.public
        assert (key.stat().st_mode & 0o777, cert.stat().st_mode & 0o777) == (0o600, 0o644)

    def test_byte_order_mark_and_crlf_are_accepted(self, tmp_path: Path, pair: KeyPair) -> None:
        cert, key = tmp_path / "a.key", tmp_path / "a.key_secret"
        pair.save(cert, key)
        for file in (cert, key):
            file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
        assert KeyPair.load(cert, key) == pair
        listed = tmp_path / "keys"
        listed.write_bytes(f"\ufeff{pair.public} read users\r\n# end\r\n".encode())
        assert read_authority(listed).admits(pair.public)

    def test_save_leaves_no_half_file_on_a_full_disk(self, tmp_path: Path, pair: KeyPair) -> None:
        cert, key = tmp_path / "a.key", tmp_path / "a.key_secret"
        with limited_file_size(10), pytest.raises(ConfigError, match="cannot be written: File too"):
            pair.save(cert, key)
        assert list(tmp_path.iterdir()) == []

    def test_save_overwrites_no_file(self, tmp_path: Path, pair: KeyPair) -> None:
        cert, key = tmp_path / "a.key", tmp_path / "a.key_secret"
        pair.save(cert, key)
        with pytest.raises(ConfigError, match="exists already"):
            KeyPair.generate().save(cert, key)
        assert KeyPair.load(cert, key) == pair

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o666])
    def test_load_refuses_secret_readable_by_other_users(
        self, tmp_path: Path, pair: KeyPair, mode: int
    ) -> None:
        cert, key = tmp_path / "a.key", tmp_path / "a.key_secret"
        pair.save(cert, key)
        key.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            KeyPair.load(cert, key)

    def test_load_refuses_keys_of_different_pairs(self, tmp_path: Path) -> None:
        for name in "ab":
            KeyPair.generate().save(tmp_path / f"{name}.key", tmp_path / f"{name}.key_secret")
        with pytest.raises(ConfigError, match="is not the secret key of"):
            KeyPair.load(tmp_path / "a.key", tmp_path / "b.key_secret")

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"public-key = 5", b'public-key = "x"'])
    def test_load_refuses_malformed_files(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "a.key"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.key"):
            load_public(file)

    def test_repr_omits_secret(self, pair: KeyPair) -> None:
        assert pair.secret not in f"{pair} {pair!r}"

    def test_key_files_are_readable_by_pyzmq(self, tmp_path: Path, pair: KeyPair) -> None:
        from zmq.auth import load_certificate

        pair.save(tmp_path / "a.key", tmp_path / "a.key_secret")
        public, secret = load_certificate(tmp_path / "a.key_secret")
        assert (public, secret) == (pair.public.encode(), pair.secret.encode())

    @pytest.mark.parametrize("text", ["", "x" * 39, "#" * 40, "ü" * 40, " " * 40, "x" * 41])
    def test_is_key_refuses_malformed_keys(self, text: str) -> None:
        assert not is_key(text)


class TestCertCommand:
    def test_cert_new_writes_files_and_prints_public_key(self, tmp_path: Path) -> None:
        here = InProcess(tmp_path)
        printed = here.out("cert", "new", "peer1").strip()
        assert is_key(printed)
        assert printed[0].isalnum()
        pair = KeyPair.load(tmp_path / "peer1.key", tmp_path / "peer1.key_secret")
        assert pair.public == printed == here.out("cert", "show", "peer1.key").strip()

    def test_cert_new_overwrites_no_file(self, tmp_path: Path) -> None:
        here = InProcess(tmp_path)
        here.out("cert", "new", "peer1")
        code, words = here.refusal("cert", "new", "peer1")
        assert (code, "already" in words) == (2, True)
        assert "directory none does not exist" in here.refusal("cert", "new", "none/peer1")[1]


class TestKeyList:
    def write(self, folder: Path, *lines: str) -> Path:
        path = folder / "keys"
        path.write_text("\n".join(lines))
        return path

    def test_key_list_has_roles_and_indexes(self, tmp_path: Path) -> None:
        keys = {name: KeyPair.generate().public for name in ("p", "a", "w", "r")}
        path = self.write(
            tmp_path,
            "# a comment",
            "",
            f"{keys['p']} peer",
            f"  {keys['a']}\tadmin",
            f"{keys['w']} write one two",
            f"{keys['r']} read",
        )
        listed = read_authority(path)
        assert len(listed) == 4
        assert listed.is_peer(keys["p"])
        assert not listed.is_peer(keys["a"])
        listed.check(keys["a"], Put("any", b"", 0, EMPTY, EMPTY))
        listed.check(keys["w"], Put("two", b"", 0, EMPTY, EMPTY))
        listed.check(keys["r"], Lookup("any", 1, EMPTY))
        for user, message in [
            (None, Hello()),
            ("", Hello()),
            (KeyPair.generate().public, Hello()),
            (keys["w"], Put("three", b"", 0, EMPTY, EMPTY)),
            (keys["r"], Put("any", b"", 0, EMPTY, EMPTY)),
            (keys["p"], Put("any", b"", 0, EMPTY, EMPTY)),
            (keys["w"], AdminRequest("pause", [])),
            (keys["a"], Push(EMPTY, EMPTY)),
        ]:
            with pytest.raises(Unauthorised):
                listed.check(user, message)

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("short peer", "line 2: the line does not begin with a public key"),
            ("{key}", "line 2: the role is missing; allowed are peer | admin | write | read"),
            ("{key} root", "line 2: the role is 'root'"),
            ("{key} PEER", "line 2: the role is 'PEER'"),
            ("{key} admin index", "line 2: role admin cannot be limited"),
            ("{key} read " + "x" * 65, "line 2: index name has 65 bytes"),
            ("#{key} read", "line 2: the line does not begin with a public key"),
            ("{other} read", "line 2: the key appears twice"),
        ],
    )
    def test_error_in_key_list_names_its_line(self, tmp_path: Path, line: str, words: str) -> None:
        key, other = KeyPair.generate().public, KeyPair.generate().public
        path = self.write(tmp_path, f"{other} read", line.format(key=key, other=other))
        with pytest.raises(ConfigError) as caught:
            read_authority(path)
        assert words in str(caught.value)

    def test_key_list_writable_by_other_users_is_refused(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        path.chmod(0o664)
        with pytest.raises(ConfigError, match="others may write"):
            read_authority(path)

    def test_key_directory_reads_all_files_but_hidden_ones(self, tmp_path: Path) -> None:
        first, second = KeyPair.generate().public, KeyPair.generate().public
        (tmp_path / "a").write_text(f"{first} read")
        (tmp_path / "b").write_text(f"{second} write")
        (tmp_path / ".b.swp").write_text("half a file")
        (tmp_path / "b~").write_text("an old file")
        assert len(read_authority(tmp_path)) == 2
        before = fingerprint(tmp_path)
        (tmp_path / "b").unlink()
        assert fingerprint(tmp_path) != before
        assert not read_authority(tmp_path).admits(second)

    def test_every_request_has_its_roles(self) -> None:
        answers = {
            *("Welcome", "Error", "Pong", "TopologyReply", "Values", "Stored", "Records", "Page"),
            *("StatusReply", "AdminReply", "DigestsReply", "BucketsReply", "VersionsReply"),
            *("CopyReply", "HorizonReply", "SeenReply", "HistoryReply", "ClockReply"),
            *("FloorReleased", "IndexesReply", "Changed"),
        }
        answers |= {"Promised", "Accepted", "PromisesReply", "RegisterFloorsReply"}
        known = {shape.build.__name__ for shape in SHAPES.values()}
        assert {kind.__name__ for kind in _NEEDED} == known - answers
        assert all(roles and roles <= set(Role) for roles in _NEEDED.values())

    def test_read_key_settles_registers_and_changes_none(self) -> None:
        assert _NEEDED[Settle] == {Role.READ, Role.WRITE, Role.ADMIN}
        assert _NEEDED[Change] == {Role.WRITE, Role.ADMIN}


def received(router: Router) -> Received:
    """Return the next message that arrives."""
    message = wait_until(router.receive, 10, "a message arrives")
    assert message is not None
    return message


class TestZapHandler:
    @pytest.fixture
    def context(self, pair: KeyPair) -> Iterator[Context]:
        context = Context(keys=pair)
        yield context
        context.close()

    def is_up(self, client: KeyPair | None, address: str, *, wait: float = 10) -> bool:
        context = Context(keys=client)
        link = Link(context, address, lambda: [b"hello"])
        try:
            wait_until(lambda: link.changes() or link.state.is_final, wait, "news of the link")
            return link.state is LinkState.UP
        finally:
            link.close()
            context.close()

    def test_router_admits_only_listed_key_and_reports_it(
        self, context: Context, pair: KeyPair
    ) -> None:
        friend = KeyPair.generate()
        ZapHandler(context, lambda key: key == friend.public)
        router = Router(context, "tcp://127.0.0.1:*")
        try:
            address = f"{router.address} {pair.public}"
            assert not self.is_up(KeyPair.generate(), address)
            assert self.is_up(friend, address)
            assert received(router).user == friend.public
        finally:
            router.close_after(0)

    def test_router_without_zap_handler_refuses_all(self, context: Context, pair: KeyPair) -> None:
        router = Router(context, "tcp://127.0.0.1:*")
        client = Context(keys=KeyPair.generate())
        link = Link(client, f"{router.address} {pair.public}", lambda: [b"hello"])
        try:
            stays_true(
                lambda: link.changes() is not None and link.state is not LinkState.UP,
                0.5,
                "the door is closed",
            )
            assert router.receive() is None
        finally:
            link.close()
            client.close()
            router.close_after(0)

    def test_failing_zap_handler_refuses_all(self, context: Context, pair: KeyPair) -> None:
        def confused(key: str) -> bool:
            raise RuntimeError("who are you?")

        door = ZapHandler(context, confused)
        router = Router(context, "tcp://127.0.0.1:*")
        try:
            for _ in range(2):
                assert not self.is_up(KeyPair.generate(), f"{router.address} {pair.public}")
            assert door.is_alive
            assert door.refused == 2
        finally:
            router.close_after(0)

    def test_plain_address_reports_no_key(self, context: Context) -> None:
        ZapHandler(context, lambda key: True)
        router = Router(context, "tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
        try:
            assert self.is_up(None, router.plain_address)
            assert received(router).user is None
        finally:
            router.close_after(0)


def test_peer_with_readable_secret_does_not_start(tmp_path: Path, pair: KeyPair) -> None:
    from tests.harness.peers import DSTASH_PEER

    cert, key, listed = tmp_path / "a.key", tmp_path / "a.key_secret", tmp_path / "keys"
    pair.save(cert, key)
    listed.write_text(f"{pair.public} peer\n")
    command = [DSTASH_PEER, str(tmp_path / "d"), "127.0.0.1", "0", "--curve", "--local-dir"]
    command += [str(tmp_path / "m"), "--cert-file", str(cert), "--key-file", str(key)]
    command += ["--authorised-keys", str(listed)]

    def refusal() -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert pair.secret not in done.stderr
        return done.stderr

    key.chmod(0o644)
    assert "chmod 600" in refusal()
    key.chmod(0o600)
    listed.write_text("\n")
    assert "must list this peer's own key" in refusal()
