"""The table of errors and gRPC statuses."""

from __future__ import annotations

import asyncio
import inspect

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import camrt.errors
import camrt.server.errors
from camrt.errors import CamrtError, ImageError, InvalidInputError, UnsupportedModelError, UnsupportedOpError
from camrt.server.errors import DeadlineError, OverloadedError, ServerError, SettingsError, WorkerStartError
from camrt.server.status import INTERNAL, STATUS_TABLE, Edge, Status, code_number, status_of

CODES = {
    "INVALID_ARGUMENT": ["InvalidInputError", "ImageError", "ImputationError"],
    "NOT_FOUND": ["MethodNotFoundError", "ClassIndexError", "LayerNotFoundError", "ModelNotFoundError"],
    "FAILED_PRECONDITION": [
        "MethodUnavailableError",
        "ModelError",
        "InvalidModelError",
        "UnsupportedModelError",
        "UnsupportedOpError",
        "BundleError",
        "BackendUnavailableError",
        "SeveralWorkersError",
    ],
    "UNAVAILABLE": ["ModelNotReadyError", "DrainingError"],
    "RESOURCE_EXHAUSTED": ["OverloadedError"],
    "DEADLINE_EXCEEDED": ["DeadlineError"],
    "UNAUTHENTICATED": ["UnauthenticatedError"],
    "PERMISSION_DENIED": ["PermissionDeniedError"],
}
# Bases, and what is never raised while a request is served.
UNTOLD = {CamrtError, ServerError, SettingsError, WorkerStartError}


def error_classes() -> list[type[CamrtError]]:
    found = {
        kind
        for module in (camrt.errors, camrt.server.errors)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, CamrtError)
    }
    return sorted(found - UNTOLD, key=lambda kind: kind.__name__)


def made(kind: type[CamrtError]) -> CamrtError:
    return kind("Conv", "node") if kind is UnsupportedOpError else kind("What happened.", "What to do.")


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_every_typed_error_has_its_code(kind: type[CamrtError]) -> None:
    error = made(kind)
    status = status_of(error, "id")
    assert kind.__name__ in CODES[status.code.name]
    assert status.message == str(error)
    assert status.reason.isupper()


def test_reasons_are_unique() -> None:
    reasons = [reason for _, reason in STATUS_TABLE.values()]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("secret"), MemoryError("secret"), KeyError("secret"), CamrtError("secret"), OSError("secret")],
)
def test_other_errors_keep_their_text(error: Exception) -> None:
    status = status_of(error, "request-7")
    assert (status.code, status.reason) == INTERNAL
    assert "secret" not in status.message
    assert "request-7" in status.message


def test_trailers() -> None:
    status = status_of(OverloadedError("Full.", "Wait.", retry_after_ms=250.2), "request-7")
    trailers = dict(status.trailers("request-7"))
    assert trailers["grpc-retry-pushback-ms"] == "251"
    assert trailers["x-request-id"] == "request-7"
    details = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert (details.code, details.message) == (8, "Full. Wait.")
    info = error_details_pb2.ErrorInfo()
    assert details.details[0].Unpack(info)
    assert (info.reason, info.domain, info.metadata["request_id"]) == ("OVERLOADED", "camrt", "request-7")
    assert "grpc-retry-pushback-ms" not in dict(status_of(ImageError("No."), "id").trailers("id"))


@pytest.mark.parametrize("text", ["a" * 5000, "é" * 5000, "\N{SNOWMAN}" * 5000, "\ud800" * 5000])
def test_long_messages_are_cut(text: str) -> None:
    message = status_of(InvalidInputError(text), "id").message
    assert 990 <= len(message.encode()) <= 1000
    assert message.endswith("...")


def test_code_numbers() -> None:
    assert [code_number(code) for code in grpc.StatusCode] == [code.value[0] for code in grpc.StatusCode]
    assert code_number(grpc.StatusCode.NOT_FOUND) == 5


class Aborted(grpc.aio.AbortError):
    pass


class Context:
    """Remembers what a call was ended with."""

    def __init__(self) -> None:
        self.ended: tuple | None = None

    async def abort(self, code, details, trailers) -> None:
        self.ended = (code, details, dict(trailers))
        raise Aborted


def leave(error: BaseException, context: Context) -> BaseException | None:
    """What comes out of the edge when ``error`` is raised inside."""

    async def call() -> None:
        async with Edge(context, "request-7"):
            raise error

    with pytest.raises(BaseException) as caught:  # noqa: PT011
        asyncio.run(call())
    return caught.value


def test_the_edge_ends_a_call_with_the_status() -> None:
    context = Context()
    assert isinstance(leave(UnsupportedModelError("It cannot.", "Try."), context), Aborted)
    code, details, trailers = context.ended
    assert (code, details) == (grpc.StatusCode.FAILED_PRECONDITION, "It cannot. Try.")
    assert trailers["x-request-id"] == "request-7"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), Aborted(), KeyboardInterrupt()])
def test_the_edge_lets_pass(error: BaseException) -> None:
    context = Context()
    assert isinstance(leave(error, context), type(error))
    assert context.ended is None


def test_only_the_servers_own_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    leave(DeadlineError("Late."), Context())
    assert not caplog.records
    leave(ZeroDivisionError("secret"), Context())
    (record,) = caplog.records
    assert record.request_id == "request-7"
    assert record.exc_info[0] is ZeroDivisionError


def test_a_status_without_a_pushback() -> None:
    assert Status(grpc.StatusCode.OK, "FINE", "").retry_after_ms is None
