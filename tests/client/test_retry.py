"""When a call is tried again, and what refusals and damaged replies become. Without a server."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from camrt.client import RemoteError
from camrt.client.errors import error_of_call, error_of_message
from camrt.client.models import RemoteParity, details_of, summary_of
from camrt.client.replies import reply_of
from camrt.client.retry import Attempts
from camrt.errors import ClassIndexError, InvalidInputError
from camrt.v1 import explainer_pb2 as pb


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def failed(code: grpc.StatusCode, details: str = "", **trailers: str | bytes) -> grpc.aio.AioRpcError:
    pairs = [(name.replace("_", "-"), value) for name, value in trailers.items()]
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*pairs), details)


def test_unavailable_backs_off() -> None:
    attempts = Attempts(100, 9, Clock())
    waits = [attempts.pause(failed(grpc.StatusCode.UNAVAILABLE)) for _ in range(9)]
    for wait, base in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5], strict=True):
        assert 0.8 * base <= wait <= 1.2 * base
    assert attempts.pause(failed(grpc.StatusCode.UNAVAILABLE)) is None


@pytest.mark.parametrize(
    ("pushback", "wait"), [("250", 0.25), ("0", 0.0), (b"40", 0.04), ("-1", None), ("soon", None), ("1" * 400, None)]
)
def test_pushback_is_obeyed(pushback: str | bytes, wait: float | None) -> None:
    error = failed(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc_retry_pushback_ms=pushback)
    assert Attempts(10, 1, Clock()).pause(error) == wait


def test_a_negative_pushback_stops_unavailable_too() -> None:
    error = failed(grpc.StatusCode.UNAVAILABLE, grpc_retry_pushback_ms="-1")
    assert Attempts(10, 5, Clock()).pause(error) is None


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.UNAVAILABLE])
def test_other_codes_are_final(code: grpc.StatusCode) -> None:
    assert Attempts(10, 5, Clock()).pause(failed(code)) is None


def test_all_attempts_share_the_timeout() -> None:
    clock = Clock()
    attempts = Attempts(10, 5, clock)
    assert attempts.remaining() == 10
    clock.now += 9
    assert attempts.remaining() == 1
    busy = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert attempts.pause(failed(busy, grpc_retry_pushback_ms="999")) == 0.999
    assert attempts.pause(failed(busy, grpc_retry_pushback_ms="1000")) is None
    clock.now += 5
    assert attempts.remaining() == 0


@pytest.mark.parametrize("details", [b"", b"\xff\xff", b"garbage", b"\x08\x05"])
def test_trailers_of_another_server(details: bytes) -> None:
    error = error_of_call(failed(grpc.StatusCode.INTERNAL, "what", grpc_status_details_bin=details), "host:1")
    assert isinstance(error, RemoteError)
    assert (error.code, error.reason, error.request_id) == ("INTERNAL", "", "")
    assert "host:1" in str(error)
    assert "what" in str(error)


def test_errors_of_a_stream() -> None:
    known = error_of_message(pb.Error(code=5, message="No class.", reason="CLASS_NOT_FOUND"), "host:1")
    assert type(known) is ClassIndexError
    strange = error_of_message(pb.Error(code=999, message="What?", reason="NEW"), "host:1")
    assert isinstance(strange, RemoteError)
    assert (strange.code, strange.reason) == ("UNKNOWN", "NEW")
    assert type(error_of_message(pb.Error(code=3, reason="INVALID_ARGUMENT"), "")) is InvalidInputError


def response(**saliency_map) -> pb.ExplainResponse:
    return pb.ExplainResponse(explanations=[pb.Explanation(saliency_map=pb.Map(**saliency_map))])


@pytest.mark.parametrize(
    "damaged",
    [
        response(encoding=1, height=2, width=2, data=b"123"),
        response(encoding=1, height=-2, width=-2, data=b"1234"),
        response(encoding=3, height=2**31 - 1, width=2**31 - 1, data=b"1234"),
        response(encoding=4, height=2, width=2, data=b"1234"),
        response(encoding=77, height=2, width=2, data=b"1234"),
        response(),
        pb.ExplainResponse(probabilities=pb.Tensor(data_type=1, shape=[4], data=b"1234")),
        pb.ExplainResponse(probabilities=pb.Tensor(data_type=3, shape=[2], data=b"1234")),
    ],
)
def test_damaged_replies(damaged: pb.ExplainResponse) -> None:
    with pytest.raises(RemoteError, match="The server sent"):
        reply_of(damaged, False, pb.OUTPUT_SPACE_INPUT)


@pytest.mark.parametrize(
    ("sent_tensor", "space", "expected"),
    [
        (False, pb.OUTPUT_SPACE_UNSPECIFIED, False),
        (False, pb.OUTPUT_SPACE_INPUT, True),
        (False, pb.OUTPUT_SPACE_GIVEN, False),
        (True, pb.OUTPUT_SPACE_UNSPECIFIED, True),
        (True, pb.OUTPUT_SPACE_ORIGINAL, True),
        (True, pb.OUTPUT_SPACE_GIVEN, False),
    ],
)
def test_whose_pixels_a_map_is_in(sent_tensor: bool, space: int, expected: bool) -> None:
    message = response(encoding=1, height=1, width=2, data=b"\x00\xff")
    (explanation,) = reply_of(message, sent_tensor, space).explanations
    assert explanation.in_input_pixels is expected
    np.testing.assert_array_equal(explanation.saliency_map, [[0, 1]])


def test_models_of_a_newer_server() -> None:
    assert summary_of(pb.ModelSummary(state=99)).state == "unknown"
    for text in ("{", "[]", '{"size": [4, 4], "warp": 1}', '{"size": "x"}'):
        with pytest.raises(RemoteError, match="Update camrt"):
            details_of(pb.GetModelResponse(preprocessing_json=text))
    assert details_of(pb.GetModelResponse()).preprocessing is None


def test_figures_of_the_check_at_load() -> None:
    parity = pb.Parity(
        provider="cuda", layer_correlations={"a": 0.5}, logit_error=0.25, top1_agreement=1, threshold=0.75
    )
    details = details_of(pb.GetModelResponse(precision="int8", parity=parity))
    assert (details.precision, details.parity) == ("int8", RemoteParity("cuda", {"a": 0.5}, 0.25, 1.0, 0.75))
    of_an_older_server = details_of(pb.GetModelResponse())
    assert (of_an_older_server.precision, of_an_older_server.parity) == ("", None)
