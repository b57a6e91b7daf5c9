"""Hostile requests: a typed status, or a result; never another one, a hang, a crash, or a line in the log that is not ours.

Every test ends with a look at the server: it still answers, and holds nothing of what it refused.
"""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import camrt
from camrt.explainer import sample_image_path
from camrt.inference import open_inference_pb2 as oip
from camrt.server.logs import JsonFormatter
from camrt.v1 import explainer_pb2 as pb
from camrt.v1.explainer_pb2_grpc import ExplainerServiceStub
from tests.server.loopback import Loopback

EXPLAIN = "/camrt.v1.ExplainerService/Explain"
EVALUATE = "/camrt.v1.ExplainerService/Evaluate"
INFER = "/inference.GRPCInferenceService/ModelInfer"
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
MESSAGE_BYTES = 2 << 20
IMAGE_PIXELS = 1_000_000
SECONDS = 30
MUTATIONS = 150
REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}
SAMPLE = sample_image_path().read_bytes()
SHAPE = camrt.Explainer(threads=1).manifest.input_shape

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with Loopback(message_bytes=MESSAGE_BYTES, image_pixels=IMAGE_PIXELS, log_requests=True) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Loopback) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.address, options) as channel:
        yield channel


@pytest.fixture
def call(channel: grpc.Channel) -> Call:
    """Sends bytes, or a message, to a method; returns the bytes of the reply."""

    def send(method: str, request: Any, **options: Any) -> bytes:
        data = request if isinstance(request, bytes) else request.SerializeToString()
        reply: bytes = channel.unary_unary(method)(data, timeout=SECONDS, **options)
        return reply

    return send


@pytest.fixture(autouse=True)
def still_well(server: Loopback, channel: grpc.Channel) -> Iterator[None]:
    yield
    reply = ExplainerServiceStub(channel).Explain(explain_request(), timeout=SECONDS)
    assert reply.explanations[0].prediction.class_name == "triangle outline"
    for _ in range(100):  # what a client left is cleaned up soon after
        if not server.app.engine.in_flight:
            break
        time.sleep(0.02)
    assert server.app.engine.in_flight == 0


def explain_request(**fields: Any) -> pb.ExplainRequest:
    return pb.ExplainRequest(**{"image": pb.Image(encoded=SAMPLE), **fields})


def infer_request(
    datatype: str = "BYTES", shape: tuple[int, ...] = (1,), raw: bytes | None = None, **fields: Any
) -> Any:
    raw = struct.pack("<I", len(SAMPLE)) + SAMPLE if raw is None else raw
    image = oip.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=shape)
    return oip.ModelInferRequest(**{"inputs": [image], "raw_input_contents": [raw], **fields})


class Growth:
    """``with Growth() as growth``: afterwards ``growth.kibibytes`` is the highest that this process's memory rose meanwhile.

    The kernel's high-water mark is set back first: it is of the whole life of the process, and what peaks below an
    earlier peak would go unseen.
    """

    def __enter__(self) -> Growth:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = memory("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        self.kibibytes = memory("VmHWM") - self._before


def memory(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])


def code_of(call: Call, method: str, request: Any) -> grpc.StatusCode:
    """OK, or the code of the error."""
    try:
        call(method, request)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def refused(call: Call, method: str, request: Any) -> grpc.RpcError:
    """The error of a request that must be refused, fast, in few words."""
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        call(method, request)
    assert time.monotonic() - started < 5
    assert caught.value.code() in REFUSALS, caught.value
    assert len(caught.value.details().encode()) <= 1000
    return caught.value


# Tensors


@pytest.mark.parametrize(
    "tensor",
    [
        pb.Tensor(),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=SHAPE),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[], data=b"abcd"),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[-1, -1, -4], data=bytes(16)),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[0, 224, 224], data=b""),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[1 << 32, 1 << 32], data=b""),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[1 << 62, 1 << 62, 4], data=bytes(4)),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[(1 << 63) - 1], data=bytes(4)),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[1] * 100_000, data=bytes(4)),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=SHAPE, data=bytes(7)),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=SHAPE, data=b"\xff" * (4 * 3 * 224 * 224)),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT16, shape=SHAPE, data=b"\x00\x7c" * (3 * 224 * 224)),
        pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=SHAPE, data=bytes(3 * 224 * 224)),
        pb.Tensor(data_type=77, shape=SHAPE, data=bytes(4 * 3 * 224 * 224)),
        pb.Tensor(data_type=-2, shape=[4], data=bytes(4)),
    ],
)
def test_tensors(tensor: pb.Tensor, call: Call) -> None:
    assert SHAPE == (3, 224, 224)
    for image in (pb.Image(input=tensor), pb.Image(pixels=tensor)):
        refused(call, EXPLAIN, explain_request(image=image))
    refused(call, EVALUATE, pb.EvaluateRequest(image=pb.Image(encoded=SAMPLE), saliency_map=tensor))
    refused(
        call, EVALUATE, pb.EvaluateRequest(image=pb.Image(encoded=SAMPLE), object_mask=tensor, metrics=["mass_iou"])
    )


@pytest.mark.parametrize("side", [(1, 1, 3), (1, 300_000, 3), (2, 2, 3_000), (1001, 1000, 3)])
def test_pixels_of_odd_shapes(side: tuple[int, ...], call: Call) -> None:
    size = int(np.prod(side))
    tensor = pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=side, data=bytes(min(size, MESSAGE_BYTES // 2)))
    refused(call, EXPLAIN, explain_request(image=pb.Image(pixels=tensor)))


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", (1, *SHAPE), b""),
        ("FP32", (1, *SHAPE), bytes(5)),
        ("FP32", (-1, -1, -1, -1), bytes(4)),
        ("FP32", (1 << 40, 1 << 40, 1 << 40, 1 << 40), bytes(4)),
        ("FP32", (1,) * 100_000, bytes(4)),
        ("FP32", (), bytes(4)),
        ("FP32", (1, *SHAPE), b"\xff" * (4 * 3 * 224 * 224)),
        ("UINT8", (1, 0, 0, 3), b""),
        ("UINT8", (1, 1 << 31, 1 << 31, 3), b""),
        ("BYTES", (1 << 62,), b""),
        ("BYTES", (1,), b""),
        ("BYTES", (1,), b"\x01"),
        ("BYTES", (1,), struct.pack("<I", 0xFFFFFFFF) + b"data"),
        ("BYTES", (1,), struct.pack("<I", 2) + b"data"),
        ("BYTES", (2,), struct.pack("<I", 4) + b"data"),
        ("BYTES", (500_000,), bytes(2_000_000)),
        ("BYTES", (1,), struct.pack("<I", 0)),
        ("FP64", (1, *SHAPE), bytes(8)),
        ("BF16", (1,), bytes(2)),
        ("\x00", (1,), bytes(1)),
        ("F" * 1_000_000, (1,), bytes(1)),
        ("", (1,), bytes(1)),
    ],
)
def test_raw_tensors_of_open_inference(datatype: str, shape: tuple[int, ...], raw: bytes, call: Call) -> None:
    refused(call, INFER, infer_request(datatype, shape, raw))


def test_contents_of_open_inference_that_contradict_each_other(call: Call) -> None:
    both = infer_request()
    both.inputs[0].contents.bytes_contents.append(SAMPLE)
    more = infer_request(raw_input_contents=[b"", b""])
    fewer = infer_request()
    fewer.inputs.add(name="class_index", datatype="INT64", shape=[1])
    none = infer_request(raw_input_contents=[])
    foreign = infer_request("UINT8", (1, 2, 2, 3), raw_input_contents=[])
    foreign.inputs[0].contents.fp32_contents.extend([0.0] * 12)
    large = infer_request("UINT8", (1, 2, 2, 3), raw_input_contents=[])
    large.inputs[0].contents.uint_contents.extend([256] * 12)
    mixed = infer_request("UINT8", (1, 2, 2, 3), raw_input_contents=[])
    mixed.inputs[0].contents.uint_contents.extend([25] * 12)
    mixed.inputs[0].contents.int_contents.append(1)
    for request in (both, more, fewer, none, foreign, large, mixed):
        refused(call, INFER, request)


def test_floods_of_names(call: Call) -> None:
    many = infer_request()
    for number in range(20_000):
        many.parameters[f"parameter {number}"].int64_param = number
    refused(call, INFER, many)
    inputs = oip.ModelInferRequest()
    for number in range(50_000):
        inputs.inputs.add(name=f"input {number}")
    refused(call, INFER, inputs)
    outputs = infer_request()
    for number in range(50_000):
        outputs.outputs.add(name=f"output {number}")
    refused(call, INFER, outputs)
    doubled = infer_request()
    for _ in range(50_000):
        doubled.outputs.add(name="logits")
    reply = oip.ModelInferResponse.FromString(call(INFER, doubled))
    assert len(reply.outputs) == 1
    refused(call, EXPLAIN, explain_request(selection=pb.ClassSelection(indices=range(100_000))))
    refused(call, EXPLAIN, explain_request(selection=pb.ClassSelection(names=["circle"] * 100_000)))
    layers = pb.ExplanationOptions(target_layers=["layer"] * 100_000)
    refused(call, EXPLAIN, explain_request(options=layers))
    metrics = pb.EvaluateRequest(image=pb.Image(encoded=SAMPLE), metrics=["arcc"] * 100_000)
    refused(call, EVALUATE, metrics)


NARROW = [
    {"output_height": 1, "output_width": 16385, "encoding": 1},
    {"output_height": 16385, "output_width": 1, "encoding": 4},
    {"output_height": 1, "output_width": 30_000_000, "encoding": 1},
    {"output_height": 1, "output_width": 50_000_000, "encoding": 4},
    {"output_height": 2, "output_width": 24_000_000, "encoding": 5},
    {"output_height": 50_000_000, "output_width": 1, "encoding": 6},
]


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": -1},
        {"top_k": (1 << 31) - 1},
        {"selection": pb.ClassSelection(indices=[1 << 62])},
        {"selection": pb.ClassSelection(indices=[-(1 << 63)])},
        {"selection": pb.ClassSelection(names=["x" * 1_000_000])},
        {"selection": pb.ClassSelection()},
        {"options": pb.ExplanationOptions(method="m" * 1_000_000)},
        {"options": pb.ExplanationOptions(fusion="\r\n\x1b[31m")},
        {"options": pb.ExplanationOptions(target_layers=["\x00" * 1000])},
        {"output": pb.OutputOptions(encoding=99)},
        {"output": pb.OutputOptions(space=-7)},
        {"output": pb.OutputOptions(space=3, output_height=(1 << 31) - 1, output_width=(1 << 31) - 1)},
        {"output": pb.OutputOptions(space=3, output_height=-5, output_width=5)},
        {"output": pb.OutputOptions(space=3, output_height=7000, output_width=7000, encoding=3)},
        *({"output": pb.OutputOptions(space=3, **fields)} for fields in NARROW),
        {
            "output": pb.OutputOptions(space=3, output_height=7000, output_width=7000, encoding=4),
            "selection": pb.ClassSelection(indices=[0] * 32),
        },
        {"output": pb.OutputOptions(encoding=5, colormap="../../etc/passwd")},
        {"output": pb.OutputOptions(encoding=5, opacity=float("nan"))},
        {"output": pb.OutputOptions(encoding=5, opacity=float("inf"))},
        {"model": pb.ModelReference(name="../../../etc/passwd")},
        {"model": pb.ModelReference(name="shapes", version="-1")},
        {"model": pb.ModelReference(name="shapes", version="9" * 100_000)},
        {"model": pb.ModelReference(name="shapes", version="\u0661")},
        {"model": pb.ModelReference(name="n" * 1_000_000)},
    ],
)
def test_options(fields: dict[str, Any], call: Call) -> None:
    refused(call, EXPLAIN, explain_request(**fields))


@pytest.mark.parametrize("fields", NARROW)
def test_narrow_maps(fields: dict[str, Any], call: Call) -> None:
    with Growth() as growth:
        refused(call, EXPLAIN, explain_request(output=pb.OutputOptions(space=3, **fields)))
        height, width = fields["output_height"], fields["output_width"]
        infer = infer_request()
        infer.parameters["output_size"].string_param = f"{min(height, 999_999)}x{min(width, 999_999)}"
        refused(call, INFER, infer)
    assert growth.kibibytes < 100 << 10


def test_the_longest_maps_are_harmless(call: Call) -> None:
    """The kernels hold little beside a map of the longest side."""
    output = pb.OutputOptions(space=3, output_height=100, output_width=16384, encoding=pb.MAP_ENCODING_PNG)
    with Growth() as growth:
        assert pb.ExplainResponse.FromString(call(EXPLAIN, explain_request(output=output)))
    assert growth.kibibytes < 100 << 10


# Images


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_zeros(width: int, height: int) -> bytes:
    """A whole PNG, black, made without its pixels in memory."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_that_claims(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_that_claims(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "WEBP", lossless=True)
    data = bytearray(stream.getvalue())
    at = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little") & ~0xFFFFFFF
    data[at : at + 4] = (bits | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(data)


def png_with_text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "A" * 50_000_000, zip=True)
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def both_services(image: bytes) -> list[tuple[str, Any]]:
    return [
        (EXPLAIN, explain_request(image=pb.Image(encoded=image))),
        (INFER, infer_request(raw=struct.pack("<I", len(image)) + image)),
    ]


def test_a_peak_below_an_earlier_one_is_seen() -> None:
    del (bytearray(400 << 20))[:]
    with Growth() as growth:
        del (bytearray(200 << 20))[:]
    assert 190 << 10 < growth.kibibytes < 300 << 10


BOMBS = {
    "png": lambda: png_of_zeros(12_000, 12_000),
    "png header": lambda: png_of_zeros(4, 4).replace(struct.pack(">II", 4, 4), struct.pack(">II", 1 << 30, 1 << 30)),
    "jpeg": lambda: jpeg_that_claims(65_000, 65_000),
    "webp": lambda: webp_that_claims(16_000, 16_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(kind: str, call: Call) -> None:
    bomb = BOMBS[kind]()
    assert len(bomb) < MESSAGE_BYTES
    with Growth() as growth:
        for method, request in both_services(bomb):
            refused(call, method, request)
    assert growth.kibibytes < 100 << 10


def test_compressed_text_in_an_image_takes_no_memory(call: Call) -> None:
    bomb = png_with_text_bomb()
    with Growth() as growth:
        for method, request in both_services(bomb):
            refused(call, method, request)
    assert growth.kibibytes < 100 << 10


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"GIF89a" + bytes(100),
        b"%PDF-1.7\n" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"II*\x00" + bytes(100),
        b"BM" + bytes(100),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff" + b"\xff" * 1000,
        b"RIFF\x00\x00\x00\x00WEBP" + bytes(100),
        SAMPLE[:100],
        SAMPLE[: len(SAMPLE) // 2],
        b"/etc/passwd",
    ],
)
def test_files_that_are_no_images(image: bytes, call: Call) -> None:
    for method, request in both_services(image):
        refused(call, method, request)


def test_mutated_images(call: Call) -> None:
    rng = np.random.default_rng(1)
    stream = io.BytesIO()
    Image.open(sample_image_path()).convert("RGB").save(stream, "JPEG")
    for number in range(60):
        data = bytearray((SAMPLE, stream.getvalue())[number % 2])
        for at in rng.integers(0, min(len(data), 700), rng.integers(1, 6)):
            data[at] = rng.integers(256)
        for method, request in both_services(bytes(data)):
            assert code_of(call, method, request) in REFUSALS | {grpc.StatusCode.OK}


# Messages


def test_messages_above_the_limit(call: Call) -> None:
    for method in (EXPLAIN, INFER):
        with pytest.raises(grpc.RpcError) as caught:
            call(method, bytes(MESSAGE_BYTES + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_that_is_compressed_to_little_is_measured_unpacked(call: Call) -> None:
    huge = explain_request(image=pb.Image(encoded=bytes(50_000_000)))
    with Growth() as growth, pytest.raises(grpc.RpcError) as caught:
        call(EXPLAIN, huge, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert growth.kibibytes < 250 << 10  # the client's own copies


@pytest.mark.parametrize("method", [EXPLAIN, EVALUATE, INFER, LOAD])
@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 50,
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x05ab",
        b"\x12" * 10_000,
        b"\x0b" * 200_000,
        b"GET / HTTP/1.1\r\n\r\n",
        "not protobuf, \u2028 just text".encode(),
    ],
    ids=["ones", "endless", "cut", "nested", "groups", "http", "text"],
)
def test_bytes_that_are_no_message(method: str, data: bytes, call: Call) -> None:
    refused(call, method, data)


def test_bytes_that_are_no_message_in_a_stream(channel: grpc.Channel) -> None:
    for method in ("/camrt.v1.ExplainerService/ExplainStream", "/inference.GRPCInferenceService/ModelStreamInfer"):
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(method)(iter([b"\xff" * 50]), timeout=SECONDS))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", [EXPLAIN, INFER])
def test_mutated_messages(method: str, call: Call) -> None:
    rng = np.random.default_rng(2)
    small = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(small, "PNG")
    image = small.getvalue()
    requests = dict(both_services(image))
    requests[EXPLAIN].options.method = "refinecam"
    requests[EXPLAIN].output.encoding = pb.MAP_ENCODING_PNG
    requests[INFER].parameters["top_k"].int64_param = 2
    original = requests[method].SerializeToString()
    for _ in range(MUTATIONS):
        data = bytearray(original)
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            data[at] = rng.integers(256)
        if rng.random() < 0.2:
            del data[int(rng.integers(len(data))) :]
        assert code_of(call, method, bytes(data)) in REFUSALS | {grpc.StatusCode.OK}


@pytest.mark.parametrize(
    "method", ["/", "/x", "/camrt.v1.ExplainerService/", "/camrt.v1.ExplainerService/Drop", "/" * 99]
)
def test_methods_that_are_not_there(method: str, call: Call) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(method, b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stream_of_hostile_messages_ends_nobody_elses(channel: grpc.Channel) -> None:
    hostile = [
        pb.ExplainStreamRequest(id="\r\n" * 1000, request=pb.ExplainRequest()),
        pb.ExplainStreamRequest(id="b", request=explain_request(top_k=-1)),
        pb.ExplainStreamRequest(id="c", request=explain_request(image=pb.Image(encoded=b"\xff\xd8\xff"))),
        pb.ExplainStreamRequest(id="d", request=explain_request()),
    ]
    replies = list(ExplainerServiceStub(channel).ExplainStream(iter(hostile), timeout=SECONDS))
    assert [reply.WhichOneof("result") for reply in replies] == ["error", "error", "error", "response"]
    assert [reply.id for reply in replies] == [request.id for request in hostile]


# What is no gRPC


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01" + bytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
        bytes(10_000),
        b"",
    ],
    ids=["http", "tls", "http2", "zeros", "silence"],
)
def test_connections_that_speak_something_else(data: bytes, server: Loopback) -> None:
    host, port = server.address.split(":")
    connections = [socket.create_connection((host, int(port)), timeout=5) for _ in range(20)]
    for connection in connections:
        connection.sendall(data)
    for connection in connections:
        connection.close()


# The log


def test_nothing_that_a_client_sends_forges_a_line_of_the_log(call: Call, channel: grpc.Channel) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("camrt.server")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    forged = 'x"}\n{"level": "error", "message": "forged"}\r\x1b[2J\u2028\u202e\x00'
    try:
        for method, request in (
            (EXPLAIN, explain_request(model=pb.ModelReference(name=forged, version=forged))),
            (EXPLAIN, explain_request(options=pb.ExplanationOptions(method=forged))),
            (EXPLAIN, explain_request(selection=pb.ClassSelection(names=[forged]))),
            (INFER, infer_request(model_name=forged, id=forged)),
            (LOAD, oip.RepositoryModelLoadRequest(model_name=forged)),
        ):
            refused(call, method, request)
        call(EXPLAIN, explain_request(), metadata=(("x-request-id", '"}{"forged": 1}' + "y" * 5000),))
        call(EXPLAIN, explain_request(), metadata=(("user-agent", "forged"), ("x-odd-bin", forged.encode())))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 7
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        fields = json.loads(line)
        assert fields["logger"].startswith("camrt.server")
        assert fields.get("message") != "forged"
        assert "forged" not in fields
        assert len(fields.get("request_id", "")) <= 64
    assert "yyyyy" not in stream.getvalue()


def test_an_error_of_the_server_is_not_told_to_the_client(
    call: Call, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("secret path /srv/models")

    monkeypatch.setattr(server.app.repository, "get", broken)
    for method, request in both_services(SAMPLE):
        with pytest.raises(grpc.RpcError) as caught:
            call(method, request)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        trailers = str(caught.value.trailing_metadata())
        assert "secret" not in caught.value.details() + trailers
        assert dict(caught.value.trailing_metadata())["x-request-id"] in caught.value.details()
    monkeypatch.undo()
