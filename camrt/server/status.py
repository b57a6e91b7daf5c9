"""Errors as gRPC statuses: one table, used by every service."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import grpc
from google.rpc import error_details_pb2, status_pb2

from camrt.errors import (
    BackendUnavailableError,
    BundleError,
    ClassIndexError,
    InvalidInputError,
    LayerNotFoundError,
    MethodNotFoundError,
    MethodUnavailableError,
    ModelError,
)
from camrt.server.errors import (
    DeadlineError,
    DrainingError,
    ModelNotFoundError,
    ModelNotReadyError,
    OverloadedError,
    PermissionDeniedError,
    SeveralWorkersError,
    UnauthenticatedError,
)
from camrt.server.public_text import without_folders
from camrt.server.telemetry import REQUEST_ID_HEADER, current_request_id
from camrt.server.tracing import failed

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DOMAIN = "camrt"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
DETAILS_KEY = "grpc-status-details-bin"

# Trailers above 8 KiB are refused by many clients; a byte of the text can take three there, and comes twice.
_MAX_MESSAGE_BYTES = 1000

# The first of a class's ancestors that is in this table counts.
STATUS_TABLE: dict[type[BaseException], tuple[grpc.StatusCode, str]] = {
    InvalidInputError: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    MethodNotFoundError: (grpc.StatusCode.NOT_FOUND, "METHOD_NOT_FOUND"),
    ClassIndexError: (grpc.StatusCode.NOT_FOUND, "CLASS_NOT_FOUND"),
    LayerNotFoundError: (grpc.StatusCode.NOT_FOUND, "LAYER_NOT_FOUND"),
    ModelNotFoundError: (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    MethodUnavailableError: (grpc.StatusCode.FAILED_PRECONDITION, "METHOD_UNAVAILABLE"),
    ModelError: (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_UNSUITABLE"),
    BundleError: (grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_UNSUITABLE"),
    BackendUnavailableError: (grpc.StatusCode.FAILED_PRECONDITION, "BACKEND_UNAVAILABLE"),
    SeveralWorkersError: (grpc.StatusCode.FAILED_PRECONDITION, "SEVERAL_WORKERS"),
    ModelNotReadyError: (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY"),
    DrainingError: (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    OverloadedError: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    DeadlineError: (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    UnauthenticatedError: (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    PermissionDeniedError: (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
}
INTERNAL = (grpc.StatusCode.INTERNAL, "INTERNAL")

_log = logging.getLogger("camrt.server")


@dataclass(frozen=True, slots=True)
class Status:
    """How an error is told to a client.

    Attributes:
        code: the gRPC code.
        reason: what went wrong, in capitals; for programs, as in google.rpc.ErrorInfo.
        message: what went wrong and what to do, at most 1000 bytes of UTF-8.
        retry_after_ms: when to try again; None where the server does not say.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    retry_after_ms: int | None = None

    def trailers(self, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata: the request id, google.rpc.Status with an ErrorInfo, the pushback."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata={"request_id": request_id})
        status = status_pb2.Status(code=code_number(self.code), message=self.message)
        status.details.add().Pack(info)
        trailers: list[tuple[str, str | bytes]] = [
            (REQUEST_ID_HEADER, request_id),
            (DETAILS_KEY, status.SerializeToString()),
        ]
        if self.retry_after_ms is not None:
            trailers.append((PUSHBACK_KEY, str(self.retry_after_ms)))
        return tuple(trailers)


def status_of(error: BaseException, request_id: str) -> Status:
    """The status of an error.

    An error that is not in the table says nothing about itself to the client but the id under which the log has it.
    """
    row = next((STATUS_TABLE[kind] for kind in type(error).__mro__ if kind in STATUS_TABLE), None)
    if row is None:
        return Status(*INTERNAL, f"The server failed. Ask its operator about request {request_id}.")
    pushback = max(0, math.ceil(error.retry_after_ms)) if isinstance(error, OverloadedError) else None
    told = without_folders(str(error)) if row[0] is grpc.StatusCode.FAILED_PRECONDITION else str(error)
    return Status(*row, _shortened(told), pushback)


def code_number(code: grpc.StatusCode) -> int:
    """The number of a gRPC code."""
    number, _ = code.value
    return int(number)


def new_request_id() -> str:
    """A name for a request that has none yet, for logs and trailers."""
    return uuid.uuid4().hex


def log_failure(error: BaseException, status: Status, request_id: str) -> None:
    """An error that is the server's own goes to the log, with its traceback."""
    if status.code is grpc.StatusCode.INTERNAL:
        told = (type(error), error, error.__traceback__)
        _log.error("request %s failed", request_id, exc_info=told, extra={"request_id": request_id})


async def abort(context: Context, error: BaseException, request_id: str) -> None:
    """Ends a call with the status of an error; it raises, as context.abort does.

    Where the caller has gone meanwhile there is nobody to tell: the call counts as cancelled.
    """
    status = status_of(error, request_id)
    log_failure(error, status, request_id)
    failed(error, status.reason)
    try:
        await context.abort(status.code, status.message, status.trailers(request_id))
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError from gone


class Edge:
    """Where errors leave a service: ``async with Edge(context): ...`` ends the call with the status of what is raised.

    Cancellation passes, and what context.abort raised.
    """

    def __init__(self, context: Context, request_id: str = "") -> None:
        self.request_id = request_id or current_request_id() or new_request_id()
        self._context = context

    async def __aenter__(self) -> Edge:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, grpc.aio.InternalError):  # of a reply that could not be sent, since the caller has gone
            raise asyncio.CancelledError from error
        if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            await abort(self._context, error, self.request_id)


def _shortened(text: str) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= _MAX_MESSAGE_BYTES:
        return data.decode("utf-8")
    return data[: _MAX_MESSAGE_BYTES - 3].decode("utf-8", "ignore") + "..."
