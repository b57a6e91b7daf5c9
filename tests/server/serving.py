"""ExplainerService in this process: a real gRPC server on a free port of the loopback, with a few models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from camrt.explainer import Explainer
from camrt.server.engine import Engine
from camrt.server.errors import ModelNotFoundError
from camrt.server.models import LoadedModel, ModelStatus
from camrt.server.servicer import ExplainerServicer
from camrt.server.settings import ServerSettings
from camrt.v1 import explainer_pb2_grpc as pb_grpc

DIGEST = "ab" * 32
SECONDS = 60


class Models:
    """A repository whose models are given."""

    def __init__(self, **explainers: Explainer) -> None:
        self.models = {name: LoadedModel(name, "1", explainer, DIGEST, "cpu") for name, explainer in explainers.items()}
        self.broken: BaseException | None = None

    def get(self, name: str = "", version: str = "") -> LoadedModel:
        if self.broken is not None:
            raise self.broken
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models or version not in ("", "1"):
            raise ModelNotFoundError(f"No model {name!r} of version {version!r}.", "See ListModels.")
        return self.models[name]

    def statuses(self) -> list[ModelStatus]:
        ready = [ModelStatus(name, "1", "ready", digest=DIGEST) for name in self.models]
        return [*ready, ModelStatus("bad", "2", "failed", "The file is damaged.")]


class Serving:
    """A running server."""

    def __init__(self, models: Models, settings: ServerSettings) -> None:
        self.models, self.settings = models, settings
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self.engine: Engine

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def call(self, coroutine):
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(SECONDS)

    async def start(self) -> None:
        self.engine = Engine(self.settings)
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        servicer = ExplainerServicer(self.models, self.engine, self.settings)
        pb_grpc.add_ExplainerServiceServicer_to_server(servicer, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(1)
        self.engine.close()


@contextmanager
def serving(models: Models, **settings) -> Iterator[Serving]:
    """A server for the length of a with block."""
    server = Serving(models, ServerSettings(threads=1, port=0, **settings))
    thread = threading.Thread(target=server.loop.run_forever, daemon=True)
    thread.start()
    try:
        server.call(server.start())
        yield server
        server.call(server.stop())
    finally:
        server.loop.call_soon_threadsafe(server.loop.stop)
        thread.join(SECONDS)
        server.loop.close()
