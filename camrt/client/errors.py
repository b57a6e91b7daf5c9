"""What a server's refusal becomes: the error that an Explainer in this process would raise, or RemoteError."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from camrt.errors import (
    CamrtError,
    ClassIndexError,
    InvalidInputError,
    LayerNotFoundError,
    MethodNotFoundError,
    MethodUnavailableError,
)
from camrt.v1 import explainer_pb2 as pb

PUSHBACK_KEY = "grpc-retry-pushback-ms"

_DETAILS_KEY = "grpc-status-details-bin"
_LOCAL: dict[str, type[CamrtError]] = {
    "INVALID_ARGUMENT": InvalidInputError,
    "METHOD_NOT_FOUND": MethodNotFoundError,
    "METHOD_UNAVAILABLE": MethodUnavailableError,
    "CLASS_NOT_FOUND": ClassIndexError,
    "LAYER_NOT_FOUND": LayerNotFoundError,
}
_NEXT_STEPS = {
    "UNAVAILABLE": "Is the server running, is its address right, and do both sides speak TLS (--tls) or neither?",
    "DEADLINE_EXCEEDED": "Allow more time with timeout=.",
    "UNAUTHENTICATED": "Give token=, or a client certificate.",
}


class RemoteError(CamrtError):
    """A server did not answer, or refused for a reason that an Explainer does not have.

    Attributes:
        code: name of the gRPC code, e.g. "UNAVAILABLE".
        reason: what went wrong, e.g. "MODEL_NOT_FOUND"; empty where a server of another kind, or nobody, answered.
        request_id: under which the server's log has the request, or empty.
        retry_after_ms: when the server would take it, or None where it does not say.
    """

    def __init__(
        self,
        message: str,
        next_step: str,
        code: str,
        reason: str = "",
        request_id: str = "",
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message, next_step)
        self.code = code
        self.reason = reason
        self.request_id = request_id
        self.retry_after_ms = retry_after_ms


def error_of_call(error: grpc.RpcError | grpc.aio.AioRpcError, target: str) -> CamrtError:
    """The error of a call that failed."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    trailers = trailers_of(error)
    reason, request_id = _error_info(trailers)
    return _error(error.code().name, reason, request_id, error.details() or "", target, pushback_of(trailers))


def error_of_message(error: pb.Error, target: str) -> CamrtError:
    """The error of one image of a stream."""
    code = next((code.name for code in grpc.StatusCode if code.value[0] == error.code), "UNKNOWN")
    retry = error.retry_after_ms if error.HasField("retry_after_ms") else None
    return _error(code, error.reason, "", error.message, target, retry)


def trailers_of(error: grpc.RpcError | grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    """The trailing metadata of a call that failed."""
    pairs: Iterable[tuple[str, str | bytes]] = getattr(error, "trailing_metadata", tuple)() or ()
    return dict(pairs)


def pushback_of(trailers: Mapping[str, str | bytes]) -> int | None:
    """``grpc-retry-pushback-ms``; None where there is none, or one that says never: it is negative or no number."""
    text = trailers.get(PUSHBACK_KEY, "")
    told = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    return int(told) if told.isascii() and told.isdecimal() and len(told) < 10 else None


def _error(
    code: str, reason: str, request_id: str, message: str, target: str, retry_after_ms: int | None
) -> CamrtError:
    if reason in _LOCAL:
        return _LOCAL[reason](message)
    told = message if reason else f"The server {target} answered {code}: {message}."
    return RemoteError(told, "" if reason else _NEXT_STEPS.get(code, ""), code, reason, request_id, retry_after_ms)


def _error_info(trailers: Mapping[str, str | bytes]) -> tuple[str, str]:
    """(reason, request id) of the google.rpc.ErrorInfo in the trailers; empty where there is none."""
    details = trailers.get(_DETAILS_KEY, b"")
    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(details if isinstance(details, bytes) else details.encode())
        if not any(item.Unpack(info) for item in status.details):
            return "", ""
    except DecodeError:
        return "", ""
    return info.reason, info.metadata.get("request_id", "")
