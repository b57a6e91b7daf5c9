"""grpc.health.v1: whether the server, its services and its models can be used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from camrt.server.models import ModelStatus

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE_NAME = "grpc.health.v1.Health"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    """Check and Watch for "" (the server), the services, and ``models/NAME``.

    The server and its services serve from the end of start-up until they drain; a model serves while one of its
    versions is ready. Names that do not exist are NOT_FOUND for Check and SERVICE_UNKNOWN for Watch, which tells when
    they appear.

    Args:
        services: full names.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = ("", *services)
        self._up = self._draining = False
        self._models: dict[str, bool] = {}
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The state now."""
        status = self._status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state now, and every change. A reader that is slow misses states in between, and holds nobody up."""
        del context
        told: int | None = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            await changed.wait()

    def started(self) -> None:
        """The server can be used."""
        self._up = True
        self._tell()

    def drain(self) -> None:
        """Nothing serves any more, for good."""
        self._draining = True
        self._tell()

    def models_changed(self, statuses: Sequence[ModelStatus]) -> None:
        """Takes over the states of the models."""
        models: dict[str, bool] = {}
        for status in statuses:
            models[status.name] = models.get(status.name, False) or status.state == "ready"
        self._models = models
        self._tell()

    def _status(self, service: str) -> int:
        if service in self._services:
            serving = self._up
        elif service.removeprefix("models/") in self._models and service.startswith("models/"):
            serving = self._models[service.removeprefix("models/")]
        else:
            return _UNKNOWN
        return _SERVING if serving and not self._draining else _NOT_SERVING

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
