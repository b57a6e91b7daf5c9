"""``ExplainerClient``: explanations from a server, in ordinary functions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

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


class ExplainerClient:
    """Explains images on a server. Safe to call from several threads; close it, or use it in a with block.

    A server that is away for a moment, or full and says when to come back, is tried again until the timeout.

    Args:
        target: "host:port".
        tls: how to encrypt; None is plain text.
        token: bearer token, where the server wants one.
        timeout: seconds a call may take, its retries included; of a stream, all of it.
        retries: most attempts after the first.
        message_bytes: largest message, either way.

    Raises:
        InvalidInputError: a token over plain text to another machine, or a certificate that cannot be read.
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
            grpc.insecure_channel(target, options)
            if tls is None
            else grpc.secure_channel(target, tls.credentials(), options)
        )
        self._stub = STUB(self._channel)

    def explain(self, image: AnyImage, **options: Unpack[ExplainOptions]) -> list[Explanation]:
        """Explains one image.

        Args:
            image: a path, the bytes of a file, a PIL image, a uint8 array (H, W, 3), or what the model takes, a float32
                or float16 array (3, H, W).
            **options: see ExplainOptions.

        Returns:
            One explanation a class.

        Raises:
            ImageError, InvalidInputError, ClassIndexError, LayerNotFoundError, MethodNotFoundError: as an Explainer.
            RemoteError: the server does not answer, or refuses for another reason.
        """
        return self.reply(image, **options).explanations

    def reply(self, image: AnyImage, **options: Unpack[ExplainOptions]) -> Reply:
        """Explains one image, as explain, and returns what else the server says about it."""
        return self._call(explain_call(image, options))

    def explain_stream(self, images: Iterable[AnyImage], **options: Unpack[ExplainOptions]) -> Iterator[StreamReply]:
        """Explains image after image over one stream, several at a time, and yields the replies in their order.

        An image that fails is a reply with an error; the others go on. ``images`` is read in another thread, as far
        ahead as the connection takes. Nothing is tried again.

        Raises:
            RemoteError: the stream ended before its time.
            Exception: what ``images`` raised.
        """
        state = StreamState(options, self._connection.target)
        connection = self._connection
        call = self._stub.ExplainStream(
            _requests(images, state), timeout=connection.timeout, metadata=connection.metadata
        )
        try:
            for message in call:
                yield from state.incoming(message)
        except grpc.RpcError as error:
            raise (state.failure or error_of_call(error, connection.target)) from error
        finally:
            call.cancel()
        yield from state.rest()

    def evaluate(
        self,
        image: AnyImage,
        metrics: Sequence[str] = ("arcc",),
        saliency_map: FloatArray | None = None,
        object_mask: BoolArray | None = None,
        **options: Unpack[ExplainOptions],
    ) -> dict[str, float]:
        """Measures a map of an image.

        Args:
            image: as in explain.
            metrics: names, see camrt.metrics.METRICS.
            saliency_map: (H, W) float32 in [0, 1] in the pixels of the model's input; None: one is made.
            object_mask: (H, W) bool in the same pixels, for metrics with ground truth.
            **options: class_indices (one class), method, base_method, fusion, target_layers, channels, seed, model,
                version: see ExplainOptions.

        Returns:
            Metric to score, NaN where a metric is undefined.

        Raises:
            CamrtError: as explain.
        """
        return self._call(evaluate_call(image, metrics, saliency_map, object_mask, options))

    def list_models(self) -> list[ModelSummary]:
        """The models of the server."""
        return self._call(list_models_call())

    def get_model(self, model: str = "", version: str = "") -> ModelDetails:
        """Everything about one model."""
        return self._call(get_model_call(model, version))

    def close(self) -> None:
        """Ends the connection, and every call on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, call: UnaryCall[Any, Any, Outcome]) -> Outcome:
        connection = self._connection
        attempts = Attempts(connection.timeout, connection.retries)
        method = getattr(self._stub, call.method)
        while True:
            try:
                response = method(call.request, timeout=attempts.remaining(), metadata=connection.metadata)
            except grpc.RpcError as error:
                pause = attempts.pause(error)
                if pause is None:
                    raise error_of_call(error, connection.target) from error
                time.sleep(pause)
            else:
                return call.outcome(response)


def _requests(images: Iterable[AnyImage], state: StreamState) -> Iterator[pb.ExplainStreamRequest]:
    with state:
        for index, image in enumerate(images):
            message = state.outgoing(index, image)
            if message is not None:
                yield message
