"""Settings: layers, error messages, and the files under conf/."""

from __future__ import annotations

import re
import tomllib
import typing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dstash.config import (
    LOCK_TOKEN,
    ClientSettings,
    PeerSettings,
    SharedSettings,
    layered,
    load_client,
    load_peer,
    unknown_variables,
)
from dstash.config.client import ClientOptions
from dstash.config.problems import ARGUMENT
from dstash.config.rules import Number, rules_of
from dstash.errors import ConfigError
from dstash.peer.main import app
from dstash.types import Durability, Level

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
CONF = Path(__file__).parent.parent / "conf"


def refusal(load: Any, file: Path | None = None, environ: Any = None, **flags: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(file, flags, environ or {})
    assert "\n" not in str(caught.value)
    return caught.value


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_load_prefers_flag_then_environment_then_file_then_default(tmp_path: Path) -> None:
    text = 'data_dir = "d"\nport = 1\nweight = 1.5\nreplicas = 1\n'
    file = write(tmp_path / "peer.toml", text)
    environ = {"DSTASH_PORT": "2", "DSTASH_WEIGHT": "2.5", "DSTASH_JOIN": ""}
    settings = load_peer(file, {"port": 3, "weight": None}, environ)
    assert (settings.port, settings.weight, settings.replicas) == (3, 2.5, 1)
    assert settings.join == "auto"  # an empty variable counts as not set
    assert settings.durability is Durability.SYNC


def test_layered_records_the_origin_of_each_value(tmp_path: Path) -> None:
    file = write(tmp_path / "peer.toml", 'data_dir = "d"\n\nport = 1\n')
    loaded = layered(PeerSettings, file, {"id": "a"}, {"DSTASH_ZONE": "z"})
    assert loaded.origins == {
        "data_dir": f"{file}, line 1",
        "port": f"{file}, line 3",
        "id": "command line",
        "zone": "DSTASH_ZONE",
    }


def test_load_reads_process_environment_only_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DSTASH_TIMEOUT", "77")
    assert load_client(None, {}, {}).timeout == 5.0
    assert load_client(None, {}).timeout == 77.0


def test_load_reports_every_problem_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "x.toml", 'data_dir = "d"\nport = 70000\nrepicas = 3\n[tls]\na = 1\n')
    error = refusal(load_peer, file, {"DSTASH_DURABILITY": "fast"})
    assert str(error).endswith("(and 3 more)")
    assert error.exit_code == 2
    problems = error.details["problems"]
    assert problems[0] == f"{file}, line 3: unknown key 'repicas'; did you mean 'replicas'?"
    assert problems[1].startswith(f"{file}, line 4: unknown key 'tls'; allowed are advertise,")
    assert problems[2:] == [
        f"{file}, line 2: port is 70000; allowed is a whole number from 0 to 65535",
        "DSTASH_DURABILITY: durability is 'fast'; allowed is sync | interval | none",
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"port": "x"}, "port is 'x'; allowed is a whole number from 0 to 65535"),
        ({"weight": 0}, "weight is 0; allowed is a number above 0 below 1000000"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"insecure": "perhaps"}, "insecure is 'perhaps'; allowed is true or false"),
        ({"data_dir": 5}, "data_dir is 5; allowed is a path"),
        ({"data_dir": ""}, "data_dir is ''; allowed is a path"),
        ({"membership": "etcd"}, "allowed is local | consul"),
        ({"id": "a/b"}, "no slash"),
        ({"cluster": "x" * 65}, "1 to 64 printable"),
        ({"zone": ".."}, "1 to 64 printable"),
        ({"advertise": "host:0"}, "host or host:port"),
        ({"advertise": "host:99999"}, "host or host:port"),
        ({"bind": "tcp://x"}, "an address or a host name"),
        ({"bind": "0.0.0.0"}, "insecure = true"),  # noqa: S104
        ({"bind": "::"}, "insecure = true"),
        ({"bind": "*"}, "insecure = true"),
        ({"bind": "eth0"}, "insecure = true"),
        ({"curve": True}, "curve: needs cert_file"),
        ({"cert_file": "x"}, "cert_file: has no effect without curve = true"),
        ({"authorised_keys": "x"}, "authorised_keys: has no effect"),
        ({"consul": "127.0.0.1:8500"}, "http://host:port"),
        ({"consul": "http://me:secret@x:1"}, "consul_token_file"),
        ({"consul": "http://x:port"}, "http://host:port"),
        ({"consul": "http://x:1/path"}, "http://host:port"),
        ({"otlp_endpoint": "localhost:4318"}, "http://host:port or https://host:port, optionally"),
        ({"otlp_endpoint": "http://x:1?y"}, "optionally with a path"),
        ({"otlp_endpoint": "http://me:secret@x:1"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"consul_key_file": "x"}, "consul_key_file: needs consul_cert_file"),
        ({"consul_ca_file": "x"}, "https://"),
        ({"drain_seconds": float("inf")}, "drain_seconds is inf"),
        ({"replicas": 0}, "from 1 to 64"),
        ({"max_bytes_in_hand": 5}, "from 33554432"),
        ({"data_dri": "x"}, "unknown key 'data_dri'; did you mean 'data_dir'?"),
        ({"port": True}, "port is True; allowed is a whole number"),
        ({"port": 1.5}, "port is 1.5; allowed is a whole number"),
        ({"port": "1.5"}, "port is '1.5'; allowed is a whole number"),
        ({"weight": "1" * 5000}, "allowed is a number above 0 below 1000000"),
        ({"cluster": 5}, "cluster is 5; allowed is a text"),
    ],
)
def test_load_peer_states_allowed_values_when_value_is_wrong(
    flags: dict[str, Any], words: str
) -> None:
    assert words in str(refusal(load_peer, **{"data_dir": "d"} | flags))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"timeout": 0}, "timeout is 0; allowed is a number above 0"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"read": "two"}, "read is 'two'; allowed is one | quorum | all"),
        ({"peers": "localhost"}, "tcp://host:port"),
        ({"peers": ["tcp://h:70000"]}, "tcp://host:port"),
        ({"peers": 5}, "allowed is a list of texts"),
        ({"peers": ["a:1", 5]}, "peers is ['a:1', 5]; allowed is a list of texts"),
        ({"peers": ["a:1", "b"]}, "peers is 'b'; allowed is tcp://host:port"),
        ({"timeout": [5]}, "timeout is [5]; allowed is a number above 0"),
        ({"curve": True}, "needs cert_file"),
        ({"server_key": KEY}, "has no effect without curve"),
        ({"server_key": KEY[1:]}, "public keys of 40 characters"),
        ({"server_key": "#" * 40}, "public keys of 40 characters"),
    ],
)
def test_load_client_states_allowed_values_when_value_is_wrong(
    flags: dict[str, Any], words: str
) -> None:
    assert words in str(refusal(load_client, **flags))


def test_otlp_endpoint_may_have_a_path() -> None:
    flags = {"data_dir": "d", "otlp_endpoint": "https://x.example.org/otlp/"}
    assert load_peer(None, flags, {}).otlp_endpoint == "https://x.example.org/otlp"


def test_load_peer_requires_data_dir() -> None:
    assert "data_dir is required" in str(refusal(load_peer))


def test_peer_refuses_an_empty_data_dir_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match="command line: data_dir is ''; allowed is a path"):
        app([""], prog_name="dstash-peer", standalone_mode=False)


def test_bind_needs_insecure_unless_loopback_or_encrypted(tmp_path: Path) -> None:
    for bind in ("127.0.0.1", "127.0.0.9", "::1", "[::1]", "localhost"):
        load_peer(None, {"data_dir": "d", "bind": bind}, {})
    key = write(tmp_path / "key", "")
    keys = dict.fromkeys(("cert_file", "key_file", "authorised_keys"), key)
    curve: dict[str, Any] = {"data_dir": "d", "bind": "0.0.0.0", "curve": True}  # noqa: S104
    load_peer(None, curve | keys, {})
    error = refusal(load_peer, **curve | keys | {"key_file": tmp_path / "missing"})
    assert "which is not a readable file" in str(error)
    load_peer(None, curve | keys | {"authorised_keys": tmp_path}, {})
    assert "insecure" in str(refusal(load_peer, **curve | keys | {"plain_port": 5100}))
    load_peer(None, curve | keys | {"plain_port": 5100, "insecure": True}, {})
    assert "plain_port: has no effect" in str(refusal(load_peer, data_dir="d", plain_port=5100))


def test_peers_are_a_list_or_comma_separated() -> None:
    environ = {"DSTASH_PEERS": "a:1, tcp://b:2,,[::1]:3"}
    assert load_client(None, {}, environ).peers == ["tcp://a:1", "tcp://b:2", "tcp://[::1]:3"]
    assert load_client(None, {"peers": ["a:1"]}, environ).peers == ["tcp://a:1"]


@pytest.mark.parametrize(
    ("given", "value"),
    [("TRUE", True), ("on", True), (1, True), ("no", False), ("0", False), (False, False)],
)
def test_boolean_setting_takes_words_and_numbers(given: Any, value: bool) -> None:
    assert load_client(None, {"tracing": given}, {}).tracing is value


def test_number_setting_takes_text_and_keeps_large_integers_exact() -> None:
    flags = {"data_dir": "d", "hint_limit": str(2**53 + 1), "port": 5001.0, "weight": " 2 "}
    settings = load_peer(None, flags, {})
    assert (settings.hint_limit, settings.port, settings.weight) == (2**53 + 1, 5001, 2.0)
    assert str(Number(float, most=5)) == "a number up to 5"


def test_variable_names_are_not_case_sensitive() -> None:
    assert load_client(None, {}, {"dstash_Timeout": "3"}).timeout == 3.0


def test_problem_of_argument_names_the_argument() -> None:
    with pytest.raises(ConfigError) as caught:
        load_client(None, {"timeout": 0, "timeot": 1}, {}, ARGUMENT)
    assert caught.value.details["problems"] == [
        "argument 'timeot' is unknown; did you mean 'timeout'?",
        "argument timeout is 0; allowed is a number above 0 up to 3155760000",
    ]
    with pytest.raises(ConfigError, match=r"^argument curve: needs cert_file as well$") as caught:
        load_client(None, {"curve": True}, {}, ARGUMENT)
    assert caught.value.__suppress_context__


def test_address_of_cluster_sets_peers_and_other_settings() -> None:
    address = "dstash://a:1,[::1]:2/?cluster=blue&timeout=2.5&read=one"
    for peers in (address, [address], f" {address} "):
        settings = load_client(None, {"peers": peers}, {})
        assert settings.peers == ["tcp://a:1", "tcp://[::1]:2"]
        assert (settings.cluster, settings.timeout, settings.read) == ("blue", 2.5, Level.ONE)
    assert load_client(None, {}, {"DSTASH_PEERS": address}).cluster == "blue"
    consul = load_client(None, {"peers": "dstash:///?consul=http%3A%2F%2Fc%3A8500"}, {})
    assert (consul.peers, consul.consul) == ([], "http://c:8500")


def test_settings_of_an_address_rank_as_the_layer_that_has_it(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'peers = "dstash://a:1/?timeout=1&zone=z"\ntimeout = 9\n')
    loaded = layered(ClientSettings, file, {}, {"DSTASH_ZONE": "y"})
    assert (loaded.settings.timeout, loaded.settings.zone) == (9.0, "y")
    over = {"DSTASH_PEERS": "dstash://b:1/?timeout=2&read=one"}
    loaded = layered(ClientSettings, file, {"read": "all"}, over)
    assert loaded.settings.peers == ["tcp://b:1"]
    assert (loaded.settings.timeout, loaded.settings.read) == (2.0, Level.ALL)
    assert loaded.settings.zone is None, "the address in the file is not used"
    assert loaded.origins["timeout"] == "dstash://b:1/"
    assert loaded.origins["read"] == "command line"
    assert load_client(file, {"peers": ["c:1"]}, {}).zone is None


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("dstash://", "peers is 'dstash://'; allowed is dstash://host:port,host:port/?"),
        ("dstash://a:1?", "allowed is dstash://host:port"),
        ("dstash://a:1/path", "allowed is dstash://host:port"),
        ("dstash://u:secret@a:1/", "peers is an address with a secret; allowed is"),
        ("dstash://a:1/?timeout", "allowed is dstash://host:port"),
        ("dstash://a", "peers is 'a'; allowed is tcp://host:port"),
        ("dstash://a:1/?peers=b:2", "peers must appear in it only once"),
        ("dstash://a:1/?timeout=0", "dstash://a:1/: timeout is '0'; allowed is a number above 0"),
        ("dstash://a:1/?timeot=1", "dstash://a:1/: unknown key 'timeot'; did you mean 'timeout'?"),
        ("dstash://a:1/?consul_token=secret", "consul_token is not allowed in an address"),
        (["dstash://a:1/", "b:2"], "allowed is one dstash:// address"),
    ],
)
def test_malformed_address_is_refused(address: Any, words: str) -> None:
    error = str(refusal(load_client, peers=address))
    assert words in error
    assert "secret@" not in error
    assert "=secret" not in error


def test_relative_paths_are_resolved_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dstash/membership").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    client = load_client(None, {"local_dir": "m"}, {})
    dev = load_client(None, {}, {})
    peer = load_peer(None, {"data_dir": "d"}, {"DSTASH_LOCAL_DIR": "~/m"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert client.membership_dir() == tmp_path / "m"
    assert dev.membership_dir() == tmp_path / ".dstash/membership"
    assert (peer.data_dir, peer.membership_dir()) == (tmp_path / "d", tmp_path / "home/m")


def test_settings_can_be_read_in_a_removed_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert load_client(None, {"peers": "a:1"}, {}).peers == ["tcp://a:1"]


def test_options_for_type_checkers_are_the_settings_of_a_client() -> None:
    hints = typing.get_type_hints(ClientOptions)
    assert hints.keys() == rules_of(ClientSettings).keys() | {"security"}
    settings = typing.get_type_hints(ClientSettings)
    for key in ("timeout", "zone", "curve", "consul", "cluster"):
        assert hints[key] in (settings[key], settings[key] | None), key


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a = 1\nb = = 2\n", ", line 2: is not TOML: Invalid value"),
        (b"port = 1\nport = 2\n", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0)"),
    ],
)
def test_load_refuses_malformed_file(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    assert words in str(refusal(load_client, file))


def test_load_refuses_missing_file_and_directory(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in str(refusal(load_client, tmp_path / "none.toml"))
    assert "cannot be read: Is a directory" in str(refusal(load_client, tmp_path))


def test_consul_token_is_never_shown(tmp_path: Path) -> None:
    settings = load_client(None, {}, {"DSTASH_CONSUL_TOKEN": "s3cret"})
    assert settings.token() == "s3cret"
    assert "s3cret" not in repr(settings) + str(asdict(settings)) + f"{settings.consul_token}"
    file = write(tmp_path / "x.toml", 'consul_token = "s3cret"')
    error = refusal(load_client, file)
    assert "line 1: consul_token is not allowed in a file" in str(error)
    assert "s3cret" not in str(error)
    assert "s3cret" not in str(refusal(load_client, consul_token=["s3cret"]))


def test_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b'\xef\xbb\xbfcluster = "bl\xc3\xa4u"\r\ntimeout = 7\r\n')
    loaded = layered(ClientSettings, file, {}, {})
    assert (loaded.settings.cluster, loaded.settings.timeout) == ("bläu", 7.0)
    assert loaded.origins["cluster"] == f"{file}, line 1"
    file.write_bytes(b"\xef\xbb\xbfzone = 1\r\nprot = 5\r\n")
    problems = refusal(load_client, file).details["problems"]
    assert [problem.split(":")[0] for problem in problems] == [f"{file}, line 2", f"{file}, line 1"]
    token = tmp_path / "token"
    token.write_bytes(b"\xef\xbb\xbfs3cret\r\n")
    assert load_client(None, {"consul_token_file": token}, {}).token() == "s3cret"


def test_fallback_without_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for flags in ({"peers": "h:1"}, {"consul": "http://h:1"}, {"local_dir": "d"}):
        assert load_client(None, flags, {}).fallback() is None
    settings = load_client(None, {"cluster": "blue"}, {})
    there = tmp_path / "state/dstash/blue"
    addresses = ["tcp://127.0.0.1:5000", "tcp://127.0.0.1:5001", "tcp://127.0.0.1:5002"]
    assert settings.fallback() == ("peers", addresses, f"there is no directory {there}")
    there.mkdir(parents=True)
    assert settings.fallback() == ("local_dir", there, "this directory exists")
    Path(".dstash/membership").mkdir(parents=True)
    assert settings.fallback() == (
        "local_dir",
        tmp_path / ".dstash/membership",
        "this directory exists",
    )


def test_consul_token_is_read_from_file(tmp_path: Path) -> None:
    file = write(tmp_path / "token", "s3cret\n")
    assert load_client(None, {"consul_token_file": file}, {}).token() == "s3cret"
    assert load_client(None, {}, {}).token() is None
    settings = ClientSettings(consul_token_file=tmp_path / "gone")
    with pytest.raises(ConfigError, match="gone"):
        settings.token()


FORMER_NAMES = [
    ("bury_interval", "gc_interval"),
    ("bury_lag", "gc_grace"),
    ("heal_rate", "repair_rate"),
]


@pytest.mark.parametrize(("former", "present"), FORMER_NAMES)
def test_former_name_of_setting_is_refused_with_the_present_name_as_hint(
    tmp_path: Path, former: str, present: str
) -> None:
    hint = f"unknown key '{former}'; did you mean '{present}'?"
    file = write(tmp_path / "peer.toml", f'data_dir = "d"\n{former} = 5\n')
    variable = f"DSTASH_{former.upper()}"
    assert str(refusal(load_peer, file)) == f"{file}, line 2: {hint}"
    assert str(refusal(load_peer, None, {variable: "5"}, data_dir="d")) == f"{variable}: {hint}"
    assert str(refusal(load_peer, **{"data_dir": "d", former: 5})) == f"command line: {hint}"


@pytest.mark.parametrize(("former", "present"), FORMER_NAMES)
def test_former_name_of_peer_setting_in_environment_does_not_stop_a_client(
    former: str, present: str
) -> None:
    assert load_client(None, {}, {f"DSTASH_{former.upper()}": "5"}) == ClientSettings()
    assert load_peer(None, {"data_dir": "d"}, {f"DSTASH_{former.upper()}": ""}) == PeerSettings(
        data_dir=Path.cwd() / "d"
    )
    assert present in rules_of(PeerSettings)


def test_unknown_variables_lists_variables_without_setting() -> None:
    environ = {"DSTASH_PROT": "1", "DSTASH_PORT": "1", "DSTASH_TIMEOUT": "1", "HOME": "/"}
    environ[LOCK_TOKEN] = "7"
    assert unknown_variables(environ) == ["DSTASH_PROT"]


def test_membership_dir_prefers_local_dir_then_dev_then_state_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    own = tmp_path / "state" / "dstash" / "blue"
    assert PeerSettings(data_dir=Path("d"), cluster="blue").membership_dir() == own
    assert ClientSettings(cluster="blue").membership_dir() == own
    (tmp_path / ".dstash/membership").mkdir(parents=True)
    assert ClientSettings(cluster="blue").membership_dir() == tmp_path / ".dstash/membership"
    assert ClientSettings(local_dir=Path("x")).membership_dir() == Path("x")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert PeerSettings(data_dir=Path("d")).membership_dir().is_relative_to(Path.home())


@pytest.mark.parametrize(
    ("model", "name", "required"),
    [(PeerSettings, "peer.toml", {"data_dir": Path("d")}), (ClientSettings, "client.toml", {})],
)
def test_conf_file_lists_each_setting_with_its_default(
    model: type[SharedSettings], name: str, required: dict[str, Any]
) -> None:
    text = (CONF / name).read_text()
    active = tomllib.loads(text)
    examples = set(re.findall(r"^# (\w+) = ", text, re.MULTILINE))
    defaults = model(**required)
    for key in rules_of(model).keys() - required.keys():
        default = getattr(defaults, key)
        if key == "consul_token":
            assert "DSTASH_CONSUL_TOKEN" in text
        elif default is None:
            assert key in examples, f"{name} lacks a comment for {key}"
        else:
            assert active[key] == default, f"{name} lacks {key} with its default"
    assert examples | set(active) <= set(rules_of(model))


@pytest.mark.parametrize(
    ("model", "name"), [(PeerSettings, "peer.toml"), (ClientSettings, "client.toml")]
)
def test_conf_file_examples_are_valid(model: type[SharedSettings], name: str) -> None:
    text = (CONF / name).read_text()
    # Settings that need each other, or files, are checked by other tests.
    skipped = re.compile(r"_file|authorised_keys|server_key|plain_port")
    lines = re.findall(r"^# (\w+ = .*)$", text, re.MULTILINE)
    examples = tomllib.loads("\n".join(line for line in lines if not skipped.search(line)))
    assert examples
    layered(model, None, {"data_dir": "d"} | examples if "peer" in name else examples, {})


def test_conf_files_equal_the_defaults() -> None:
    assert load_client(CONF / "client.toml", {}, {}) == ClientSettings()
    peer = load_peer(CONF / "peer.toml", {}, {})
    assert peer == PeerSettings(data_dir=peer.data_dir)
    trio = [load_peer(CONF / f"cluster-consul/peer{n}.toml", {}, {}) for n in (1, 2, 3)]
    assert [settings.min_peers for settings in trio] == [3, 3, 3]
    assert len({settings.port for settings in trio}) == 3
    assert len({settings.data_dir for settings in trio}) == 3
    assert load_client(None, {}, {}).read is Level.QUORUM
