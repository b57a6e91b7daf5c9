"""``AsyncExplainerClient``: explanations from a server, for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from PIL import Image

from camrt.client.calls import (
    STUB,
    StreamState,
    UnaryCall,
    evaluate_call,
    explain_call,
    get_model_call,
    list_models_call,
)
from camrt.client.connection import (
    DEFAULT_MESSAGE_BYTES,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT,
    Connection,
    TlsOptions,
)
from camrt.client.errors import error_of_call
from camrt.client.models import ModelDetails, ModelSummary
from camrt.client.replies import Reply, StreamReply
from camrt.client.requests import AnyImage, ExplainOptions
from camrt.client.retry import Attempts
from camrt.explanation import Explanation
from camrt.types import BoolArray, FloatArray
from camrt.v1 import explainer_pb2 as pb

Outcome = TypeVar("Outcome")
Images = Iterable[AnyImage] | AsyncIterable[AnyImage]


class AsyncExplainerClient:
    """Explains images on a server: ExplainerClient for asyncio. Made and used on one event loop.

    Files are read, and pictures of PIL decoded, in a thread.

    Args:
        target: as in ExplainerClient.
        tls: as in ExplainerClient.
        token: as in ExplainerClient.
        timeout: as in ExplainerClient.
        retries: as in ExplainerClient.
        message_bytes: as in ExplainerClient.

    Raises:
        InvalidInputError: as ExplainerClient.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: TlsOptions | None = None,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: int = DEFAULT_RETRIES,
        message_bytes: int = DEFAULT_MESSAGE_BYTES,
    ) -> None:
        self._connection = Connection(target, tls, token, timeout, retries, message_bytes)
        options = self._connection.options
        self._channel = (
            grpc.aio.insecure_channel(target, options)
            if tls is None
            else grpc.aio.secure_channel(target, tls.credentials(), options)
        )
        self._stub = STUB(self._channel)

    async def explain(self, image: AnyImage, **options: Unpack[ExplainOptions]) -> list[Explanation]:
        """Explains one image; see ExplainerClient.explain."""
        return (await self.reply(image, **options)).explanations

    async def reply(self, image: AnyImage, **options: Unpack[ExplainOptions]) -> Reply:
        """Explains one image; see ExplainerClient.reply."""
        return await self._call(await _made(explain_call, image, options))

    async def explain_stream(self, images: Images, **options: Unpack[ExplainOptions]) -> AsyncIterator[StreamReply]:
        """Explains image after image; see ExplainerClient.explain_stream. ``images`` may be asynchronous."""
        state, connection = StreamState(options, self._connection.target), self._connection
        call = self._stub.ExplainStream(
            _requests(images, state), timeout=connection.timeout, metadata=connection.metadata
        )
        try:
            async for message in call:
                for reply in state.incoming(message):
                    yield reply
        except grpc.aio.AioRpcError as error:
            raise (state.failure or error_of_call(error, connection.target)) from error
        except asyncio.CancelledError as error:
            if state.failure is None:
                raise
            raise state.failure from error
        finally:
            call.cancel()
        for reply in state.rest():
            yield reply

    async def evaluate(
        self,
        image: AnyImage,
        metrics: Sequence[str] = ("arcc",),
        saliency_map: FloatArray | None = None,
        object_mask: BoolArray | None = None,
        **options: Unpack[ExplainOptions],
    ) -> dict[str, float]:
        """Measures a map of an image; see ExplainerClient.evaluate."""
        return await self._call(await _made(evaluate_call, image, metrics, saliency_map, object_mask, options))

    async def list_models(self) -> list[ModelSummary]:
        """The models of the server."""
        return await self._call(list_models_call())

    async def get_model(self, model: str = "", version: str = "") -> ModelDetails:
        """Everything about one model."""
        return await self._call(get_model_call(model, version))

    async def close(self) -> None:
        """Ends the connection, and every call on it."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, call: UnaryCall[Any, Any, Outcome]) -> Outcome:
        connection = self._connection
        attempts = Attempts(connection.timeout, connection.retries)
        method = getattr(self._stub, call.method)
        while True:
            try:
                response = await method(call.request, timeout=attempts.remaining(), metadata=connection.metadata)
            except grpc.aio.AioRpcError as error:
                pause = attempts.pause(error)
                if pause is None:
                    raise error_of_call(error, connection.target) from error
                await asyncio.sleep(pause)
            else:
                return call.outcome(response)


async def _made(make: Callable[..., Outcome], image: AnyImage, *arguments: object) -> Outcome:
    """What ``make`` makes of an image: in a thread where it has to be read or decoded, else at once."""
    if isinstance(image, str | os.PathLike | Image.Image):
        return await asyncio.to_thread(make, image, *arguments)
    return make(image, *arguments)


async def _requests(images: Images, state: StreamState) -> AsyncIterator[pb.ExplainStreamRequest]:
    index = 0
    with state:
        async for image in _each(images):
            message = await _made(partial(state.outgoing, index), image)
            index += 1
            if message is not None:
                yield message


async def _each(images: Images) -> AsyncIterator[AnyImage]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
