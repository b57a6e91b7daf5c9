"""The calls of both clients, without the waiting: which method, which request, what becomes of the response."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from camrt.client.errors import RemoteError, error_of_message
from camrt.client.models import ModelDetails, ModelSummary, details_of, summary_of
from camrt.client.replies import Reply, StreamReply, reply_of
from camrt.client.requests import AnyImage, ExplainOptions, evaluate_message, explain_message
from camrt.errors import CamrtError, ImageError
from camrt.types import BoolArray, FloatArray
from camrt.v1 import explainer_pb2 as pb
from camrt.v1 import explainer_pb2_grpc as pb_grpc

# The generated module has no types.
STUB: Any = pb_grpc.ExplainerServiceStub

Request = TypeVar("Request")
Response = TypeVar("Response")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[Request, Response, Outcome]):
    """One call: its method, request, and what to make of the response."""

    method: str
    request: Request
    outcome: Callable[[Response], Outcome]


def explain_call(image: AnyImage, options: ExplainOptions) -> UnaryCall[pb.ExplainRequest, pb.ExplainResponse, Reply]:
    """Explain."""
    request = explain_message(image, options)
    sent = _Sent.of(request)
    return UnaryCall("Explain", request, lambda response: reply_of(response, sent.tensor, sent.space))


def evaluate_call(
    image: AnyImage,
    metrics: Sequence[str],
    saliency_map: FloatArray | None,
    object_mask: BoolArray | None,
    options: ExplainOptions,
) -> UnaryCall[pb.EvaluateRequest, pb.EvaluateResponse, dict[str, float]]:
    """Evaluate."""
    request = evaluate_message(image, metrics, saliency_map, object_mask, options)
    return UnaryCall("Evaluate", request, lambda response: dict(response.scores))


def list_models_call() -> UnaryCall[pb.ListModelsRequest, pb.ListModelsResponse, list[ModelSummary]]:
    """ListModels."""
    return UnaryCall("ListModels", pb.ListModelsRequest(), lambda response: [*map(summary_of, response.models)])


def get_model_call(model: str, version: str) -> UnaryCall[pb.GetModelRequest, pb.GetModelResponse, ModelDetails]:
    """GetModel."""
    request = pb.GetModelRequest(model=pb.ModelReference(name=model, version=version))
    return UnaryCall("GetModel", request, details_of)


class StreamState:
    """The images of one stream: those that are on their way, and those that could not even be sent.

    Args:
        options: of every image.
        target: of the server, for errors.

    Attributes:
        failure: what the images, or an option, raised while they were sent: gRPC would hide it. None so far.
    """

    def __init__(self, options: ExplainOptions, target: str) -> None:
        self._options, self._target = options, target
        self.failure: Exception | None = None
        self._sent: dict[int, _Sent] = {}
        self._failed: dict[int, CamrtError] = {}

    def __enter__(self) -> Self:
        """Around the sending: remembers what is raised there."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.failure = error

    def outgoing(self, index: int, image: AnyImage) -> pb.ExplainStreamRequest | None:
        """The message of an image, with its number as the id; None where it cannot be read: its turn comes later."""
        try:
            request = explain_message(image, self._options)
        except ImageError as error:
            self._failed[index] = error
            return None
        self._sent[index] = _Sent.of(request)
        return pb.ExplainStreamRequest(id=str(index), request=request)

    def incoming(self, message: pb.ExplainStreamResponse) -> Iterator[StreamReply]:
        """One answer, after those of the images before it that were not sent."""
        index = int(message.id) if message.id.isdecimal() else -1
        sent = self._sent.pop(index, None)
        if sent is None:
            raise RemoteError(f"The server answered an image {message.id!r}.", "There is none.", "INTERNAL")
        yield from self.rest(index)
        if message.HasField("error"):
            yield StreamReply(index, error=error_of_message(message.error, self._target))
        else:
            yield StreamReply(index, reply=reply_of(message.response, sent.tensor, sent.space))

    def rest(self, before: int | None = None) -> Iterator[StreamReply]:
        """The images that were not sent: those before a number, or all."""
        for index in sorted(index for index in list(self._failed) if before is None or index < before):
            yield StreamReply(index, error=self._failed.pop(index))


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a request says about the pixels of its maps."""

    tensor: bool
    space: int

    @classmethod
    def of(cls, request: pb.ExplainRequest) -> _Sent:
        return cls(request.image.WhichOneof("source") == "input", request.output.space)
