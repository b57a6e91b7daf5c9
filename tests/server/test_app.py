from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from camrt.errors import BundleError, InvalidInputError
from camrt.explainer import sample_image_path
from camrt.inference import open_inference_pb2
from camrt.server.app import EXPLAINER, OPEN_INFERENCE, Server
from camrt.server.errors import SettingsError
from camrt.server.security import token_digest
from camrt.server.settings import ServerSettings
from camrt.server.status import Edge
from camrt.v1 import explainer_pb2 as pb
from camrt.v1 import explainer_pb2_grpc
from tests.server.certificates import Authority, Pair
from tests.small_network import write_small_network

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LOAD = f"/{OPEN_INFERENCE}/RepositoryModelLoad"


@cache
def sample() -> bytes:
    return sample_image_path().read_bytes()


def request(**fields: Any) -> pb.ExplainRequest:
    return pb.ExplainRequest(image=pb.Image(encoded=sample()), **fields)


class Client:
    """Stubs of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.explainer: Any = explainer_pb2_grpc.ExplainerServiceStub(channel)  # type: ignore[no-untyped-call]
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    async def load(self, **options: Any) -> None:
        call = self.channel.unary_unary(LOAD, open_inference_pb2.RepositoryModelLoadRequest.SerializeToString)
        await call(open_inference_pb2.RepositoryModelLoadRequest(model_name="shapes"), **options)

    async def status(self, service: str = "") -> int:
        return int((await self.health.Check(health_pb2.HealthCheckRequest(service=service))).status)


@contextlib.asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Server]:
    server = Server(ServerSettings(**{"port": 0, "threads": 1, "max_batch": 2, **settings}))
    try:
        await server.start()
        yield server
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def connected(server: Server, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[Client]:
    address, options = f"127.0.0.1:{server.port}", [("grpc.max_send_message_length", -1)]
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options)
    async with channel:
        yield Client(channel)


def with_server(test: Callable[[Server, Client], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with running(**settings) as server, connected(server) as client:
            await test(server, client)

    asyncio.run(asyncio.wait_for(run(), 60))


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def count(server: Server, method: str, code: str, model: str = "shapes") -> float:
    labels = {"method": method, "code": code, "model": model}
    return server.telemetry.registry.get_sample_value("camrt_requests_total", labels) or 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def gate(server: Server) -> threading.Event:
    """The model runs nothing until the event is set."""
    explainer, event = server.repository.get().explainer, threading.Event()
    run = explainer.explain_batch

    def wait(*arguments: Any) -> Any:
        assert event.wait(20)
        return run(*arguments)

    explainer.explain_batch = wait  # type: ignore[method-assign]
    return event


def test_both_services_answer_and_are_counted() -> None:
    async def test(server: Server, client: Client) -> None:
        response = await client.explainer.Explain(request())
        assert response.predictions[0].class_name == "triangle outline"
        assert response.model_digest == server.repository.get().digest
        await client.load()
        assert await code_of(client.explainer.GetModel(pb.GetModelRequest(model={"name": "a\nb"}))) is (
            grpc.StatusCode.NOT_FOUND
        )
        assert await code_of(client.channel.unary_unary("/camrt.v1.ExplainerService/Nothing")(b"")) is (
            grpc.StatusCode.UNIMPLEMENTED
        )
        assert count(server, "Explain", "OK") == 1
        assert count(server, "RepositoryModelLoad", "OK", "") == 1
        assert count(server, "GetModel", "NOT_FOUND", "") == 1, "what a client sends is no label"
        assert count(server, "unknown", "UNIMPLEMENTED", "") == 1
        names = ("decode", "queue", "inference", "kernels", "encode")
        seen = [server.telemetry.registry.get_sample_value("camrt_stage_seconds_count", {"stage": n}) for n in names]
        assert seen == [1.0] * 5

    with_server(test)


def test_request_ids_come_back_and_are_never_hostile() -> None:
    async def identifier(client: Client, **options: Any) -> str:
        call = client.explainer.ListModels(pb.ListModelsRequest(), **options)
        await call
        return dict(await call.trailing_metadata())["x-request-id"]

    async def test(server: Server, client: Client) -> None:
        assert await identifier(client, metadata=(("x-request-id", "abc-1"),)) == "abc-1"
        assert await identifier(client, metadata=(("x-request-id", "a b;c"),)) != "a b;c"
        assert len(await identifier(client)) == 16

    with_server(test)


def test_health_tells_of_the_server_its_services_and_its_models() -> None:
    async def test(server: Server, client: Client) -> None:
        for service in ("", EXPLAINER, OPEN_INFERENCE, "models/shapes"):
            assert await client.status(service) == SERVING
        assert await code_of(client.status("models/absent")) is grpc.StatusCode.NOT_FOUND
        watches = [client.health.Watch(health_pb2.HealthCheckRequest(service="models/shapes")) for _ in range(2)]
        for watch in watches:
            assert (await watch.read()).status == SERVING
        watches[0].cancel()
        unknown = client.health.Watch(health_pb2.HealthCheckRequest(service="models/other"))
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        await server.repository.unload("shapes")
        assert (await watches[1].read()).status != SERVING
        await server.repository.load("shapes")
        while (await watches[1].read()).status != SERVING:
            pass

    with_server(test)


def test_reflection_describes_every_service_under_its_public_name() -> None:
    def look(port: int) -> tuple[set[str], list[str]]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            explain = pool.FindServiceByName(EXPLAINER).methods_by_name["Explain"]
            assert explain.input_type.full_name == "camrt.v1.ExplainRequest"
            infer = pool.FindServiceByName(OPEN_INFERENCE).methods_by_name["ModelInfer"]
            fields = infer.input_type.fields_by_name
            assert fields["inputs"].message_type.full_name.startswith("inference.")
            return set(database.get_services()), list(fields)

    async def test(server: Server, client: Client) -> None:
        services, fields = await asyncio.to_thread(look, server.port)
        assert {EXPLAINER, OPEN_INFERENCE, "grpc.health.v1.Health"} <= services
        assert "raw_input_contents" in fields

    with_server(test)


def test_reflection_can_be_left_out() -> None:
    async def test(server: Server, client: Client) -> None:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        call = client.channel.stream_stream(method)()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED

    with_server(test, reflection=False)


def test_a_port_in_use_is_an_error() -> None:
    async def test(server: Server, client: Client) -> None:
        for settings in ({"port": server.port}, {"metrics_port": server.metrics_port}):
            second = Server(ServerSettings(**{"port": 0, "threads": 1, **settings}))
            with pytest.raises(SettingsError, match=str(next(iter(settings.values())))):
                await second.start()
            await second.stop(0)

    with_server(test, metrics_port=0)


def test_a_broken_bundle_ends_the_start(tmp_path: Path) -> None:
    async def run() -> None:
        server = Server(ServerSettings(port=0, threads=1, bundle=write_small_network(tmp_path / "model.onnx")))
        with pytest.raises(BundleError, match="not a camrt bundle"):
            await server.start()
        await server.stop(0)

    asyncio.run(run())


def test_messages_over_the_limit_are_refused_and_the_server_goes_on() -> None:
    async def test(server: Server, client: Client) -> None:
        big = pb.ExplainRequest(image=pb.Image(encoded=bytes(2 << 20)))
        assert await code_of(client.explainer.Explain(big)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await code_of(client.explainer.Explain(request())) is grpc.StatusCode.OK

    with_server(test, message_bytes=1 << 20)


def test_tokens_open_what_their_role_allows(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"explain {token_digest('u')}\nadmin {token_digest('a')}\n")

    async def test(server: Server, client: Client) -> None:
        def bearer(token: str) -> dict[str, Any]:
            return {"metadata": (("authorization", f"Bearer {token}"),)}

        explain, load = client.explainer.Explain, client.load
        assert await code_of(explain(request())) is grpc.StatusCode.UNAUTHENTICATED
        assert await code_of(explain(request(), **bearer("x"))) is grpc.StatusCode.UNAUTHENTICATED
        assert await code_of(explain(request(), **bearer("u"))) is grpc.StatusCode.OK
        assert await code_of(load(**bearer("u"))) is grpc.StatusCode.PERMISSION_DENIED
        assert await code_of(load(**bearer("a"))) is grpc.StatusCode.OK
        stream = client.explainer.ExplainStream(iter([]))
        assert await stream.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await client.status() == SERVING
        assert count(server, "Explain", "UNAUTHENTICATED", "") == 2
        assert count(server, "RepositoryModelLoad", "PERMISSION_DENIED", "") == 1
        assert server.engine.in_flight == 0

    with_server(test, tokens=tmp_path / "tokens")


def channel_credentials(authority: Authority, pair: Pair | None = None) -> grpc.ChannelCredentials:
    key, certificate = (None, None) if pair is None else (pair.key, pair.certificate)
    return grpc.ssl_channel_credentials(authority.pem, key, certificate)


async def reachable(server: Server, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    async with connected(server, credentials) as client:
        return await code_of(client.explainer.ListModels(pb.ListModelsRequest(), timeout=5))


def test_tls_and_a_renewed_certificate(tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    certificate, key = old.issue("server").write(tmp_path, "server")

    async def run() -> None:
        async with running(tls_certificate=certificate, tls_key=key) as server:
            assert await reachable(server, channel_credentials(old)) is grpc.StatusCode.OK
            assert await reachable(server, channel_credentials(new)) is grpc.StatusCode.UNAVAILABLE
            assert await reachable(server, None) is grpc.StatusCode.UNAVAILABLE
            async with connected(server, channel_credentials(old)) as client:
                await client.explainer.ListModels(pb.ListModelsRequest())
                renewed = new.issue("server")
                certificate.write_bytes(renewed.certificate)
                assert await reachable(server, channel_credentials(old)) is grpc.StatusCode.OK, "half a renewal"
                key.write_bytes(renewed.key)
                assert await reachable(server, channel_credentials(new)) is grpc.StatusCode.OK
                await client.explainer.ListModels(pb.ListModelsRequest())  # an open connection stays

    asyncio.run(asyncio.wait_for(run(), 60))


def test_client_certificates_and_their_roles(tmp_path: Path) -> None:
    authority, other = Authority(), Authority("other")
    certificate, key = authority.issue("server").write(tmp_path, "server")
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": tmp_path / "ca.crt"}

    async def run() -> None:
        async with running(**settings, admin_names=("ann",)) as server:
            assert await reachable(server, channel_credentials(authority)) is grpc.StatusCode.UNAVAILABLE
            stranger = channel_credentials(authority, other.issue("ann"))
            assert await reachable(server, stranger) is grpc.StatusCode.UNAVAILABLE
            for name, load in (("ann", grpc.StatusCode.OK), ("bob", grpc.StatusCode.PERMISSION_DENIED)):
                async with connected(server, channel_credentials(authority, authority.issue(name))) as client:
                    assert await code_of(client.explainer.Explain(request())) is grpc.StatusCode.OK
                    assert await code_of(client.load()) is load

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_drain_answers_what_was_taken_and_refuses_what_is_new() -> None:
    async def test(server: Server, client: Client) -> None:
        watch = client.health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        stream = client.explainer.ExplainStream()
        await stream.write(pb.ExplainStreamRequest(id="1", request=request()))
        assert (await stream.read()).id == "1"
        opened = gate(server)
        calls = [client.explainer.Explain(request()) for _ in range(12)]
        await until(lambda: server.engine.in_flight == 12)
        stopping = asyncio.create_task(server.stop())
        assert (await watch.read()).status == NOT_SERVING
        await until(lambda: server.engine.draining)
        late = await code_of(client.explainer.Explain(request(), wait_for_ready=False))
        assert late is grpc.StatusCode.UNAVAILABLE
        opened.set()
        assert [response.batch_size > 0 for response in await asyncio.gather(*calls)] == [True] * 12
        started = time.monotonic()
        await stopping
        assert time.monotonic() - started < 5, "open streams and watches do not hold a drain up"
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE

    with_server(test)


def test_a_drain_says_how_many_requests_it_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: Server, client: Client) -> None:
        opened = gate(server)
        calls = [asyncio.create_task(code_of(client.explainer.Explain(request()))) for _ in range(3)]
        await until(lambda: server.engine.in_flight == 3)
        assert await server.stop() == 3
        opened.set()
        assert set(await asyncio.gather(*calls)) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert "3 accepted requests were cut off" in caplog.text

    with_server(test, drain_timeout=0.1)


def test_workers_share_a_port_and_refuse_to_load_by_call() -> None:
    async def test(server: Server, client: Client) -> None:
        assert await code_of(client.load()) is grpc.StatusCode.FAILED_PRECONDITION
        second = Server(ServerSettings(port=server.port, threads=1, max_batch=1, workers=2))
        await second.start()
        assert second.port == server.port
        assert second.metrics_port is None, "the parent serves them"
        assert await second.stop(0) == 0

    with_server(test, workers=2, metrics_port=0)


def test_requests_are_taken_during_the_drain_delay() -> None:
    async def test(server: Server, client: Client) -> None:
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        assert await client.status() == NOT_SERVING
        assert await code_of(client.explainer.Explain(request())) is grpc.StatusCode.OK
        await stopping

    with_server(test, drain_delay=1.0)


def test_a_call_that_its_client_cancels_leaves_nothing_behind() -> None:
    async def test(server: Server, client: Client) -> None:
        opened = gate(server)
        calls = [client.explainer.Explain(request()) for _ in range(8)]
        await until(lambda: server.engine.in_flight == 8)
        for call in calls[1:]:
            call.cancel()
        await until(lambda: server.engine.in_flight == 1)
        opened.set()
        await calls[0]
        await until(lambda: server.engine.in_flight == 0)
        await until(lambda: count(server, "Explain", "CANCELLED") == 7)
        assert await code_of(client.explainer.Explain(request())) is grpc.StatusCode.OK

    with_server(test)


def test_a_deadline_that_passes_is_told_and_nothing_stays() -> None:
    async def test(server: Server, client: Client) -> None:
        assert await code_of(client.explainer.Explain(request(), timeout=0.003)) is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: server.engine.in_flight == 0)

    with_server(test)


def test_too_many_requests_are_refused_with_a_time_to_come_back() -> None:
    async def test(server: Server, client: Client) -> None:
        opened = gate(server)
        calls = [client.explainer.Explain(request()) for _ in range(12)]
        await until(lambda: sum(call.done() for call in calls) == 9)
        opened.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert len(refused) == 9
        for error in refused:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 50

    with_server(test, queue_items=3)


def test_the_server_listens_on_the_loopback_only() -> None:
    async def test(server: Server, client: Client) -> None:
        addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        for address in addresses - {"127.0.0.1", "127.0.1.1"}:
            with pytest.raises(OSError, match="refused"):
                await asyncio.open_connection(address, server.port)

    with_server(test)


def test_a_caller_that_has_gone_before_it_was_told_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Gone:
        """A context whose call is over."""

        async def abort(self, *arguments: Any) -> None:
            raise grpc.aio.InternalError("nobody is there")

    async def run(error: BaseException) -> None:
        async with Edge(Gone()):  # type: ignore[arg-type]
            raise error

    for error in (InvalidInputError("wrong"), grpc.aio.InternalError("not sent")):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(run(error))
    assert not caplog.records
