"""Traces of a whole server: what an exporter gets, and what a client sends along."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from camrt.errors import BackendUnavailableError
from camrt.explainer import sample_image_path
from camrt.inference import open_inference_pb2 as triton
from camrt.server import tracing
from camrt.server.errors import OverloadedError, SettingsError
from camrt.server.settings import load_settings
from camrt.server.tracing import Tracing, start_tracing
from camrt.v1 import explainer_pb2 as pb
from camrt.v1 import explainer_pb2_grpc as pb_grpc
from tests.server.loopback import Loopback

SECONDS = 30
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
EXPLAIN = "camrt.v1.ExplainerService/Explain"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def server(exporter: InMemorySpanExporter) -> Iterator[Loopback]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("camrt.server.app.start_tracing", lambda _: Tracing(SimpleSpanProcessor(exporter)))
        running = Loopback(stream_in_flight=2).__enter__()
    yield running
    running.__exit__()


@pytest.fixture
def channel(server: Loopback, exporter: InMemorySpanExporter) -> Iterator[grpc.Channel]:
    exporter.clear()
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def request(**fields) -> pb.ExplainRequest:
    return pb.ExplainRequest(image=pb.Image(encoded=sample_image_path().read_bytes()), **fields)


def spans(server: Loopback, exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    """By name, once every call has ended on the server's side too."""
    server.call(lambda: _idle(server))
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


async def _idle(server: Loopback) -> None:
    while server.app._calls.in_flight:
        await asyncio.sleep(0.005)


def test_a_request_has_a_span_and_a_child_a_stage(server, channel, exporter) -> None:
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "request-7"))
    reply, call = pb_grpc.ExplainerServiceStub(channel).Explain.with_call(
        request(return_arcc=True), timeout=SECONDS, metadata=metadata
    )
    assert call.code() is grpc.StatusCode.OK
    found = spans(server, exporter)
    (span,) = found.pop(EXPLAIN)
    assert span.context.trace_id == int(TRACE, 16)
    assert span.parent.span_id == int(PARENT, 16)
    assert span.kind is SpanKind.SERVER
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "camrt.v1.ExplainerService",
        "rpc.method": "Explain",
        "rpc.grpc.status_code": 0,
        "camrt.request_id": "request-7",
        "camrt.model": reply.model.name,
    }
    assert span.resource.attributes["service.name"] == "camrt"
    assert set(found) == {"decode", "queue", "inference", "kernels", "heavy", "encode"}
    for name, stages in found.items():
        (stage,) = stages
        assert stage.parent.span_id == span.context.span_id, name
        assert stage.context.trace_id == span.context.trace_id
        slack = 20_000_000
        assert span.start_time - slack <= stage.start_time <= stage.end_time <= span.end_time + slack, name
    milliseconds = {name: (stage.end_time - stage.start_time) / 1e6 for name, (stage,) in found.items()}
    assert milliseconds["inference"] == pytest.approx(reply.timings.inference_us / 1e3, abs=0.01)
    assert milliseconds["kernels"] == pytest.approx(reply.timings.kernels_us / 1e3, abs=0.01)
    assert found["inference"][0].attributes == {"camrt.batch_size": 1}


def test_without_a_traceparent_the_server_begins_a_trace(server, channel, exporter) -> None:
    stub = pb_grpc.ExplainerServiceStub(channel)
    for header in ((), (("traceparent", "00-what\x20ever-01"),), (("traceparent", "00-" + "0" * 32 + "-1-01"),)):
        stub.Explain(request(), timeout=SECONDS, metadata=header)
    roots = spans(server, exporter)[EXPLAIN]
    assert [root.parent for root in roots] == [None] * 3
    assert len({root.context.trace_id for root in roots}) == 3


def test_a_client_that_samples_nothing_is_obeyed(server, channel, exporter) -> None:
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
    pb_grpc.ExplainerServiceStub(channel).Explain(request(), timeout=SECONDS, metadata=metadata)
    assert spans(server, exporter) == {}


@pytest.mark.parametrize(
    ("fault", "code", "reason", "status"),
    [
        (None, 3, "INVALID_ARGUMENT", StatusCode.UNSET),
        (OverloadedError("Full.", "Wait.", 100), 8, "OVERLOADED", StatusCode.UNSET),
        (RuntimeError("the secret path"), 13, "INTERNAL", StatusCode.ERROR),
    ],
)
def test_errors_are_events_and_only_faults_of_the_server_are_errors(
    server, channel, exporter, monkeypatch, caplog, fault, code, reason, status
) -> None:
    if fault is not None:

        def broken(*_: object) -> None:
            raise fault

        monkeypatch.setattr(server.app.repository, "get", broken)
    image = pb.Image(encoded=b"\xff\xd8\xff no image")
    with pytest.raises(grpc.RpcError) as caught:
        pb_grpc.ExplainerServiceStub(channel).Explain(pb.ExplainRequest(image=image), timeout=SECONDS)
    assert caught.value.code().value[0] == code
    (span,) = spans(server, exporter)[EXPLAIN]
    assert (span.attributes["rpc.grpc.status_code"], span.attributes["error.type"]) == (code, reason)
    assert span.status.status_code is status
    (event,) = span.events
    assert event.name == "exception"
    if fault is not None:
        assert str(fault) in event.attributes["exception.message"]


def test_every_image_of_a_stream_has_its_stages(server, channel, exporter) -> None:
    messages = [pb.ExplainStreamRequest(id="a", request=request()), pb.ExplainStreamRequest(id="b")]
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
    stub = pb_grpc.ExplainerServiceStub(channel)
    replies = list(stub.ExplainStream(iter(messages), timeout=SECONDS, metadata=metadata))
    assert [reply.HasField("error") for reply in replies] == [False, True]
    found = spans(server, exporter)
    (call,) = found["camrt.v1.ExplainerService/ExplainStream"]
    assert call.context.trace_id == int(TRACE, 16)
    good, bad = sorted(found["image"], key=lambda span: len(span.events))
    assert {good.parent.span_id, bad.parent.span_id} == {call.context.span_id}
    assert bad.attributes["error.type"] == "ImageError"
    parents = {name: {stage.parent.span_id for stage in found[name]} for name in ("queue", "encode", "decode")}
    assert parents["queue"] == parents["encode"] == {good.context.span_id}
    assert parents["decode"] == {good.context.span_id, bad.context.span_id}


def test_the_other_service_and_what_is_silent(server, channel, exporter) -> None:
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        triton.ModelInferRequest.SerializeToString,
        triton.ModelInferResponse.FromString,
    )
    ask = triton.ModelInferRequest(model_name=server.app.repository.statuses()[0].name)
    ask.inputs.add(name="image", datatype="BYTES", shape=[2])
    ask.inputs[0].contents.bytes_contents.extend([sample_image_path().read_bytes()] * 2)
    infer(ask, timeout=SECONDS)
    health = channel.unary_unary("/grpc.health.v1.Health/Check", lambda _: b"", lambda data: data)
    health(None, timeout=SECONDS)
    found = spans(server, exporter)
    (call,) = found.pop("inference.GRPCInferenceService/ModelInfer")
    assert {name: len(stages) for name, stages in found.items()} == {
        "decode": 1,
        "queue": 2,
        "inference": 2,
        "kernels": 2,
        "encode": 1,
    }
    assert {stage.parent.span_id for stages in found.values() for stage in stages} == {call.context.span_id}


class Collector:
    """An OTLP collector on a free port of the loopback."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.resources: list[dict[str, str]] = []
        self.arrived = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(1))
        call = grpc.unary_unary_rpc_method_handler(
            self._export, collector.ExportTraceServiceRequest.FromString, lambda reply: reply.SerializeToString()
        )
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": call}),))
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def _export(self, message: collector.ExportTraceServiceRequest, _: object) -> collector.ExportTraceServiceResponse:
        for group in message.resource_spans:
            self.resources.append({item.key: item.value.string_value for item in group.resource.attributes})
            self.names += [span.name for scope in group.scope_spans for span in scope.spans]
        self.arrived.set()
        return collector.ExportTraceServiceResponse()

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(1).wait(5)


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_collector_gets_the_spans_when_the_server_stops(monkeypatch, by_environment: bool) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with Collector() as sink:
        if by_environment:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint)
            monkeypatch.setenv("OTEL_SERVICE_NAME", "maps")
        settings = {} if by_environment else {"otlp_endpoint": sink.endpoint}
        with Loopback(**settings) as server, grpc.insecure_channel(server.address) as channel:
            pb_grpc.ExplainerServiceStub(channel).Explain(request(), timeout=SECONDS)
            assert not sink.arrived.is_set()
        assert sink.arrived.is_set()
    assert sorted(sink.names) == sorted([EXPLAIN, "decode", "queue", "inference", "kernels", "encode"])
    assert sink.resources[0]["service.name"] == ("maps" if by_environment else "camrt")


def test_a_collector_that_is_not_there_does_not_keep_the_server_from_stopping(caplog) -> None:
    with Loopback(otlp_endpoint="http://127.0.0.1:1") as server, grpc.insecure_channel(server.address) as channel:
        pb_grpc.ExplainerServiceStub(channel).Explain(request(), timeout=SECONDS)
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 6


def test_off_is_the_default_and_can_be_asked_for(monkeypatch) -> None:
    assert start_tracing(None) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert start_tracing(None) is None


def test_off_imports_and_makes_nothing() -> None:
    code = (
        "import sys, camrt.server.app, camrt.server.tracing as t\n"
        "t.stage('decode', 0.0, 1.0); t.failed(ValueError(), 'X')\n"
        "with t.Part('image'): pass\n"
        "assert t.start_tracing(None) is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_asked_for_and_not_installed(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(BackendUnavailableError, match=r"camrt\[otel\]"):
        start_tracing("http://127.0.0.1:4317")


@pytest.mark.parametrize("endpoint", ["", "localhost:4317", "ftp://collector:1", "http://"])
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="otlp_endpoint"):
        load_settings({"otlp_endpoint": endpoint})
    assert load_settings({"otlp_endpoint": "http://collector:4317"}).otlp_endpoint == "http://collector:4317"


def test_a_stage_outside_of_a_request_is_nobodys() -> None:
    assert tracing.stage("decode", 0.0, 1.0) is None
