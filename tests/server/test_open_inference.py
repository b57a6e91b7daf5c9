"""The Open Inference Protocol with Triton's own client, against a server in this process."""

from __future__ import annotations

import asyncio
import gc
import io
import queue
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor import Descriptor
from PIL import Image
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

import camrt
from camrt.explainer import embedded_bundle_path, sample_image_path
from camrt.inference import open_inference_pb2 as pb
from camrt.server.errors import OverloadedError
from camrt.server.open_inference import SERVICE_NAME
from camrt.server.security import token_digest
from camrt.types import AnyArray, FloatArray
from camrt.v1 import explainer_pb2 as explainer_pb
from camrt.v1 import explainer_pb2_grpc as explainer_grpc
from tests.server.loopback import Loopback

MODEL = "shapes"
MAX_BATCH = 4


@pytest.fixture(scope="module")
def explainer() -> camrt.Explainer:
    return camrt.Explainer(threads=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    folder = tmp_path_factory.mktemp("models")
    for version in ("1", "2"):
        (folder / MODEL / version).mkdir(parents=True)
        shutil.copy(embedded_bundle_path(), folder / MODEL / version / "bundle.onnx")
    with Loopback(model_repository=folder, keep_versions=2, max_batch=MAX_BATCH, max_delay_ms=1) as running:
        yield running


@pytest.fixture
def client(server: Loopback) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture
def call(server: Loopback) -> Iterator[Callable[[pb.ModelInferRequest], pb.ModelInferResponse]]:
    """ModelInfer with messages of our own, in the process in which tritonclient has its own."""
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary(
            f"/{SERVICE_NAME}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        yield lambda request: method(request, timeout=30)


@pytest.fixture(scope="module")
def tensors(explainer: camrt.Explainer) -> FloatArray:
    rng = np.random.default_rng(0)
    sample = explainer.preprocess_images(str(sample_image_path()))
    noise = rng.standard_normal((2, *explainer.manifest.input_shape)).astype(np.float32)
    return np.concatenate([sample, noise])


def triton_input(name: str, array: AnyArray, datatype: str = "") -> triton.InferInput:
    datatype = datatype or {"float32": "FP32", "uint8": "UINT8", "int64": "INT64", "object": "BYTES"}[str(array.dtype)]
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def files(*contents: bytes) -> AnyArray:
    return np.array(contents, dtype=object)


def png(array: AnyArray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


# The wire


def compare(ours: Descriptor, theirs: Descriptor) -> None:
    for field in ours.fields:
        other = theirs.fields_by_number.get(field.number)
        assert other is not None, field.full_name
        assert (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated)
        if field.message_type is not None:
            assert field.message_type.name == other.message_type.name
        if field.enum_type is not None:
            for value in field.enum_type.values:
                assert other.enum_type.values_by_number[value.number].name == value.name
    for nested in ours.nested_types:
        compare(nested, theirs.nested_types_by_name[nested.name])


def test_every_message_is_tritons_on_the_wire() -> None:
    known = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        compare(message, known[name])
    assert pb.DESCRIPTOR.package != service_pb2.DESCRIPTOR.package


# What the server says


def test_live_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "3")
    assert not client.is_model_ready(MODEL, "x")
    assert not client.is_model_ready("nothing")


def test_server_metadata(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert (metadata.name, metadata.version) == ("camrt", camrt.__version__)
    assert "model_repository" in metadata.extensions


def test_model_metadata(client: triton.InferenceServerClient, explainer: camrt.Explainer) -> None:
    metadata = client.get_model_metadata(MODEL)
    assert (metadata.name, list(metadata.versions)) == (MODEL, ["1", "2"])
    inputs = {item.name: (item.datatype, list(item.shape)) for item in metadata.inputs}
    height, width = explainer.manifest.input_shape[1:]
    assert inputs == {"image": ("FP32", [-1, 3, height, width]), "class_index": ("INT64", [-1, -1])}
    outputs = {item.name: (item.datatype, list(item.shape)) for item in metadata.outputs}
    assert outputs["logits"] == ("FP32", [-1, explainer.manifest.num_classes])
    assert outputs["saliency_map"] == ("FP32", [-1, -1, height, width])
    layer = explainer.manifest.target_layers[0]
    assert outputs[f"gradients/{layer.name}"] == ("FP32", [-1, -1, *layer.shape])


def test_model_config(client: triton.InferenceServerClient, explainer: camrt.Explainer) -> None:
    config = client.get_model_config(MODEL).config
    assert (config.name, config.max_batch_size, config.backend) == (MODEL, MAX_BATCH, "camrt")
    assert config.HasField("dynamic_batching")
    image, class_index = config.input
    assert (image.data_type, list(image.dims)) == (model_config_pb2.TYPE_FP32, list(explainer.manifest.input_shape))
    assert (class_index.data_type, class_index.optional) == (model_config_pb2.TYPE_INT64, True)
    assert config.parameters["image_datatypes"].string_value == "FP32,UINT8,BYTES"
    assert config.parameters["target_layers"].string_value == ",".join(explainer.manifest.layer_names)


def test_every_declared_output_has_the_declared_shape(
    client: triton.InferenceServerClient, tensors: FloatArray
) -> None:
    declared = client.get_model_metadata(MODEL).outputs
    wanted = [triton.InferRequestedOutput(item.name) for item in declared]
    result = client.infer(MODEL, [triton_input("image", tensors[:2])], outputs=wanted)
    assert [item.name for item in result.get_response().outputs] == [item.name for item in declared]
    for item in declared:
        shape = result.as_numpy(item.name).shape
        assert len(shape) == len(item.shape)
        assert all(size in (-1, got) for size, got in zip(item.shape, shape, strict=True))


def test_statistics_count(client: triton.InferenceServerClient, tensors: FloatArray) -> None:
    def row() -> Any:
        (stats,) = client.get_inference_statistics(MODEL).model_stats
        return stats

    before = row()
    client.infer(MODEL, [triton_input("image", tensors)])
    with pytest.raises(InferenceServerException):
        client.infer(MODEL, [triton_input("image", tensors[:, :, :-1])])
    after = row()
    assert (after.name, after.version) == (MODEL, "2")
    assert after.inference_count - before.inference_count == 3
    assert 1 <= after.execution_count - before.execution_count <= 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert after.last_inference > 1_600_000_000_000
    assert len(client.get_inference_statistics().model_stats) == 2
    assert client.get_inference_statistics(MODEL, "1").model_stats[0].version == "1"


def test_statistics_are_of_the_same_requests_whichever_service_answers(
    server: Loopback, client: triton.InferenceServerClient, tensors: FloatArray
) -> None:
    def stats() -> Any:
        return client.get_inference_statistics(MODEL).model_stats[0]

    client.infer(MODEL, [triton_input("image", tensors[:2])])
    before = stats()
    picture = explainer_pb.Image(encoded=sample_image_path().read_bytes())
    with grpc.insecure_channel(server.address) as channel:
        stub = explainer_grpc.ExplainerServiceStub(channel)
        stub.Explain(explainer_pb.ExplainRequest(image=picture), timeout=30)
        stub.Evaluate(explainer_pb.EvaluateRequest(image=picture, metrics=["complexity"]), timeout=30)
        with pytest.raises(grpc.RpcError):
            stub.Explain(explainer_pb.ExplainRequest(), timeout=30)
        with pytest.raises(grpc.RpcError):  # refused on its way into the queue
            stub.Evaluate(explainer_pb.EvaluateRequest(image=picture, class_index=6), timeout=30)
    client.infer(MODEL, [triton_input("image", tensors)])
    after = stats()
    assert after.inference_count - before.inference_count == 1 + 1 + 3
    for name, count in (("success", 3), ("fail", 2), ("queue", 3), ("compute_infer", 3), ("compute_output", 3)):
        grown = getattr(after.inference_stats, name).count - getattr(before.inference_stats, name).count
        assert grown == count, name
    for name in ("success", "fail", "compute_input", "compute_infer", "compute_output"):
        assert getattr(after.inference_stats, name).ns > getattr(before.inference_stats, name).ns, name


def test_every_image_of_a_request_counts_in_admission(
    server: Loopback, client: triton.InferenceServerClient, tensors: FloatArray
) -> None:
    admitted: list[tuple[int, int]] = []
    engine = server.app.engine
    admit = engine.admit

    def noted(nbytes: int, items: int = 1, *others: Any) -> Any:
        admitted.append((nbytes, items))
        return admit(nbytes, items, *others)

    engine.admit = noted  # type: ignore[method-assign]
    try:
        client.infer(MODEL, [triton_input("image", tensors)])
        client.infer(MODEL, [triton_input("image", files(*[sample_image_path().read_bytes()] * 2))])
        for shape in ([-3, 3, 4, 4], [1 << 40, 3, 4, 4], []):
            image = triton.InferInput("image", shape, "FP32")
            image._raw_content = bytes(4)
            with pytest.raises(InferenceServerException):
                client.infer(MODEL, [image])
    finally:
        del engine.admit  # type: ignore[method-assign]
    assert [items for _, items in admitted] == [3, 2, 1, MAX_BATCH, 1]
    assert admitted[0][0] >= tensors.nbytes
    assert admitted[1][0] >= 2 * sample_image_path().stat().st_size


def test_a_large_message_is_refused_before_it_is_parsed(
    server: Loopback, call: Callable[[pb.ModelInferRequest], pb.ModelInferResponse], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []

    def full(nbytes: int) -> None:
        checked.append(nbytes)
        raise OverloadedError("Full.", "Wait.", 1234)

    monkeypatch.setattr(server.app._calls, "check_room", full)
    small = pb.ModelInferRequest(model_name="x", raw_input_contents=[b""])
    with pytest.raises(grpc.RpcError) as unknown:
        call(small)
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as refused:
        call(pb.ModelInferRequest(model_name="x", raw_input_contents=[bytes(2 << 20)]))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1234"
    assert len(checked) == 1
    assert checked[0] > 2 << 20


def test_a_stream_says_when_a_request_may_come_again(server: Loopback) -> None:
    get = server.app.repository.get

    def full(*_: str) -> None:
        raise OverloadedError("Full.", "Wait.", 1234)

    server.app.repository.get = full  # type: ignore[assignment]
    try:
        with grpc.insecure_channel(server.address) as channel:
            stream = channel.stream_stream(
                f"/{SERVICE_NAME}/ModelStreamInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelStreamInferResponse.FromString,
            )
            (reply,) = stream(iter([pb.ModelInferRequest(id="7")]), timeout=30)
    finally:
        server.app.repository.get = get  # type: ignore[method-assign]
    assert (reply.error_message, reply.infer_response.id) == ("Full. Wait.", "7")
    assert reply.infer_response.parameters["retry_after_ms"].int64_param == 1234


# Inference


def test_a_tensor_gives_what_the_explainer_gives(
    client: triton.InferenceServerClient, explainer: camrt.Explainer, tensors: FloatArray
) -> None:
    result = client.infer(MODEL, [triton_input("image", tensors)], request_id="my id 7")
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (MODEL, "2", "my id 7")
    assert [item.name for item in response.outputs] == ["logits", "class_index", "saliency_map"]
    assert len(response.raw_output_contents) == 3
    assert len(response.parameters["model_digest"].string_param) == 64
    expected = explainer.explain(tensors)
    np.testing.assert_allclose(result.as_numpy("logits"), explainer.predict(tensors), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result.as_numpy("class_index"), [[item.class_index] for item in expected])
    maps = result.as_numpy("saliency_map")
    assert maps.shape == (3, 1, *explainer.manifest.input_shape[1:])
    for ours, item in zip(maps[:, 0], expected, strict=True):
        np.testing.assert_allclose(ours, item.saliency_map, atol=1e-4)


def test_files_and_pixels_are_preprocessed(client: triton.InferenceServerClient, explainer: camrt.Explainer) -> None:
    pixels = np.asarray(Image.open(sample_image_path()).convert("RGB"))
    expected = explainer.explain_images([str(sample_image_path())], output_size="input")[0]
    for array in (pixels[None], files(sample_image_path().read_bytes())):
        result = client.infer(MODEL, [triton_input("image", array)])
        assert explainer.manifest.class_name(int(result.as_numpy("class_index")[0, 0])) == "triangle outline"
        np.testing.assert_allclose(result.as_numpy("saliency_map")[0, 0], expected.saliency_map, atol=1e-4)


def test_maps_in_the_pixels_of_the_original(client: triton.InferenceServerClient, explainer: camrt.Explainer) -> None:
    data = sample_image_path().read_bytes()
    parameters = {"output_size": "original", "top_k": 2}
    result = client.infer(MODEL, [triton_input("image", files(data, data))], parameters=parameters)
    expected = explainer.explain_images(data, top_k=2)
    maps = result.as_numpy("saliency_map")
    assert maps.shape == (2, 2, 240, 320)
    for n in range(2):
        assert result.as_numpy("class_index")[n].tolist() == [item.class_index for item in expected]
        for ours, item in zip(maps[n], expected, strict=True):
            np.testing.assert_allclose(ours, item.saliency_map, atol=1e-4)


def test_maps_of_a_given_size(
    client: triton.InferenceServerClient, explainer: camrt.Explainer, tensors: FloatArray
) -> None:
    result = client.infer(MODEL, [triton_input("image", tensors[:1])], parameters={"output_size": "30x50"})
    expected = explainer.explain(tensors[:1], output_size=(30, 50))[0]
    np.testing.assert_allclose(result.as_numpy("saliency_map")[0, 0], expected.saliency_map, atol=1e-4)


@pytest.mark.parametrize("classes", [[0, 3, -2], [[0], [3], [-2]], [[0, 1], [2, -1], [-3, 5]]])
def test_classes_of_every_image(
    classes: list[Any], client: triton.InferenceServerClient, explainer: camrt.Explainer, tensors: FloatArray
) -> None:
    wanted = np.array(classes, np.int64)
    result = client.infer(MODEL, [triton_input("class_index", wanted), triton_input("image", tensors)])
    wanted = wanted.reshape(3, -1)
    for n in range(3):
        expected = explainer.explain(tensors[n : n + 1], wanted[n])
        assert result.as_numpy("class_index")[n].tolist() == [item.class_index for item in expected]
        for ours, item in zip(result.as_numpy("saliency_map")[n], expected, strict=True):
            np.testing.assert_allclose(ours, item.saliency_map, atol=1e-4)


@pytest.mark.parametrize(
    "parameters",
    [
        {"method": "gradcam"},
        {"method": "layercam", "target_layers": "LAST"},
        {"base_method": "hirescam", "fusion": "mean", "target_layers": "top"},
        {"target_layers": "ALL"},
    ],
)
def test_methods_and_layers(
    parameters: dict[str, str], client: triton.InferenceServerClient, explainer: camrt.Explainer, tensors: FloatArray
) -> None:
    names = explainer.manifest.layer_names
    text = parameters.get("target_layers", "").replace("ALL", " , ".join(names)).replace("LAST", names[-1])
    given = {**parameters, "target_layers": text} if text else parameters
    result = client.infer(MODEL, [triton_input("image", tensors[:1])], parameters=given)
    layers: Any = text if text == "top" else [name.strip() for name in text.split(",")] if text else None
    expected = explainer.explain(tensors[:1], **{**parameters, "target_layers": layers})[0]
    np.testing.assert_allclose(result.as_numpy("saliency_map")[0, 0], expected.saliency_map, atol=1e-4)


def test_only_what_is_asked_for_is_sent_and_computed(
    client: triton.InferenceServerClient, explainer: camrt.Explainer, tensors: FloatArray
) -> None:
    wanted = [triton.InferRequestedOutput("class_index"), triton.InferRequestedOutput("logits")]
    classes = triton_input("class_index", np.array([[-1, -6], [2, -2], [-3, 0]], np.int64))
    result = client.infer(MODEL, [triton_input("image", tensors), classes], outputs=wanted)
    assert [item.name for item in result.get_response().outputs] == ["class_index", "logits"]
    assert result.as_numpy("saliency_map") is None
    logits = explainer.predict(tensors)
    ranked = np.argsort(-logits, axis=1)
    expected = [[ranked[0, 0], ranked[0, 5]], [2, ranked[1, 1]], [ranked[2, 2], 0]]
    np.testing.assert_array_equal(result.as_numpy("class_index"), expected)


def test_activations_and_gradients(
    client: triton.InferenceServerClient, explainer: camrt.Explainer, tensors: FloatArray
) -> None:
    layer = explainer.manifest.layer_names[0]
    names = [f"gradients/{layer}", f"activations/{layer}", "saliency_map"]
    result = client.infer(
        MODEL,
        [triton_input("image", tensors[:2])],
        outputs=[triton.InferRequestedOutput(name) for name in names],
        parameters={"top_k": 2},
    )
    for n in range(2):
        expected = explainer.layer_outputs(tensors[n : n + 1], np.array([-1, -2]), [layer]).layers[0]
        np.testing.assert_allclose(result.as_numpy(names[1])[n], expected.activations[0], atol=1e-4)
        np.testing.assert_allclose(result.as_numpy(names[0])[n], expected.gradients, atol=1e-4)
    assert result.as_numpy("saliency_map").shape[:2] == (2, 2)


def test_typed_contents(
    call: Callable[[pb.ModelInferRequest], pb.ModelInferResponse], explainer: camrt.Explainer, tensors: FloatArray
) -> None:
    request = pb.ModelInferRequest(model_name=MODEL)
    image = request.inputs.add(name="image", datatype="FP32", shape=[1, *explainer.manifest.input_shape])
    image.contents.fp32_contents.extend(tensors[0].ravel().tolist())
    request.inputs.add(name="class_index", datatype="INT64", shape=[1]).contents.int64_contents.append(-2)
    response = call(request)
    assert len(response.raw_output_contents) == len(response.outputs) == 3
    (expected,) = explainer.explain(tensors[:1], -2)
    assert np.frombuffer(response.raw_output_contents[1], np.int64) == [expected.class_index]

    request = pb.ModelInferRequest()  # the only model; a file in typed contents
    image = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    image.contents.bytes_contents.append(sample_image_path().read_bytes())
    assert call(request).model_name == MODEL


def test_the_asynchronous_client(server: Loopback, tensors: FloatArray) -> None:
    async def infer() -> list[AnyArray]:
        async with triton_aio.InferenceServerClient(server.address) as client:
            image = triton_input("image", tensors[:1])
            results = await asyncio.gather(*[client.infer(MODEL, [image]) for _ in range(6)])
            return [result.as_numpy("logits") for result in results]

    logits = asyncio.run(infer())
    assert len(logits) == 6
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-5)


def test_a_stream_goes_on_after_an_error(client: triton.InferenceServerClient, tensors: FloatArray) -> None:
    replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: replies.put((result, error)))
    for number, array in enumerate((tensors[:1], tensors[:1, :2], tensors[:1])):
        client.async_stream_infer(
            MODEL, [triton_input("image", array)], request_id=str(number), enable_empty_final_response=True
        )
    (first, _), (_, error), (third, _) = (replies.get(timeout=30) for _ in range(3))
    client.stop_stream()
    assert first.get_response().id == "0"
    assert first.get_response().parameters["triton_final_response"].bool_param
    assert "has the shape" in str(error)
    assert third.get_response().id == "2"


def test_the_parameter_timeout_is_a_deadline(client: triton.InferenceServerClient, tensors: FloatArray) -> None:
    with pytest.raises(InferenceServerException, match="deadline") as caught:
        client.infer(MODEL, [triton_input("image", tensors)], timeout=1)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    client.infer(MODEL, [triton_input("image", tensors)], timeout=30_000_000)


def test_a_call_that_is_cancelled_leaves_nothing_behind(server: Loopback, client: triton.InferenceServerClient) -> None:
    image = triton_input("image", files(*[sample_image_path().read_bytes()] * MAX_BATCH))
    for _ in range(5):
        answered: queue.Queue[Any] = queue.Queue()
        call = client.async_infer(MODEL, [image], lambda result, error, answered=answered: answered.put(error))
        time.sleep(0.005)
        call.cancel()
        answered.get(timeout=30)
    for _ in range(200):
        if not server.app.engine.in_flight:
            break
        time.sleep(0.02)
    assert server.app.engine.in_flight == 0
    client.infer(MODEL, [image])


# What is refused


@pytest.mark.parametrize(
    ("parameters", "code", "message"),
    [
        ({"metod": "gradcam"}, "INVALID_ARGUMENT", "metod"),
        ({"method": "no such"}, "NOT_FOUND", "no such"),
        ({"method": 3}, "INVALID_ARGUMENT", "method"),
        ({"method": ""}, "INVALID_ARGUMENT", "method"),
        ({"target_layers": "nowhere"}, "NOT_FOUND", "nowhere"),
        ({"target_layers": "a,b," * 20}, "INVALID_ARGUMENT", "layers"),
        ({"fusion": "sum"}, "NOT_FOUND", "sum"),
        ({"top_k": 0}, "NOT_FOUND", "top_k"),
        ({"top_k": 7}, "NOT_FOUND", "top_k"),
        ({"top_k": -1}, "INVALID_ARGUMENT", "top_k"),
        ({"top_k": "2"}, "INVALID_ARGUMENT", "top_k"),
        ({"top_k": 2.0}, "INVALID_ARGUMENT", "top_k"),
        ({"output_size": "0x5"}, "INVALID_ARGUMENT", "output_size"),
        ({"output_size": "99999x99999"}, "INVALID_ARGUMENT", "pixels"),
        ({"output_size": "4000x4000"}, "INVALID_ARGUMENT", "bytes"),
        ({"output_size": "original"}, "INVALID_ARGUMENT", "original"),
    ],
)
def test_wrong_parameters(
    parameters: dict[str, Any], code: str, message: str, client: triton.InferenceServerClient, tensors: FloatArray
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(MODEL, [triton_input("image", tensors[:1])], parameters=parameters)
    assert caught.value.status() == f"StatusCode.{code}"


@pytest.mark.parametrize(
    ("inputs", "code", "message"),
    [
        ([], "INVALID_ARGUMENT", "'image' is missing"),
        ([("picture", np.zeros((1, 4), np.float32))], "INVALID_ARGUMENT", "picture"),
        ([("image", np.zeros((1, 3, 5, 5), np.float32))], "INVALID_ARGUMENT", r"shape \[1, 3, 5, 5\]"),
        ([("image", np.zeros((3, 64, 64), np.float32))], "INVALID_ARGUMENT", "shape"),
        ([("image", np.zeros((1, 8, 8), np.uint8))], "INVALID_ARGUMENT", "height, width, 3"),
        ([("image", np.zeros((1, 8, 8, 4), np.uint8))], "INVALID_ARGUMENT", "height, width, 3"),
        ([("image", np.zeros((1, 1, 1, 3), np.uint8))], "INVALID_ARGUMENT", "1 x 1"),
        ([("image", np.zeros((9, 8, 8, 3), np.uint8))], "INVALID_ARGUMENT", "at most 4"),
        ([("image", np.zeros((1, 2), np.int64))], "INVALID_ARGUMENT", "INT64"),
        ([("image", files(b"no image"))], "INVALID_ARGUMENT", "Image 0 cannot be used"),
        ([("image", files(b"x", b"y", b"z", b"a", b"b"))], "INVALID_ARGUMENT", "at most 4"),
        ([("image", files(png(np.zeros((9, 8, 3), np.uint8)), b""))], "INVALID_ARGUMENT", "Image 1 cannot be used"),
        ([("IMAGE", None), ("class_index", np.array([6]))], "NOT_FOUND", "class_index"),
        ([("IMAGE", None), ("class_index", np.array([-7]))], "NOT_FOUND", "class_index"),
        ([("IMAGE", None), ("class_index", np.array([0, 1]))], "INVALID_ARGUMENT", "class_index"),
        ([("IMAGE", None), ("class_index", np.zeros((1, 33), np.int64))], "INVALID_ARGUMENT", "at most 32"),
        ([("IMAGE", None), ("class_index", np.zeros((1, 1, 1), np.int64))], "INVALID_ARGUMENT", "class_index"),
        ([("IMAGE", None), ("class_index", np.zeros(1, np.float32))], "INVALID_ARGUMENT", "FP32"),
        ([("IMAGE", None), ("IMAGE", None)], "INVALID_ARGUMENT", "given twice"),
    ],
)
def test_wrong_inputs(
    inputs: list[tuple[str, AnyArray]],
    code: str,
    message: str,
    client: triton.InferenceServerClient,
    tensors: FloatArray,
) -> None:
    given = [
        triton_input("image", tensors[:1]) if name == "IMAGE" else triton_input(name, array) for name, array in inputs
    ]
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(MODEL, given)
    assert caught.value.status() == f"StatusCode.{code}"


def test_numbers_that_are_not_finite(client: triton.InferenceServerClient, tensors: FloatArray) -> None:
    broken = tensors[:2].copy()
    broken[1, 0, 3, 3] = np.nan
    with pytest.raises(InferenceServerException, match="not finite"):
        client.infer(MODEL, [triton_input("image", broken)])


def test_numbers_that_overflow_inside_the_model(client: triton.InferenceServerClient, tensors: FloatArray) -> None:
    image = triton_input("image", np.full_like(tensors[:1], 3e38))
    for outputs in (None, [triton.InferRequestedOutput("logits")]):
        with pytest.raises(InferenceServerException, match="logits of image 0 are not finite") as caught:
            client.infer(MODEL, [image], outputs=outputs)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("size", ["1x16385", "16385x1", "1x999999"])
def test_narrow_maps_are_refused(client: triton.InferenceServerClient, tensors: FloatArray, size: str) -> None:
    for outputs in (None, [triton.InferRequestedOutput("logits")]):
        with pytest.raises(InferenceServerException, match="At most 16384 pixels a side"):
            client.infer(MODEL, [triton_input("image", tensors[:1])], outputs=outputs, parameters={"output_size": size})
    response = client.infer(MODEL, [triton_input("image", tensors[:1])], parameters={"output_size": "1x16384"})
    assert response.as_numpy("saliency_map").shape == (1, 1, 1, 16384)


def test_long_originals_are_refused(client: triton.InferenceServerClient) -> None:
    long = triton_input("image", files(png(np.zeros((2, 16_385, 3), np.uint8))))
    with pytest.raises(InferenceServerException, match="2x16385 are too large"):
        client.infer(MODEL, [long], parameters={"output_size": "original"})
    assert client.infer(MODEL, [long]).as_numpy("saliency_map").shape[2:] == (224, 224)


def test_the_pixels_of_all_maps_are_counted(tensors: FloatArray) -> None:
    with (
        Loopback(output_pixels=4 * 224 * 224) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        image = triton_input("image", tensors[:2])
        assert client.infer(MODEL, [image], parameters={"top_k": 2}).as_numpy("saliency_map").shape[:2] == (2, 2)
        with pytest.raises(InferenceServerException, match="6 maps of 224x224 are too large"):
            client.infer(MODEL, [image], parameters={"top_k": 3})


@pytest.mark.parametrize(("datatype", "field"), [("FP32", "fp32_contents"), ("UINT8", "uint_contents")])
def test_many_typed_numbers_are_sent_back_to_raw_contents(
    call: Callable[[pb.ModelInferRequest], pb.ModelInferResponse], datatype: str, field: str
) -> None:
    shape = {"FP32": (4, 3, 224, 224), "UINT8": (1, 419, 418, 3)}[datatype]
    request = pb.ModelInferRequest()
    image = request.inputs.add(name="image", datatype=datatype, shape=shape)
    getattr(image.contents, field).extend([1] * int(np.prod(shape)))
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"in {field}. Send more than 524288 of them in raw_input_contents." in caught.value.details()


def test_as_many_typed_numbers_as_are_taken(
    call: Callable[[pb.ModelInferRequest], pb.ModelInferResponse], client: triton.InferenceServerClient
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 418, 418, 3), dtype=np.uint8)
    request = pb.ModelInferRequest()
    image = request.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    image.contents.uint_contents.extend(pixels.ravel().tolist())
    raw = client.infer(MODEL, [triton_input("image", pixels)])
    assert call(request).raw_output_contents[0] == raw.as_numpy("logits").tobytes()


def test_images_of_several_sizes_have_no_common_original(client: triton.InferenceServerClient) -> None:
    images = files(png(np.zeros((20, 30, 3), np.uint8)), png(np.zeros((30, 20, 3), np.uint8)))
    client.infer(MODEL, [triton_input("image", images)])
    with pytest.raises(InferenceServerException, match="several sizes"):
        client.infer(MODEL, [triton_input("image", images)], parameters={"output_size": "original"})


def test_top_k_and_class_index_exclude_each_other(client: triton.InferenceServerClient, tensors: FloatArray) -> None:
    inputs = [triton_input("image", tensors[:1]), triton_input("class_index", np.zeros(1, np.int64))]
    with pytest.raises(InferenceServerException, match="exclude each other"):
        client.infer(MODEL, inputs, parameters={"top_k": 2})


def test_unknown_models_versions_and_outputs(client: triton.InferenceServerClient, tensors: FloatArray) -> None:
    image = [triton_input("image", tensors[:1])]
    for name, version in (("nothing", ""), (MODEL, "3"), (MODEL, "-1"), ("../" + MODEL, "")):
        for method in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
            with pytest.raises(InferenceServerException) as caught:
                method(name, version)
            assert caught.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException) as caught:
            client.infer(name, image, version)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="no output"):
        client.infer(MODEL, image, outputs=[triton.InferRequestedOutput("heat_map")])


def test_what_is_not_supported_is_refused_not_ignored(
    client: triton.InferenceServerClient, tensors: FloatArray
) -> None:
    image = triton_input("image", tensors[:1])
    shared = triton.InferInput("image", [1, 3, 64, 64], "FP32").set_shared_memory("region", 49152)
    for inputs, options in (
        ([shared], {}),
        ([image], {"outputs": [triton.InferRequestedOutput("logits", class_count=3)]}),
        ([image], {"sequence_id": 5, "sequence_start": True}),
        ([image], {"priority": 2}),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(MODEL, inputs, **options)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException) as caught:
        client.get_system_shared_memory_status()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


# The repository


def test_models_are_listed_unloaded_and_loaded(client: triton.InferenceServerClient, tensors: FloatArray) -> None:
    def states() -> list[tuple[str, str, str]]:
        return [(item.name, item.version, item.state) for item in client.get_model_repository_index().models]

    assert states() == [(MODEL, "1", "READY"), (MODEL, "2", "READY")]
    client.unload_model(MODEL)
    assert not client.is_model_ready(MODEL)
    assert not client.is_server_ready()
    with pytest.raises(InferenceServerException):
        client.infer(MODEL, [triton_input("image", tensors[:1])])
    for _ in range(100):  # until what earlier tests left of it is collected
        gc.collect()
        if {state for _, _, state in states()} == {"UNAVAILABLE"}:
            break
        time.sleep(0.05)
    assert {(name, state) for name, _, state in states()} == {(MODEL, "UNAVAILABLE")}
    client.load_model(MODEL)
    assert states() == [(MODEL, "1", "READY"), (MODEL, "2", "READY")]
    client.infer(MODEL, [triton_input("image", tensors[:1])])


def test_nothing_is_loaded_from_the_wire(client: triton.InferenceServerClient) -> None:
    for options in ({"config": "{}"}, {"config": "{}", "files": {"file:1/bundle.onnx": b"model"}}):
        with pytest.raises(InferenceServerException, match="own folder") as caught:
            client.load_model(MODEL, **options)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    for name in ("nothing", "../shapes", "/etc/passwd", ""):
        with pytest.raises(InferenceServerException) as caught:
            client.load_model(name)
        assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_loading_needs_the_admin_role(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"explain {token_digest('one')}\nadmin {token_digest('two')}\n")
    with Loopback(tokens=tokens) as server, triton.InferenceServerClient(server.address) as client:
        explain, admin = ({"authorization": f"Bearer {token}"} for token in ("one", "two"))
        for method in (client.load_model, client.unload_model):
            for headers, code in ((None, "UNAUTHENTICATED"), (explain, "PERMISSION_DENIED")):
                with pytest.raises(InferenceServerException) as caught:
                    method(MODEL, headers)
                assert caught.value.status() == f"StatusCode.{code}"
        assert client.is_model_ready(MODEL, headers=explain)
        client.unload_model(MODEL, admin)
        assert not client.is_model_ready(MODEL, headers=explain)
        client.load_model(MODEL, admin)
        assert client.is_model_ready(MODEL, headers=explain)


def test_a_server_that_drains_is_not_ready() -> None:
    with Loopback() as server, triton.InferenceServerClient(server.address) as client:
        assert client.is_server_ready()

        async def drain() -> None:
            server.app.engine.drain()

        server.call(drain)
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready(MODEL)
        image = triton_input("image", files(sample_image_path().read_bytes()))
        with pytest.raises(InferenceServerException) as caught:
            client.infer(MODEL, [image])
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
