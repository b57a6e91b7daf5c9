"""What every call goes through: an id, the check of the caller, the metrics, the log."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from camrt.errors import InvalidInputError
from camrt.server.errors import PermissionDeniedError, UnauthenticatedError
from camrt.server.security import Access, Context
from camrt.server.status import Edge, abort, code_number
from camrt.server.telemetry import REQUEST_ID_HEADER, RequestScope, Telemetry, enter_scope, note_message
from camrt.server.tracebacks import drop_tracebacks
from camrt.server.tracing import Tracing, failed

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_LARGE_BYTES = 1 << 20
_SILENT = ("/grpc.health.", "/grpc.reflection.")
logger = logging.getLogger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of a server.

    Args:
        access: who may call what.
        telemetry: where calls are counted.
        log_requests: whether calls that succeed are logged too.
        tracing: where spans go; None where traces are off.
        check_room: raises where a message of so many bytes would be refused once it is parsed.

    Attributes:
        in_flight: calls that are being answered, without those for health and reflection, which need not end.
    """

    def __init__(
        self,
        access: Access,
        telemetry: Telemetry,
        log_requests: bool,
        tracing: Tracing | None = None,
        check_room: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.access, self.telemetry, self.log_requests, self.tracing = access, telemetry, log_requests, tracing
        self.check_room = check_room
        self.in_flight = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            self.telemetry.requests.labels("", "unknown", "UNIMPLEMENTED").inc()
            return handler
        wrapped: Handler = _wrapped(handler, handler_call_details.method, self)
        return wrapped


class _Call:
    """One call, from its first to its last moment."""

    def __init__(self, interceptor: CallInterceptor, method: str, context: Context) -> None:
        self._interceptor, self._method, self._context = interceptor, method, context
        self._counts = not method.startswith(_SILENT)
        self._tracing = interceptor.tracing if self._counts else None
        self._started = time.monotonic()
        self._scope = RequestScope("", method)

    async def __aenter__(self) -> None:
        metadata = {k: v for k, v in self._context.invocation_metadata() or () if isinstance(v, str)}
        self._scope = enter_scope(self._method, metadata.get(REQUEST_ID_HEADER))
        if self._tracing is not None:
            self._tracing.start(self._method, metadata, self._scope.request_id)
        self._interceptor.in_flight += self._counts
        self._context.set_trailing_metadata(((REQUEST_ID_HEADER, self._scope.request_id),))
        try:
            self._interceptor.access.check(self._method, self._context)
        except (UnauthenticatedError, PermissionDeniedError) as error:
            denied = isinstance(error, PermissionDeniedError)
            self._interceptor.telemetry.rejected("permission" if denied else "unauthenticated")
            failed(error, self._code(error))
            self._done(error)
            await abort(self._context, error, self._scope.request_id)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done(error)
        drop_tracebacks(error)

    def _done(self, error: BaseException | None) -> None:
        self._interceptor.in_flight -= self._counts
        seconds, code = time.monotonic() - self._started, self._code(error)
        telemetry, name = self._interceptor.telemetry, self._method.rpartition("/")[2]
        telemetry.requests.labels(self._scope.model, name, code).inc()
        if self._tracing is not None:
            self._tracing.end(code_number(grpc.StatusCode[code]), self._scope.model)
        if not self._counts:
            return
        telemetry.request_seconds.labels(name).observe(seconds)
        if code != "OK" or self._interceptor.log_requests:
            fields = {"method": name, "code": code, "model": self._scope.model, "ms": round(1000 * seconds, 3)}
            logger.info("call", extra=fields)

    def _code(self, error: BaseException | None) -> str:
        if isinstance(error, UnauthenticatedError):
            return "UNAUTHENTICATED"
        if isinstance(error, PermissionDeniedError):
            return "PERMISSION_DENIED"
        if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            return "UNKNOWN"
        code: Any = self._context.code()
        fallback = grpc.StatusCode.OK if error is None else grpc.StatusCode.CANCELLED
        return str(_CODES.get(code, code).name) if code else fallback.name


def _wrapped(handler: Any, method: str, interceptor: CallInterceptor) -> Any:
    writes = handler.response_serializer
    reads = handler.request_deserializer
    parse: Callable[[Any], Any]
    if handler.request_streaming:
        parse = partial(_all_parsed, reads)
    else:
        parse = partial(_parsed_if_room, interceptor.check_room, reads)
    make: Any
    if not handler.response_streaming:
        behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )

        async def answer(data: Any, context: Context) -> Any:
            async with _Call(interceptor, method, context), Edge(context):
                return await behavior(parse(data), context)

        return make(answer, None, writes)
    streaming = handler.stream_stream if handler.request_streaming else handler.unary_stream
    make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler

    async def stream(data: Any, context: Context) -> None:
        async with (
            _Call(interceptor, method, context),
            Edge(context),
            contextlib.aclosing(streaming(parse(data), context)) as replies,
        ):
            async for reply in replies:
                await context.write(reply)

    return make(stream, None, writes)


def _parsed_if_room(check_room: Callable[[int], None], reads: Callable[[bytes], Any], data: bytes) -> Any:
    """A message. A large one takes time to parse, on the event loop: where there is no room it is refused before."""
    if len(data) > _LARGE_BYTES:
        check_room(len(data))
    return _parsed(reads, data)


def _parsed(reads: Callable[[bytes], Any], data: bytes) -> Any:
    """A message. Left to gRPC, bytes that are none would be read before the caller is checked, and end as UNKNOWN."""
    note_message(len(data))
    try:
        return reads(data)
    except DecodeError as error:
        raise InvalidInputError("The request is no message of this method.", "See the .proto files.") from error


async def _all_parsed(reads: Callable[[bytes], Any], stream: AsyncIterable[bytes]) -> AsyncIterator[Any]:
    async for data in stream:
        yield _parsed(reads, data)
