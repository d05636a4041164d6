"""Tests of the spans of calls."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from dstash import AsyncClient, Client
from dstash.client.tracing.hook import NoTracing
from dstash.client.tracing.spans import CallSpans
from dstash.config import load_client
from dstash.errors import BatchError, ChangeConflict, ConfigError, NoPeers, TimedOut
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Lookup
from dstash.wire.sockets import Link
from tests.harness.asynchronous import driven
from tests.harness.collector import Seen, seen
from tests.harness.peers import Peers
from tests.harness.ports import free_port

KINDS = ["blocking", "asyncio"]


class Traces:
    """A tracer provider and the spans that it made."""

    def __init__(self, **options: Any) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def take(self) -> list[Seen]:
        """Return the spans that ended since the last call."""
        spans = seen(self._exporter.get_finished_spans())
        self._exporter.clear()
        return spans

    def one(self) -> Seen:
        """Return the only span that ended since the last call."""
        [span] = self.take()
        return span


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, seeds: list[str], traces: Traces) -> Iterator[Any]:
    """A client of either kind whose calls are traced."""
    settings: dict[str, Any] = {"timeout": 20, "tracing": traces.provider}
    if request.param == "blocking":
        with Client(*seeds, **settings) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        made = driven(runner, *seeds, **settings)
        yield made
        made.close()


def test_each_call_is_one_span(client: Any, traces: Traces, index: str) -> None:
    client.put(index, "a", 1)
    client.lookup(index, "a")
    client.exists(index, "a")
    client.touch(index, "a", 60)
    client.ttl(index, "a")
    client.batch_put(index, {"b": 1, "c": 2})
    client.batch_lookup(index, ["a", "b", "missing"])
    client.count(index)
    client.where(index, "a")
    client.batch_delete(index, ["b", "c"])
    client.delete(index, "a")
    client.status()
    client.topology()
    client.admin.repair()
    with pytest.raises(ChangeConflict):
        client.admin.remove(["missing"], dry_run=True)
    *spans, admin_span = traces.take()
    assert (admin_span.name, admin_span.failed) == ("dstash remove", True)
    calls = "put lookup exists touch ttl batch_put batch_lookup count where batch_delete delete"
    assert [span.name for span in spans] == [
        f"dstash {name}" for name in [*calls.split(), "status", "topology", "repair"]
    ]
    assert {span.kind for span in spans} == {"CLIENT"}
    assert not any(span.failed for span in spans)
    assert len({span.trace for span in spans}) == len(spans)


def test_span_has_the_attributes_of_the_database_conventions(
    client: Any, traces: Traces, index: str, seeds: list[str]
) -> None:
    host, _, port = seeds[0].removeprefix("tcp://").rpartition(":")
    everywhere = {
        "db.system.name": "dstash",
        "db.namespace": "dstash",
        "server.address": host,
        "server.port": int(port),
    }
    client.put(index, "a", 1)
    assert traces.one().details == everywhere | {
        "db.operation.name": "put",
        "db.collection.name": index,
    }
    client.batch_put(index, {"b": 1, "c": 2})
    assert traces.one().details["db.operation.batch.size"] == 2
    client.batch_lookup(index, ["a", "b", "missing"])
    details = traces.one().details
    assert (details["db.operation.batch.size"], details["db.response.returned_rows"]) == (3, 2)
    client.batch_put(index, ((key, 1) for key in "xyz"))  # an iterable of unknown size
    assert traces.one().details["db.operation.batch.size"] == 3
    client.batch_put(index, {"b": 1})
    assert (
        "db.operation.batch.size" not in traces.one().details
    )  # one key is no batch, by the conventions
    client.topology()
    assert "db.collection.name" not in traces.one().details


@pytest.mark.parametrize("kind", KINDS)
def test_span_of_call_is_a_child_of_the_callers_span(
    traces: Traces, seeds: list[str], index: str, kind: str
) -> None:
    async def work() -> None:
        async with AsyncClient(*seeds, timeout=20, tracing=traces.provider) as client:
            with traces.provider.get_tracer("test").start_as_current_span("work"):
                await client.put(index, "a", 1, write="all")
                await client.index(index).put("b", 2, write="all")
                assert len([pair async for pair in client.items(index)]) == 2

    if kind == "asyncio":
        asyncio.run(work())
    else:
        with (
            Client(*seeds, timeout=20, tracing=traces.provider) as client,
            traces.provider.get_tracer("test").start_as_current_span("work"),
        ):
            client.put(index, "a", 1, write="all")
            client.index(index).put("b", 2, write="all")
            assert len(list(client.items(index))) == 2
    *calls, work_span = traces.take()
    assert [span.name for span in calls] == ["dstash put"] * 2 + ["dstash items"] * (len(calls) - 2)
    assert all(span.is_within(work_span) for span in calls)
    assert {span.trace for span in calls} == {work_span.trace}


def test_scan_has_a_span_for_each_page(client: Any, traces: Traces, index: str) -> None:
    client.batch_put(
        index, dict.fromkeys(range(5000), 0), write="all"
    )  # so that every replica has them
    traces.take()
    assert len(list(client.keys(index))) == 5000
    pages = traces.take()
    assert len(pages) >= 3
    assert {(span.name, span.details["db.collection.name"]) for span in pages} == {
        ("dstash keys", index)
    }
    assert client.count(index) == 5000
    assert traces.one().name == "dstash count"  # one call, regardless of the number of pages


def test_span_of_missing_key_is_not_failed(client: Any, traces: Traces, index: str) -> None:
    with pytest.raises(KeyError):
        client.ttl(index, "missing")
    assert not traces.one().failed


@pytest.mark.parametrize("kind", KINDS)
def test_span_records_the_error_of_the_call(traces: Traces, kind: str) -> None:
    unused = f"tcp://127.0.0.1:{free_port()}"
    settings: dict[str, Any] = {"timeout": 0.2, "tracing": traces.provider}
    with asyncio.Runner() as runner:
        made: Any = driven(runner, unused, **settings)
        if kind == "blocking":
            made = Client(unused, **settings)
        with pytest.raises(NoPeers):
            made.lookup("i", "a")
        made.close()
    span = traces.one()
    assert span.failed
    details = span.details
    assert (details["error.type"], details["db.response.status_code"]) == ("NoPeers", "41")


def test_span_records_partial_failure_of_a_batch(traces: Traces, tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peers.form("a", "b")
        client = peers.client(timeout=1.0, tracing=traces.provider)
        client.put("i", "a", 1, write="all")
        peers["b"].freeze()
        traces.take()
        assert not client.batch_put("i", {"a": 1, "b": 2}, write="all", on_error="return")
        span = traces.one()
        assert span.failed
        assert span.details["error.type"] == "BatchError"
        with pytest.raises(BatchError):
            client.batch_put("i", {"a": 1, "b": 2}, write="all")
        assert traces.one().details["error.type"] == "BatchError"
        with pytest.raises(TimedOut):
            client.put("i", "a", 1, write="all")
        assert traces.one().details["error.type"] == "TimedOut"
        peers["b"].thaw()


def test_span_ends_when_the_call_is_cancelled(traces: Traces, seeds: list[str], index: str) -> None:
    async def work() -> None:
        async with AsyncClient(*seeds, timeout=20, tracing=traces.provider) as client:
            await client.put(index, "a", 1)
            task = asyncio.create_task(client.lookup(index, "a"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
    span = traces.take()[-1]
    assert (span.name, span.details["error.type"]) == ("dstash lookup", "CancelledError")


def test_spans_of_coalesced_calls_link_to_the_trace_of_the_request(
    traces: Traces, seeds: list[str], index: str
) -> None:
    async def look_up(client: AsyncClient, key: str) -> None:
        with traces.provider.get_tracer("test").start_as_current_span(f"work {key}"):
            await client.lookup(index, key)

    async def work() -> None:
        async with AsyncClient(*seeds, timeout=20, tracing=traces.provider) as client:
            await asyncio.gather(*[look_up(client, key) for key in "abc"])

    asyncio.run(work())
    calls = [span for span in traces.take() if span.name == "dstash lookup"]
    [first] = [span for span in calls if not span.links]
    others = [span for span in calls if span.links]
    assert len(others) == 2
    assert len({span.trace for span in calls}) == 3
    assert {span.links for span in others} == {((first.trace, first.id),)}


def test_coalesced_calls_use_a_sampled_trace_first(
    traces: Traces, seeds: list[str], index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = _sent(monkeypatch)
    unsampled = Traces(sampler=ALWAYS_OFF)

    async def look_up(client: AsyncClient, key: str, by: Traces) -> None:
        with by.provider.get_tracer("test").start_as_current_span("work"):
            await client.lookup(index, key)

    async def work() -> None:
        async with AsyncClient(*seeds, timeout=20, tracing=traces.provider) as client:
            await client.exists(index, "a")  # discovery
            sent.clear()
            await asyncio.gather(look_up(client, "a", unsampled), look_up(client, "b", traces))

    asyncio.run(work())
    recorded = {span.trace for span in traces.take()}
    # A Hello with the sightings of stores may follow: it belongs to no call.
    lookups = [envelope for envelope in sent if isinstance(envelope.message, Lookup)]
    assert {envelope.trace.split("-")[1] for envelope in lookups} <= recorded
    assert lookups


# -- off


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_tracing_makes_no_spans_without_the_setting(kind: Any, seeds: list[str]) -> None:
    client, traced = kind(*seeds), kind(*seeds, tracing=Traces().provider)
    assert isinstance(client._tracing, NoTracing)
    assert client._tracing.call("put", "i") is client._tracing.call("lookup", "i")
    assert isinstance(traced._tracing, CallSpans)
    for made in (client, traced):
        # The hook is part of the methods: no method is replaced on the object.
        assert not [name for name in vars(made) if hasattr(kind, name)]
        _close(made)


def _close(client: Any) -> None:
    if isinstance(client, Client):
        client.close()
    else:
        asyncio.run(client.close())


def _sent(monkeypatch: pytest.MonkeyPatch) -> list[Envelope]:
    """Return a list of all messages that are encoded from now on."""
    from dstash.client import session

    sent: list[Envelope] = []
    whole = session.encode

    def encode(envelope: Envelope) -> list[bytes]:
        sent.append(envelope)
        return whole(envelope)

    monkeypatch.setattr(session, "encode", encode)
    return sent


def test_every_message_of_a_call_carries_its_trace(
    seeds: list[str], traces: Traces, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = _sent(monkeypatch)
    with Client(*seeds, timeout=20, tracing=traces.provider) as client:
        client.status()
        for call in (
            lambda: client.put(index, "a", 1),
            lambda: client.lookup(index, "a"),
            lambda: client.touch(index, "a", 60),  # fetches, then applies
            lambda: list(client.items(index)),
            lambda: client.delete(index, "a"),
        ):
            traces.take()
            sent.clear()
            call()  # type: ignore[no-untyped-call]
            spans = {f"00-{span.trace}-{span.id}" for span in traces.take()}
            assert sent
            assert {envelope.trace[:-3] for envelope in sent} == spans


def test_message_of_untraced_call_has_no_trace(
    seeds: list[str], traces: Traces, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[bytes]] = []
    send = Link.send

    def noting(self: Link, frames: list[bytes]) -> bool:
        sent.append(frames)
        return send(self, frames)

    monkeypatch.setattr(Link, "send", noting)
    for settings in ({}, {"tracing": traces.provider}):
        with Client(*seeds, timeout=20, **settings) as client:  # type: ignore[arg-type]
            client.status()
            sent.clear()
            client.put(index, "a", 1)
        for header, *_ in sent:
            fields = msgpack.unpackb(header)
            bare = [*fields[:5], index, fields[6], 0]  # as in docs/protocol.md
            if not settings:
                assert header == msgpack.packb(bare)
            else:
                assert fields == [*bare, {"traceparent": fields[-1]["traceparent"]}]
        assert len(sent) == 3


# -- settings


def test_tracing_setting_is_validated(seeds: list[str]) -> None:
    assert load_client(None, {}, {}).tracing is False
    assert load_client(None, {}, {"DSTASH_TRACING": "true"}).tracing is True
    with pytest.raises(ConfigError, match="tracing is 'loud'; allowed is true or false"):
        Client(*seeds, tracing="loud")


def test_tracing_without_provider_does_not_affect_calls(seeds: list[str], index: str) -> None:
    """Without configuration, OpenTelemetry's provider does nothing."""
    with Client(*seeds, timeout=20, tracing=True) as client:
        client.put(index, "a", 1)
        assert client.lookup(index, "a") == 1


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_tracing_without_opentelemetry_names_the_extra(
    kind: Any, monkeypatch: pytest.MonkeyPatch, seeds: list[str]
) -> None:
    monkeypatch.delitem(sys.modules, "dstash.client.tracing.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError) as caught:
        kind(*seeds, tracing=True)
    assert str(caught.value) == "tracing needs OpenTelemetry: pip install 'dstash[otel]'"
    _close(kind(*seeds))
