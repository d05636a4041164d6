"""Traces from the call of a client to the commit of a peer, as a collector receives them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from dstash import AsyncClient
from dstash.wire import codec
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import Lookup, Values
from dstash.wire.shapes import Frame
from tests.harness.collector import Collector, Seen
from tests.harness.devcluster import clean_environment
from tests.harness.peers import DSTASH_PEER, PATIENCE, Peer, Peers
from tests.harness.ports import free_port
from tests.harness.waiting import wait_until
from tests.security.attackers import Attacker
from tests.wire.examples import TRACE

pytestmark = pytest.mark.usefixtures("no_leaks")

#: Spans are sent at once, because the default interval is five seconds.
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


@pytest.fixture
def peers(tmp_path: Path, collector: Collector) -> Iterator[Peers]:
    """Three peers that send their spans to the collector."""
    with Peers.local(tmp_path) as made:
        made.environ |= SOON | {"DSTASH_OTLP_ENDPOINT": collector.endpoint}
        made.environ["http_proxy"] = "http://127.0.0.1:1"  # not for a collector on this machine
        made.form("a", "b", "c")
        yield made


@pytest.fixture
def provider(collector: Collector) -> Iterator[TracerProvider]:
    """The tracer provider of a program that exports the spans of its clients."""
    made = TracerProvider(resource=Resource({"service.name": "program"}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{collector.endpoint}/v1/traces")
    made.add_span_processor(SimpleSpanProcessor(exporter))
    yield made
    made.shutdown()


def peer_of(span: Seen) -> str:
    """Return the id of the peer that made a span."""
    assert span.maker["service.name"] == "dstash-peer"
    return str(span.maker["service.instance.id"])


def check_put(collector: Collector, call: Seen) -> None:
    """Check the spans of the peers for a put to all three."""
    servers = collector.wait_for("dstash peer Put", 3)
    assert sorted(map(peer_of, servers)) == ["a", "b", "c"]
    for server in servers:
        assert (server.trace, server.parent, server.kind) == (call.trace, call.id, "SERVER")
        facts = server.details
        assert (facts["db.collection.name"], facts["dstash.keys"]) == ("i", 1)
        assert (facts["dstash.outcome"], server.failed) == ("Stored", False)
        [commit] = [span for span in collector.named("dstash commit") if span.parent == server.id]
        assert commit.is_within(server)
        assert commit.details["dstash.commit.requests"] >= 1
        merge, sync = [
            span
            for span in collector.named("dstash merge", "dstash sync")
            if span.parent == commit.id
        ]
        assert (merge.name, sync.name) == ("dstash merge", "dstash sync")
        assert merge.is_within(commit)
        assert sync.is_within(commit)
        assert merge.end == sync.begin
        assert peer_of(commit) == peer_of(server) == peer_of(sync)
    assert {span.trace for span in collector.spans} == {call.trace}


def keys_asked(collector: Collector) -> int:
    """Return the number of keys in requests for values and for digests."""
    return sum(span.details["dstash.keys"] for span in collector.named("dstash peer Lookup"))


def check_lookup(collector: Collector, call: Seen) -> None:
    """Check the spans of the peers for a quorum look-up of many keys."""
    kinds = ("dstash peer Lookup",)
    servers = [span for span in collector.wait_for(*kinds, 2) if span.trace == call.trace]
    assert len(servers) >= 2
    assert {server.parent for server in servers} == {call.id}
    assert {server.details["dstash.level"] for server in servers} == {"quorum"}
    assert {server.details["dstash.outcome"] for server in servers} == {"Answered"}
    assert all(server.details["dstash.keys"] <= 50 for server in servers)
    assert keys_asked(collector) == 100
    assert not [span for span in collector.named("dstash commit") if span.trace == call.trace]


def test_put_and_lookup_have_a_trace_each(
    peers: Peers, collector: Collector, provider: TracerProvider
) -> None:
    plain = peers.client()
    assert plain.batch_put("i", {f"key{number}": number for number in range(50)}).ok
    client = peers.client(tracing=provider)
    client.put("i", "key0", "value", write="all")
    [call] = collector.wait_for("dstash put")
    assert (call.kind, call.parent, call.maker["service.name"]) == ("CLIENT", "", "program")
    check_put(collector, call)
    collector.spans.clear()
    assert len(client.batch_lookup("i", [f"key{number}" for number in range(50)])) == 50
    [call] = collector.wait_for("dstash batch_lookup")
    wait_until(lambda: keys_asked(collector) >= 100, PATIENCE, "the spans of all requests")
    check_lookup(collector, call)


def test_async_put_and_lookup_have_a_trace_each(
    peers: Peers, collector: Collector, provider: TracerProvider
) -> None:
    async def work() -> None:
        seeds = [peer.address for peer in peers.all.values()]
        async with AsyncClient(*seeds, timeout=20, tracing=provider) as client:
            await client.put("i", "key", "value", write="all")

    asyncio.run(work())
    [call] = collector.wait_for("dstash put")
    check_put(collector, call)


def test_untraced_call_makes_no_span(
    peers: Peers, collector: Collector, provider: TracerProvider
) -> None:
    plain = peers.client()
    plain.put("i", "key", "value")
    plain.lookup("i", "key")
    plain.status()
    peers.client(tracing=provider).put("i", "key", "value", write="all")
    [call] = collector.wait_for("dstash put")
    collector.wait_for("dstash commit", 3)
    assert {span.trace for span in collector.spans} == {call.trace}


def test_stopped_peer_flushes_its_spans(
    tmp_path: Path, collector: Collector, provider: TracerProvider
) -> None:
    with Peers.local(tmp_path) as peers:  # without SOON
        peers.environ["DSTASH_OTLP_ENDPOINT"] = collector.endpoint
        peers.form("a")
        peers.client(tracing=provider).put("i", "key", "value")
        assert peers["a"].stop() == 0
    assert collector.named("dstash commit")


def test_otel_variables_apply(
    tmp_path: Path, collector: Collector, provider: TracerProvider
) -> None:
    with Peers.local(tmp_path) as peers:
        peers.environ |= SOON | {
            "DSTASH_OTLP_ENDPOINT": f"{collector.endpoint}/tenant/",
            "OTEL_SERVICE_NAME": "storage",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        peers.form("a")
        peers.client(tracing=provider).put("i", "key", "value")
        [server] = collector.wait_for("dstash peer Put")
    assert server.maker["service.name"] == "storage"
    assert server.maker["service.instance.id"] == "a"
    assert server.maker["deployment.environment.name"] == "test"
    assert "/tenant/v1/traces" in collector.asked


# -- hostile input, broken and missing collectors


MALFORMED: list[dict[Any, Any]] = [
    *({"traceparent": text} for text in ("x" * 55, TRACE[:-1], TRACE * 1000, TRACE.encode(), 5)),
    *({"traceparent": None}, {"traceparent": {"traceparent": TRACE}}, {}, {5: TRACE}),
    {"traceparent": "00-" + "0" * 32 + TRACE[35:]},
    {str(number): TRACE for number in range(10_000)},
]


def test_malformed_trace_is_ignored(peers: Peers, collector: Collector) -> None:
    peer = peers["a"]
    epoch = peers.client().topology().epoch
    keys = Frame(codec.pack_blobs([b"key"]))
    header, *frames = encode(Envelope(7, epoch, 0, Lookup("i", 1, keys)))
    with Attacker(peer.address) as attacker:
        for context in (*MALFORMED, {"traceparent": TRACE}):
            attacker.send(msgpack.packb([*msgpack.unpackb(header), context]), *frames)
            assert isinstance(attacker.next(), Values)
    [span] = collector.wait_for("dstash peer Lookup")  # only of the last
    assert (span.trace, span.parent) == (TRACE[3:35], TRACE[36:52])
    assert peer.page("/status")["counts"].get("unhandled", 0) == 0
    assert "Traceback" not in peer.log.read_text()


def warnings(peer: Peer) -> list[dict[str, Any]]:
    """Return the log lines of a peer about traces."""
    lines = [json.loads(line) for line in peer.log.read_text().splitlines()]
    return [line for line in lines if line["event"] == "traces get lost"]


@pytest.mark.parametrize("kind", ["silent", "refuses"])
def test_peer_without_collector_serves_and_logs_once(
    tmp_path: Path, collector: Collector, provider: TracerProvider, kind: str
) -> None:
    endpoint = collector.endpoint if kind == "refuses" else f"http://127.0.0.1:{free_port()}"
    with Peers.local(tmp_path) as peers:
        peers.environ |= SOON | {"DSTASH_OTLP_ENDPOINT": endpoint}
        peers.form("a")
        peer = peers["a"]
        collector.status = 404
        client = peers.client(tracing=provider)
        for number in range(5):
            client.put("i", number, "value")
        wait_until(lambda: warnings(peer), PATIENCE, "the peer says that traces get lost")
        client.put("i", "key", "value")
        assert client.count("i") == 6
        began = time.monotonic()
        assert peer.stop() == 0
        assert time.monotonic() - began < 6
        [line] = warnings(peer)
        assert (line["level"], line["otlp_endpoint"]) == ("warning", endpoint)
        assert "404" in line["why"] or "Connection refused" in line["why"]
        assert "Traceback" not in peer.log.read_text()


def refusal(folder: Path, endpoint: str, **environ: str) -> tuple[int, str]:
    """Start a peer that must fail; return its exit status and its error."""
    done = subprocess.run(
        [DSTASH_PEER, str(folder / "data"), "127.0.0.1", "0"],
        env=clean_environment(
            DSTASH_LOCAL_DIR=str(folder / "m"), DSTASH_OTLP_ENDPOINT=endpoint, **environ
        ),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stderr


def test_missing_opentelemetry_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "fake" / "opentelemetry").mkdir(parents=True)
    (tmp_path / "fake" / "opentelemetry" / "__init__.py").touch()  # in place of the real one
    fake = {"PYTHONPATH": str(tmp_path / "fake")}
    status, said = refusal(tmp_path, "http://127.0.0.1:4318", **fake)
    assert status == 2
    assert said == ("dstash-peer: otlp_endpoint needs OpenTelemetry: pip install 'dstash[otel]'\n")


@pytest.mark.parametrize(
    ("endpoint", "environ", "words"),
    [
        ("localhost:4318", {}, "allowed is http://host:port or https://host:port, optionally with"),
        ("http://me:secret@localhost:4318", {}, "set OTEL_EXPORTER_OTLP_HEADERS instead"),
        ("http://h:1", {"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "OpenTelemetry: max_queue_size must be"),
    ],
)
def test_invalid_tracing_setting_is_one_line(
    tmp_path: Path, endpoint: str, environ: dict[str, str], words: str
) -> None:
    status, said = refusal(tmp_path, endpoint, **environ)
    assert status == 2
    assert words in said
    assert said.count("\n") == 1
