"""What a request held of a model is free when the request is over, without waiting for Python's collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from camrt.errors import InvalidInputError, ModelError
from camrt.inference import open_inference_pb2 as inference
from camrt.server.app import OPEN_INFERENCE, Server
from camrt.v1 import explainer_pb2 as pb
from tests.server.test_app import Client, code_of, gate, request, sample, until, with_server

Code = grpc.StatusCode
Use = Callable[[Server, Client], Awaitable[None]]


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps what is logged, with its tracebacks
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


async def answered(server: Server, client: Client) -> None:
    assert await code_of(client.explainer.Explain(request())) is Code.OK


async def several_classes(server: Server, client: Client) -> None:
    assert await code_of(client.explainer.Explain(request(top_k=3))) is Code.OK


async def refused(server: Server, client: Client) -> None:
    assert await code_of(client.explainer.Explain(request(options={"method": "nonsense"}))) is Code.NOT_FOUND
    assert await code_of(client.explainer.Explain(pb.ExplainRequest(image=pb.Image(encoded=b"x")))) is (
        Code.INVALID_ARGUMENT
    )


async def failed(server: Server, client: Client, error: type[Exception] = ModelError) -> None:
    """The run of a batch fails, and then that of each of its requests."""
    explainer = server.repository.get().explainer

    def fail(*arguments: Any) -> Any:
        raise error("it failed")

    explainer.explain_batch = fail  # type: ignore[method-assign]
    codes = await asyncio.gather(*[code_of(client.explainer.Explain(request())) for _ in range(3)])
    del explainer.explain_batch
    assert codes[0] is not Code.OK


async def broken(server: Server, client: Client) -> None:
    await failed(server, client, RuntimeError)


async def wrong_input(server: Server, client: Client) -> None:
    await failed(server, client, InvalidInputError)


async def late(server: Server, client: Client) -> None:
    opened = gate(server)
    assert await code_of(client.explainer.Explain(request(), timeout=0.05)) is Code.DEADLINE_EXCEEDED
    opened.set()
    await until(lambda: server.engine.in_flight == 0)


async def cancelled(server: Server, client: Client) -> None:
    opened = gate(server)
    calls = [client.explainer.Explain(request()) for _ in range(4)]
    await until(lambda: server.engine.in_flight == 4)
    for call in calls:
        call.cancel()
    await until(lambda: server.engine.in_flight == 0)
    opened.set()


async def streamed(server: Server, client: Client) -> None:
    requests = [request(), request(options={"method": "nonsense"}), request(top_k=2)]
    stream = client.explainer.ExplainStream(iter([pb.ExplainStreamRequest(request=item) for item in requests]))
    assert len([reply async for reply in stream]) == 3


async def evaluated(server: Server, client: Client) -> None:
    wanted = pb.EvaluateRequest(image=pb.Image(encoded=sample()))
    assert await code_of(client.explainer.Evaluate(wanted)) is Code.OK
    late = client.explainer.Evaluate(wanted, timeout=0.05)
    assert await code_of(late) is Code.DEADLINE_EXCEEDED
    await until(lambda: server.engine.in_flight == 0)


async def inferred(server: Server, client: Client) -> None:
    """By the other service: logits, and a map; an output that there is not."""
    shape = server.repository.get().explainer.manifest.input_shape
    infer = client.channel.unary_unary(
        f"/{OPEN_INFERENCE}/ModelInfer",
        inference.ModelInferRequest.SerializeToString,
        inference.ModelInferResponse.FromString,
    )
    codes = []
    for output in ("logits", "saliency_map", "nonsense"):
        message = inference.ModelInferRequest(model_name="shapes", raw_input_contents=[bytes(4 * int(np.prod(shape)))])
        message.inputs.add(name="image", datatype="FP32", shape=(1, *shape))
        message.outputs.add(name=output)
        codes.append(await code_of(infer(message)))
    assert codes[:2] == [Code.OK, Code.OK]
    assert codes[2] is not Code.OK


USES: list[Use] = [
    answered, several_classes, refused, failed, broken, wrong_input, late, cancelled, streamed, evaluated, inferred,
]  # fmt: skip


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_a_model_is_gone_when_its_last_request_is(use: Use) -> None:
    async def test(server: Server, client: Client) -> None:
        watch = client.health.Watch(health_pb2.HealthCheckRequest(service="models/shapes"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        with no_collector():
            await use(server, client)
            await server.repository.unload("shapes")
            async with asyncio.timeout(5):
                while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
                    pass
            assert server.repository.statuses() == []

    with_server(test)


def test_health_says_so_without_another_change() -> None:
    async def test(server: Server, client: Client) -> None:
        held = server.repository.get()
        watch = client.health.Watch(health_pb2.HealthCheckRequest(service="models/shapes"))
        await watch.read()
        await server.repository.unload("shapes")
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        del held
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

    with_server(test)
