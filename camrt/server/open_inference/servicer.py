"""``OpenInferenceServicer``: inference.GRPCInferenceService, as Triton and its clients speak it.

Who may load and unload models is decided before a call comes here, see camrt.server.security.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from camrt.errors import InvalidInputError
from camrt.inference import open_inference_pb2 as pb
from camrt.server.engine import Engine
from camrt.server.errors import ModelNotFoundError, ModelNotReadyError
from camrt.server.models import LoadedModel, ModelRepository
from camrt.server.open_inference.inference import Outcome, run
from camrt.server.open_inference.metadata import (
    index_entry,
    model_config,
    model_metadata,
    model_statistics,
    unloaded_entry,
)
from camrt.server.open_inference.parameters import Parameters, read_parameters
from camrt.server.open_inference.requests import image_count, read_request
from camrt.server.open_inference.tensors import add_output, shown
from camrt.server.replies import check_reply
from camrt.server.requests import deadline_of
from camrt.server.settings import ServerSettings
from camrt.server.statistics import RequestTimes
from camrt.server.status import Context, Edge, Status
from camrt.server.stream import Streaming
from camrt.server.telemetry import message_bytes
from camrt.server.tracing import Part

SERVICE_NAME = "inference.GRPCInferenceService"
SERVER_NAME = "camrt"
RETRY_PARAMETER = "retry_after_ms"  # of a reply of ModelStreamInfer, as grpc-retry-pushback-ms of ModelInfer
EXTENSIONS = ("model_configuration", "model_repository", "parameters", "statistics")


class OpenInferenceServicer:
    """Serves the models of a repository under the Open Inference Protocol. See ``requests`` for inputs and outputs.

    Args:
        repository: the models.
        engine: what runs them.
        settings: limits, and what ModelConfig tells.
        server_version: what ServerMetadata tells.
    """

    def __init__(
        self,
        repository: ModelRepository,
        engine: Engine,
        settings: ServerSettings,
        server_version: str = "",
    ) -> None:
        self._repository, self._engine, self._settings = repository, engine, settings
        self._server_version = server_version

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """The process answers, so it lives."""
        del request, context
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether the server takes requests, for every model that it has."""
        del request, context
        names: dict[str, bool] = {}
        for status in self._repository.statuses():
            names[status.name] = names.get(status.name, False) or status.state == "ready"
        return pb.ServerReadyResponse(ready=bool(names) and all(names.values()) and not self._engine.draining)

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether a model can be used; a model that is not there is not ready."""
        async with Edge(context):
            try:
                self._repository.get(request.name, request.version)
            except (ModelNotFoundError, ModelNotReadyError):
                return pb.ModelReadyResponse(ready=False)
            return pb.ModelReadyResponse(ready=not self._engine.draining)

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Name, version and extensions."""
        del request, context
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._server_version, extensions=EXTENSIONS)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """Inputs and outputs of a model."""
        async with Edge(context):
            model = self._repository.get(request.name, request.version)
            return model_metadata(model, self._versions(model.name))

    async def model_config(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """How a model is served."""
        async with Edge(context):
            model = self._repository.get(request.name, request.version)
            return pb.ModelConfigResponse(config=model_config(model, self._settings))

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """What a model has done, or every model that is ready."""
        async with Edge(context):
            if request.name:
                model = self._repository.get(request.name, request.version)
                keys = [(model.name, model.version)]
            else:
                keys = [(item.name, item.version) for item in self._repository.statuses() if item.state == "ready"]
            rows = [model_statistics(*key, self._engine.statistics.of(*key)) for key in keys]
            return pb.ModelStatisticsResponse(model_stats=rows)

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """Every version of every model, and the models that could be loaded."""
        async with Edge(context):
            _check_repository(request.repository_name)
            entries = [index_entry(status) for status in self._repository.statuses()]
            if request.ready:
                return pb.RepositoryIndexResponse(models=[entry for entry in entries if entry.state == "READY"])
            known = {entry.name for entry in entries}
            unloaded = [
                unloaded_entry(name)
                for name in await asyncio.to_thread(self._repository.available)
                if name not in known
            ]
            return pb.RepositoryIndexResponse(models=entries + unloaded)

    async def repository_model_load(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Loads a model of the server's folder, or loads it again. Takes no files and no configuration."""
        async with Edge(context):
            _check_repository(request.repository_name)
            if request.parameters:
                raise InvalidInputError(
                    f"The parameter {shown(min(request.parameters))} is not supported.",
                    "Models come from the server's own folder, as they are.",
                )
            await self._repository.load(request.model_name)
            return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unloads a model. No model depends on another, so unload_dependents changes nothing."""
        async with Edge(context):
            _check_repository(request.repository_name)
            unknown = sorted(name for name in request.parameters if name != "unload_dependents")
            if unknown:
                raise InvalidInputError(f"The parameter {shown(unknown[0])} is not supported.", "Leave it out.")
            await self._repository.unload(request.model_name)
            return pb.RepositoryModelUnloadResponse()

    async def model_infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Runs a model on the images of a request."""
        async with Edge(context):
            return await self._infer(request, deadline_of(context))

    async def model_stream_infer(
        self, requests: AsyncIterable[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """One reply a request, in their order; a request that fails is a reply with its error."""
        async with Edge(context) as edge:
            deadline = deadline_of(context)

            async def infer(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
                with Part("request"):
                    return await self._infer(request, deadline)

            streaming = Streaming(
                infer,
                _answered,
                _refused,
                self._settings,
                lambda: self._engine.draining,
                edge.request_id,
            )
            async with aclosing(streaming.replies(requests)) as replies:
                async for reply in replies:
                    yield reply

    async def _infer(self, request: pb.ModelInferRequest, deadline: float | None) -> pb.ModelInferResponse:
        model = self._repository.get(request.model_name, request.model_version)
        started = time.monotonic()
        with self._engine.statistics.request(model) as times:
            parameters = read_parameters(request.parameters)
            deadline = _earlier(deadline, started, parameters.timeout_seconds)
            times.items = image_count(request, self._settings.max_batch)
            with self._engine.admit(message_bytes(request), times.items, deadline, model):
                return await self._answer(request, model, parameters, times, deadline)

    async def _answer(
        self,
        request: pb.ModelInferRequest,
        model: LoadedModel,
        parameters: Parameters,
        times: RequestTimes,
        deadline: float | None,
    ) -> pb.ModelInferResponse:
        decoding = time.monotonic()
        read = partial(read_request, request, parameters, model, self._settings)
        inference = await self._engine.offload(read, "decode")
        times.decode_seconds = time.monotonic() - decoding
        collect = await run(self._engine, model, inference, times, deadline)
        encoding = time.monotonic()
        response = await self._engine.offload(lambda: _response(request, model, collect()), "encode")
        times.encode_seconds = time.monotonic() - encoding
        check_reply(response, self._settings.message_bytes)
        return response

    def _versions(self, name: str) -> list[str]:
        return [item.version for item in self._repository.statuses() if item.name == name and item.state == "ready"]


def _earlier(deadline: float | None, started: float, timeout: float | None) -> float | None:
    """time.monotonic() at which the call, or its parameter ``timeout``, ends: whichever is first."""
    if timeout is None:
        return deadline
    return started + timeout if deadline is None else min(deadline, started + timeout)


def _answered(request: pb.ModelInferRequest, response: pb.ModelInferResponse) -> pb.ModelStreamInferResponse:
    """The reply of a stream to a request; it is the last word about it."""
    del request
    response.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(infer_response=response)


def _refused(request: pb.ModelInferRequest, status: Status) -> pb.ModelStreamInferResponse:
    """The reply of a stream about a request that failed."""
    response = pb.ModelInferResponse(id=request.id)
    if status.retry_after_ms is not None:
        response.parameters[RETRY_PARAMETER].int64_param = status.retry_after_ms
    return pb.ModelStreamInferResponse(error_message=status.message, infer_response=response)


def _check_repository(name: str) -> None:
    if name:
        raise InvalidInputError(f"There is no repository {shown(name)}.", "Leave repository_name empty.")


def _response(request: pb.ModelInferRequest, model: LoadedModel, outcome: Outcome) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    for name, array in outcome.arrays.items():
        add_output(response, name, array)
    response.parameters["model_digest"].string_param = model.digest
    response.parameters["degenerate_maps"].int64_param = outcome.degenerate_maps
    return response


def add_to_server(servicer: OpenInferenceServicer, server: grpc.aio.Server) -> None:
    """Registers the service under its public name; the messages are of a package of their own."""
    unary: dict[str, tuple[Callable[..., Awaitable[Any]], Any]] = {
        "ServerLive": (servicer.server_live, pb.ServerLiveRequest),
        "ServerReady": (servicer.server_ready, pb.ServerReadyRequest),
        "ModelReady": (servicer.model_ready, pb.ModelReadyRequest),
        "ServerMetadata": (servicer.server_metadata, pb.ServerMetadataRequest),
        "ModelMetadata": (servicer.model_metadata, pb.ModelMetadataRequest),
        "ModelInfer": (servicer.model_infer, pb.ModelInferRequest),
        "ModelConfig": (servicer.model_config, pb.ModelConfigRequest),
        "ModelStatistics": (servicer.model_statistics, pb.ModelStatisticsRequest),
        "RepositoryIndex": (servicer.repository_index, pb.RepositoryIndexRequest),
        "RepositoryModelLoad": (servicer.repository_model_load, pb.RepositoryModelLoadRequest),
        "RepositoryModelUnload": (servicer.repository_model_unload, pb.RepositoryModelUnloadRequest),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(call, request.FromString, _serialized)
        for name, (call, request) in unary.items()
    }
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        servicer.model_stream_infer, pb.ModelInferRequest.FromString, _serialized
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
