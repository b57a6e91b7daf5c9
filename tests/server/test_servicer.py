"""ExplainerService over real sockets against the Explainer in this process."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from PIL import Image

import camrt
from camrt.cam import CAM_METHODS, Perturbation
from camrt.cam.methods import available_methods
from camrt.explainer import embedded_bundle_path, sample_image_path
from camrt.explainer.arguments import MAX_OUTPUT_SIDE
from camrt.runtime import open_session
from camrt.runtime.parity import Parity
from camrt.server import encoding
from camrt.server.errors import OverloadedError
from camrt.server.models import LoadedModel
from camrt.server.replies import model_message
from camrt.v1 import explainer_pb2 as pb
from camrt.v1 import explainer_pb2_grpc as pb_grpc
from tests.exporter.graphs import small_classifier
from tests.server.serving import DIGEST, Models, Serving, serving

SECONDS = 30


@pytest.fixture(scope="module")
def explainer() -> camrt.Explainer:
    return camrt.Explainer(threads=1)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> camrt.Explainer:
    """A model without class names and preprocessing, with independent classes."""
    folder = tmp_path_factory.mktemp("bare")
    source = small_classifier(folder / "bare.onnx", head="Sigmoid")
    return camrt.Explainer(camrt.export(source, folder / "bundle.onnx").path, threads=1)


@pytest.fixture(scope="module")
def server(explainer: camrt.Explainer, bare: camrt.Explainer) -> Iterator[Serving]:
    with serving(
        Models(shapes=explainer, bare=bare), classes=4, layers=3, output_pixels=2_000_000, scorecam_channels=8
    ) as running:
        yield running


@pytest.fixture(scope="module")
def stub(server: Serving) -> Iterator[pb_grpc.ExplainerServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield pb_grpc.ExplainerServiceStub(channel)


@pytest.fixture(scope="module")
def sample() -> bytes:
    return sample_image_path().read_bytes()


def request(image: bytes, **fields) -> pb.ExplainRequest:
    return pb.ExplainRequest(image=pb.Image(encoded=image), **fields)


def array(tensor: pb.Tensor) -> np.ndarray:
    assert tensor.data_type == pb.DATA_TYPE_FLOAT32
    return np.frombuffer(tensor.data, "<f4").reshape(tuple(tensor.shape))


def failure(call) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo, grpc.RpcError]:
    """The code, ErrorInfo and error of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert status.message == caught.value.details()
    assert status.code == caught.value.code().value[0]
    assert info.domain == "camrt"
    assert info.metadata["request_id"] == trailers["x-request-id"]
    return caught.value.code(), info, caught.value


# Explain


def test_explain_equals_the_explainer(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    output = pb.OutputOptions(encoding=pb.MAP_ENCODING_FLOAT32)
    reply = stub.Explain(request(sample, output=output, return_probabilities=True, return_layer_maps=True), timeout=30)
    (expected,) = explainer.explain_images(sample)
    (got,) = reply.explanations
    assert (got.saliency_map.height, got.saliency_map.width) == expected.saliency_map.shape
    values = np.frombuffer(got.saliency_map.data, "<f4").reshape(expected.saliency_map.shape)
    np.testing.assert_allclose(values, expected.saliency_map, rtol=0, atol=1e-6)
    assert got.prediction.class_index == expected.class_index
    assert got.prediction.class_name == expected.class_name
    assert got.prediction.probability == pytest.approx(expected.probability, rel=1e-5)
    assert got.logit == pytest.approx(expected.logit, rel=1e-5)
    assert [item.layer for item in got.layer_maps] == list(expected.layer_maps)
    for item in got.layer_maps:
        np.testing.assert_allclose(array(item.values), expected.layer_maps[item.layer], rtol=0, atol=1e-6)
    assert (reply.model.name, reply.model.version, reply.model_digest) == ("shapes", "1", DIGEST)
    assert reply.options.method == "refinecam"
    assert list(reply.options.target_layers) == list(expected.layer_maps)
    probabilities = array(reply.probabilities)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert len(reply.predictions) == 5
    best = np.argsort(-probabilities)[:5]
    assert [item.class_index for item in reply.predictions] == best.tolist()
    assert reply.batch_size == 1
    timings = reply.timings
    assert timings.total_us > 0
    assert timings.inference_us > 0
    assert timings.decode_us + timings.inference_us + timings.kernels_us + timings.encode_us <= timings.total_us


def test_nothing_is_sent_that_was_not_asked_for(stub, sample: bytes) -> None:
    reply = stub.Explain(request(sample), timeout=SECONDS)
    assert not reply.HasField("probabilities")
    assert not reply.explanations[0].layer_maps
    assert not reply.explanations[0].scores
    assert reply.explanations[0].saliency_map.encoding == pb.MAP_ENCODING_UINT8


@pytest.mark.parametrize("method", CAM_METHODS)
def test_methods(stub, explainer: camrt.Explainer, sample: bytes, method: str) -> None:
    options = pb.ExplanationOptions(method=method)
    if method not in available_methods(explainer.manifest, explainer.manifest.layer_names[:1]):
        code, info, _ = failure(lambda: stub.Explain(request(sample, options=options), timeout=SECONDS))
        assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "METHOD_UNAVAILABLE")
        return
    reply = stub.Explain(request(sample, options=options), timeout=SECONDS)
    (expected,) = explainer.explain_images(sample, method=method, perturbation=Perturbation(8))
    assert (reply.options.method, reply.options.base_method, reply.options.fusion) == (method, "", "")
    levels = np.frombuffer(reply.explanations[0].saliency_map.data, np.uint8)
    np.testing.assert_array_equal(levels, np.rint(255 * expected.saliency_map).astype(np.uint8).ravel())


def test_expensive_methods_keep_within_the_budget(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    options = pb.ExplanationOptions(method="scorecam", channels=5)
    reply = stub.Explain(request(sample, options=options), timeout=SECONDS)
    (expected,) = explainer.explain_images(sample, method="scorecam", perturbation=Perturbation(5))
    levels = np.frombuffer(reply.explanations[0].saliency_map.data, np.uint8)
    np.testing.assert_array_equal(levels, np.rint(255 * expected.saliency_map).astype(np.uint8).ravel())
    assert reply.options.channels == 5
    reply = stub.Explain(request(sample, options=pb.ExplanationOptions(method="scorecam")), timeout=SECONDS)
    assert reply.options.channels == 8
    assert stub.Explain(request(sample), timeout=SECONDS).options.channels == 0
    for wrong in (
        pb.ExplanationOptions(method="scorecam", channels=9),
        pb.ExplanationOptions(method="scorecam", channels=-1),
        pb.ExplanationOptions(base_method="gradcam", channels=5),
    ):
        code, info, _ = failure(lambda wrong=wrong: stub.Explain(request(sample, options=wrong), timeout=SECONDS))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


def test_an_expensive_map_is_measured_with_its_own_budget(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    limits, inputs = Perturbation(3), explainer.preprocess_images(sample)
    message = pb.EvaluateRequest(
        image=pb.Image(encoded=sample),
        metrics=["coherency"],
        options=pb.ExplanationOptions(method="scorecam", channels=3),
        class_index=2,
    )
    made = explainer.explain(inputs, 2, "scorecam", perturbation=limits)
    expected = explainer.evaluate(inputs, made, ("coherency",), perturbation=limits)
    reply = stub.Evaluate(message, timeout=SECONDS)
    assert reply.scores["coherency"] == pytest.approx(expected["coherency"][0], abs=1e-4)


def test_refinecam_options(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    options = pb.ExplanationOptions(base_method="layercam", fusion="mean", target_layers=["top"])
    output = pb.OutputOptions(encoding=pb.MAP_ENCODING_FLOAT16, space=pb.OUTPUT_SPACE_INPUT)
    reply = stub.Explain(request(sample, options=options, output=output), timeout=SECONDS)
    (expected,) = explainer.explain_images(
        sample, base_method="layercam", fusion="mean", target_layers="top", output_size="input"
    )
    assert list(reply.options.target_layers) == list(expected.layer_maps)
    values = np.frombuffer(reply.explanations[0].saliency_map.data, "<f2")
    np.testing.assert_allclose(values, expected.saliency_map.ravel(), rtol=0, atol=6e-4)


def test_classes_come_in_the_order_asked_for(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    names = explainer.manifest.class_names
    selection = pb.ClassSelection(indices=[3, -1], names=[names[1]])
    reply = stub.Explain(request(sample, selection=selection), timeout=SECONDS)
    predicted = reply.predictions[0].class_index
    assert [item.prediction.class_index for item in reply.explanations] == [3, predicted, 1]
    top = stub.Explain(request(sample, top_k=3), timeout=SECONDS)
    assert [item.prediction for item in top.explanations] == list(top.predictions[:3])


def test_pixels_and_tensors(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(sample)).convert("RGB"))
    encoded = stub.Explain(request(sample), timeout=SECONDS)
    tensor = pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=pixels.shape, data=pixels.tobytes())
    raw = stub.Explain(pb.ExplainRequest(image=pb.Image(pixels=tensor)), timeout=SECONDS)
    assert raw.explanations == encoded.explanations
    values = explainer.preprocess_images(sample)[0]
    for data_type, dtype in ((pb.DATA_TYPE_FLOAT32, "<f4"), (pb.DATA_TYPE_FLOAT16, "<f2")):
        tensor = pb.Tensor(data_type=data_type, shape=values.shape, data=values.astype(dtype).tobytes())
        reply = stub.Explain(pb.ExplainRequest(image=pb.Image(input=tensor)), timeout=SECONDS)
        got = reply.explanations[0]
        assert (got.saliency_map.height, got.saliency_map.width) == values.shape[1:]
        assert got.prediction.class_index == encoded.explanations[0].prediction.class_index


def test_a_given_size_is_fused_at_that_size(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    output = pb.OutputOptions(
        encoding=pb.MAP_ENCODING_FLOAT32, space=pb.OUTPUT_SPACE_GIVEN, output_height=50, output_width=70
    )
    reply = stub.Explain(request(sample, output=output), timeout=SECONDS)
    (expected,) = explainer.explain_images(sample, output_size=(50, 70))
    values = np.frombuffer(reply.explanations[0].saliency_map.data, "<f4").reshape(50, 70)
    np.testing.assert_allclose(values, expected.saliency_map, rtol=0, atol=1e-6)


@pytest.mark.parametrize("space", ["ORIGINAL", "INPUT", "GIVEN"])
@pytest.mark.parametrize(("encoding", "kind"), [("OVERLAY_PNG", "PNG"), ("OVERLAY_JPEG", "JPEG"), ("PNG", "PNG")])
def test_pictures(stub, explainer: camrt.Explainer, space: str, encoding: str, kind: str) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "PNG")
    given = {"output_height": 40, "output_width": 44} if space == "GIVEN" else {}
    output = pb.OutputOptions(encoding=f"MAP_ENCODING_{encoding}", space=f"OUTPUT_SPACE_{space}", **given)
    reply = stub.Explain(request(stream.getvalue(), output=output), timeout=SECONDS)
    result = reply.explanations[0].saliency_map
    picture = Image.open(io.BytesIO(result.data))
    sizes = {"ORIGINAL": (90, 130), "INPUT": explainer.manifest.input_shape[1:], "GIVEN": (40, 44)}
    assert (result.height, result.width) == picture.size[::-1] == sizes[space]
    assert picture.format == kind
    assert picture.mode == ("L" if encoding == "PNG" else "RGB")
    if (encoding, space) == ("OVERLAY_PNG", "ORIGINAL"):
        (expected,) = explainer.explain_images(photo)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected.overlay(photo)))


def test_overlay_options(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    output = pb.OutputOptions(encoding=pb.MAP_ENCODING_OVERLAY_PNG, colormap="gray", opacity=0)
    reply = stub.Explain(request(sample, output=output), timeout=SECONDS)
    picture = Image.open(io.BytesIO(reply.explanations[0].saliency_map.data))
    original = Image.open(io.BytesIO(sample)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(original))


def test_arcc(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    reply = stub.Explain(request(sample, top_k=2, return_arcc=True, seed=7), timeout=SECONDS)
    expected = explainer.arcc(
        explainer.preprocess_images(sample), explainer.explain_images(sample, top_k=2, output_size="input"), seed=7
    )
    assert [item.scores["arcc"] for item in reply.explanations] == pytest.approx(expected.tolist(), abs=1e-4)


def test_independent_classes_and_no_names(stub, bare: camrt.Explainer) -> None:
    values = np.random.default_rng(0).standard_normal(bare.manifest.input_shape).astype(np.float32)
    tensor = pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=values.shape, data=values.tobytes())
    model = pb.ModelReference(name="bare")
    call = pb.ExplainRequest(model=model, image=pb.Image(input=tensor), return_probabilities=True)
    reply = stub.Explain(call, timeout=SECONDS)
    logits = bare.predict(values[None])[0]
    np.testing.assert_allclose(array(reply.probabilities), 1 / (1 + np.exp(-logits)), rtol=0, atol=1e-5)
    assert reply.explanations[0].prediction.class_name == ""


def bad_requests(sample: bytes) -> dict[str, tuple[pb.ExplainRequest, grpc.StatusCode, str]]:
    def tensor(shape, data, kind=pb.DATA_TYPE_UINT8, where="pixels"):
        image = pb.Image(**{where: pb.Tensor(data_type=kind, shape=shape, data=data)})
        return pb.ExplainRequest(image=image)

    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    bad, nan = "INVALID_ARGUMENT", np.full((3, 4, 4), np.nan, np.float32).tobytes()
    options, output = pb.ExplanationOptions, pb.OutputOptions
    floats = pb.DATA_TYPE_FLOAT32
    return {
        "no image": (pb.ExplainRequest(), invalid, bad),
        "no picture": (request(b"GIF89a"), invalid, bad),
        "truncated": (request(sample[:200]), invalid, bad),
        "short pixels": (tensor((4, 4, 3), bytes(47)), invalid, bad),
        "gray pixels": (tensor((4, 4), bytes(16)), invalid, bad),
        "negative": (tensor((-4, -4, 3), bytes(48)), invalid, bad),
        "huge shape": (tensor((1 << 40, 1 << 40, 3), bytes(48)), invalid, bad),
        "no type": (tensor((4, 4, 3), bytes(48), 0), invalid, bad),
        "unknown type": (tensor((4, 4, 3), bytes(48), 77), invalid, bad),
        "float pixels": (tensor((4, 4, 3), bytes(192), floats), invalid, bad),
        "other input": (tensor((3, 4, 4), nan, floats, "input"), invalid, bad),
        "method": (request(sample, options=options(method="magic")), missing, "METHOD_NOT_FOUND"),
        "base": (request(sample, options=options(base_method="magic")), missing, "METHOD_NOT_FOUND"),
        "fusion": (request(sample, options=options(fusion="magic")), missing, "METHOD_NOT_FOUND"),
        "layer": (request(sample, options=options(target_layers=["magic"])), missing, "LAYER_NOT_FOUND"),
        "layers": (request(sample, options=options(target_layers=["a"] * 4)), invalid, bad),
        "class": (request(sample, selection=pb.ClassSelection(indices=[6])), missing, "CLASS_NOT_FOUND"),
        "huge class": (request(sample, selection=pb.ClassSelection(indices=[1 << 62])), missing, "CLASS_NOT_FOUND"),
        "class name": (request(sample, selection=pb.ClassSelection(names=["\n"])), missing, "CLASS_NOT_FOUND"),
        "no class": (request(sample, selection=pb.ClassSelection()), invalid, bad),
        "classes": (request(sample, selection=pb.ClassSelection(indices=[0] * 5)), invalid, bad),
        "top 0": (request(sample, top_k=0), invalid, bad),
        "top 5": (request(sample, top_k=5), invalid, bad),
        "model": (request(sample, model=pb.ModelReference(name="none")), missing, "MODEL_NOT_FOUND"),
        "version": (request(sample, model=pb.ModelReference(name="bare", version="9")), missing, "MODEL_NOT_FOUND"),
        "encoding": (request(sample, output=output(encoding=99)), invalid, bad),
        "space": (request(sample, output=output(space=99)), invalid, bad),
        "no size": (request(sample, output=output(space="OUTPUT_SPACE_GIVEN")), invalid, bad),
        "stray size": (request(sample, output=output(output_height=4, output_width=4)), invalid, bad),
        "large": (
            request(sample, output=output(space="OUTPUT_SPACE_GIVEN", output_height=9999, output_width=9999)),
            invalid,
            bad,
        ),
        "colormap": (request(sample, output=output(colormap="pink")), invalid, bad),
        "opacity": (request(sample, output=output(opacity=2)), invalid, bad),
        "nan opacity": (request(sample, output=output(opacity=float("nan"))), invalid, bad),
        "no preprocessing": (
            request(sample, model=pb.ModelReference(name="bare")),
            grpc.StatusCode.FAILED_PRECONDITION,
            "MODEL_UNSUITABLE",
        ),
        "negative seed": (request(sample, return_arcc=True, seed=-1), invalid, bad),
    }


@pytest.mark.parametrize("case", bad_requests(b""))
def test_bad_requests(stub, sample: bytes, case: str) -> None:
    message, code, reason = bad_requests(sample)[case]
    got, info, error = failure(lambda: stub.Explain(message, timeout=SECONDS))
    assert (got, info.reason) == (code, reason), error.details()
    assert error.details()


def test_overlay_of_a_tensor_and_values_that_are_not_finite(stub, explainer: camrt.Explainer) -> None:
    values = np.zeros(explainer.manifest.input_shape, np.float32)
    image = pb.Image(input=pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=values.shape, data=values.tobytes()))
    message = pb.ExplainRequest(image=image, output=pb.OutputOptions(encoding=pb.MAP_ENCODING_OVERLAY_PNG))
    assert failure(lambda: stub.Explain(message, timeout=SECONDS))[0] is grpc.StatusCode.INVALID_ARGUMENT
    image.input.data = np.full_like(values, np.inf).tobytes()
    call = pb.ExplainRequest(image=image)
    assert failure(lambda: stub.Explain(call, timeout=SECONDS))[0] is grpc.StatusCode.INVALID_ARGUMENT


def given(height: int, width: int, encoding: str = "UINT8") -> pb.OutputOptions:
    kind = pb.MapEncoding.Value(f"MAP_ENCODING_{encoding}")
    return pb.OutputOptions(space="OUTPUT_SPACE_GIVEN", output_height=height, output_width=width, encoding=kind)


@pytest.mark.parametrize("encoding", ["PNG", "OVERLAY_PNG", "OVERLAY_JPEG"])
def test_the_pixels_of_all_maps_are_counted_whatever_the_encoding(stub, sample: bytes, encoding: str) -> None:
    four = pb.ClassSelection(indices=[0, 1, 2, 0])
    allowed = request(sample, selection=four, output=given(500, 1000, encoding))
    assert [item.prediction.class_index for item in stub.Explain(allowed, timeout=SECONDS).explanations] == [0, 1, 2, 0]
    code, _, error = failure(
        lambda: stub.Explain(request(sample, selection=four, output=given(500, 1001, encoding)), timeout=SECONDS)
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "At most 2000000 pixels" in error.details()


@pytest.mark.parametrize("encoding", ["UINT8", "PNG", "OVERLAY_PNG", "OVERLAY_JPEG"])
def test_narrow_maps(stub, sample: bytes, encoding: str) -> None:
    longest = stub.Explain(request(sample, output=given(1, MAX_OUTPUT_SIDE, encoding)), timeout=SECONDS)
    (explanation,) = longest.explanations
    assert (explanation.saliency_map.height, explanation.saliency_map.width) == (1, MAX_OUTPUT_SIDE)
    for size in ((1, MAX_OUTPUT_SIDE + 1), (MAX_OUTPUT_SIDE + 1, 1)):
        long = request(sample, output=given(*size, encoding))
        code, _, error = failure(partial(stub.Explain, long, timeout=SECONDS))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 16384 pixels" in error.details()


@pytest.mark.parametrize("encoding", ["UINT8", "PNG", "OVERLAY_PNG", "OVERLAY_JPEG"])
def test_long_images_have_maps_of_the_models_input(stub, encoding: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (70_000, 2), "red").save(stream, "PNG")
    kind = pb.MapEncoding.Value(f"MAP_ENCODING_{encoding}")
    original = request(stream.getvalue(), output=pb.OutputOptions(encoding=kind))
    code, _, error = failure(lambda: stub.Explain(original, timeout=SECONDS))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "OUTPUT_SPACE_INPUT" in error.details()
    own = pb.OutputOptions(encoding=kind, space="OUTPUT_SPACE_INPUT")
    assert stub.Explain(request(stream.getvalue(), output=own), timeout=SECONDS).explanations[0].saliency_map.data


def test_replies_above_the_message_limit(explainer: camrt.Explainer, sample: bytes) -> None:
    """Some are refused before anything runs, the others when they are made; a stream goes on."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    pixels = pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=noise.shape, data=noise.tobytes())
    overlay = pb.OutputOptions(encoding=pb.MAP_ENCODING_OVERLAY_PNG)
    large = pb.ExplainRequest(image=pb.Image(pixels=pixels), output=overlay, top_k=2)
    layers = request(sample, return_layer_maps=True, top_k=6, output=pb.OutputOptions(space="OUTPUT_SPACE_INPUT"))
    with (
        serving(Models(shapes=explainer), message_bytes=350_000) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = pb_grpc.ExplainerServiceStub(channel)
        code, info, error = failure(lambda: stub.Explain(large, timeout=SECONDS))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        assert "350000 bytes" in error.details()
        ran = server.engine.statistics.of("shapes", "1").executions
        code, _, error = failure(lambda: stub.Explain(layers, timeout=SECONDS))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert server.engine.statistics.of("shapes", "1").executions == ran
        one = pb.ExplainRequest(image=pb.Image(pixels=pixels), output=overlay)
        size = stub.Explain(one, timeout=SECONDS).ByteSize()
        ids = ("a", "b", "c" * (350_000 - size), "d")
        messages = [
            pb.ExplainStreamRequest(id=id, request=ask) for id, ask in zip(ids, (one, large, one, one), strict=True)
        ]
        replies = list(stub.ExplainStream(iter(messages), timeout=SECONDS))
        assert [reply.WhichOneof("result") for reply in replies] == ["response", "error", "error", "response"]
        assert tuple(reply.id for reply in replies) == ids
        assert {reply.error.reason for reply in replies[1:3]} == {"INVALID_ARGUMENT"}


@pytest.mark.parametrize("method", ["refinecam", "gradcam", "scorecam"])
def test_values_that_overflow_inside_the_model(stub, explainer: camrt.Explainer, sample: bytes, method: str) -> None:
    values = np.full(explainer.manifest.input_shape, 3e38, np.float32)
    image = pb.Image(input=pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=values.shape, data=values.tobytes()))
    message = pb.ExplainRequest(image=image, options=pb.ExplanationOptions(method=method))
    calls = [stub.Explain.future(request(sample), timeout=SECONDS) for _ in range(3)]
    code, _, error = failure(lambda: stub.Explain(message, timeout=SECONDS))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "not finite" in error.details()
    assert all(call.result().explanations for call in calls)  # perhaps of the same batch


def test_a_caller_that_leaves_stops_the_encoding(server: Serving, stub, sample: bytes, monkeypatch) -> None:
    encoded: list[int] = []
    started = threading.Event()

    def slow(*arguments):
        encoded.append(1)
        started.set()
        time.sleep(0.3)
        return pb.Explanation()

    monkeypatch.setattr(encoding, "explanation_message", slow)
    monkeypatch.setattr(encoding, "PIECE_PIXELS", 1)
    call = stub.Explain.future(request(sample, top_k=4), timeout=SECONDS)
    assert started.wait(20)
    call.cancel()
    time.sleep(1)
    assert len(encoded) <= 2
    assert server.engine.in_flight == 0


def test_a_long_text_of_the_client_does_not_break_the_reply(stub, sample: bytes) -> None:
    options = pb.ExplanationOptions(method="\N{SNOWMAN}" * 100_000)
    code, _, error = failure(lambda: stub.Explain(request(sample, options=options), timeout=SECONDS))
    assert code is grpc.StatusCode.NOT_FOUND
    assert len(error.details().encode()) <= 1000


def test_an_internal_error_keeps_its_text(server: Serving, stub, sample: bytes, caplog) -> None:
    server.models.broken = RuntimeError("the secret path")
    try:
        code, info, error = failure(lambda: stub.Explain(request(sample), timeout=SECONDS))
    finally:
        server.models.broken = None
    assert (code, info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in error.details()
    assert info.metadata["request_id"] in error.details()
    assert "the secret path" in caplog.text
    assert info.metadata["request_id"] in caplog.text


def test_overload_says_when_to_come_back(server: Serving, stub, sample: bytes) -> None:
    server.models.broken = OverloadedError("Full.", "Wait.", retry_after_ms=120)
    try:
        code, info, error = failure(lambda: stub.Explain(request(sample), timeout=SECONDS))
    finally:
        server.models.broken = None
    assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "120"


def test_a_deadline_that_cannot_be_met(stub, sample: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Explain(request(sample, return_arcc=True), timeout=0.005)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# ExplainStream


def test_a_stream_keeps_the_order_and_survives_bad_images(stub, sample: bytes) -> None:
    def messages() -> Iterator[pb.ExplainStreamRequest]:
        for number in range(12):
            image = b"nonsense" if number % 4 == 1 else sample
            yield pb.ExplainStreamRequest(id=f"frame {number}", request=request(image, top_k=1 + number % 2))

    replies = list(stub.ExplainStream(messages(), timeout=SECONDS))
    assert [reply.id for reply in replies] == [f"frame {number}" for number in range(12)]
    for number, reply in enumerate(replies):
        if number % 4 == 1:
            assert (reply.error.code, reply.error.reason) == (3, "INVALID_ARGUMENT")
            assert "not a JPEG" in reply.error.message
        else:
            assert len(reply.response.explanations) == 1 + number % 2


def test_an_empty_stream(stub) -> None:
    assert list(stub.ExplainStream(iter(()), timeout=SECONDS)) == []


def test_a_stream_reads_no_further_than_its_limit(explainer: camrt.Explainer, sample: bytes) -> None:
    with (
        serving(Models(shapes=explainer), stream_in_flight=2) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        release, calls, most, running = threading.Event(), [], [0], [0]
        get = server.models.get

        def slow(name: str = "", version: str = "") -> object:
            calls.append(name)
            return get(name, version)

        server.models.get = slow
        real = server.engine.offload

        async def held(call, stage=""):
            running[0] += 1
            most[0] = max(most[0], running[0])
            while not release.is_set():
                await __import__("asyncio").sleep(0.01)
            running[0] -= 1
            return await real(call, stage)

        server.engine.offload = held
        message = pb.ExplainStreamRequest(request=request(sample))
        replies = pb_grpc.ExplainerServiceStub(channel).ExplainStream(iter([message] * 20), timeout=SECONDS)
        time.sleep(0.5)
        assert len(calls) == 2
        release.set()
        assert len(list(replies)) == 20
        assert most[0] <= 2


def test_a_cancelled_stream_leaves_nothing_behind(server: Serving, stub, sample: bytes) -> None:
    def forever() -> Iterator[pb.ExplainStreamRequest]:
        while True:
            yield pb.ExplainStreamRequest(request=request(sample))

    replies = stub.ExplainStream(forever(), timeout=SECONDS)
    assert next(replies).HasField("response")
    replies.cancel()
    until = time.monotonic() + 10
    while server.engine.in_flight and time.monotonic() < until:
        time.sleep(0.02)
    assert server.engine.in_flight == 0


def test_a_draining_server_ends_its_streams(explainer: camrt.Explainer, sample: bytes) -> None:
    with serving(Models(shapes=explainer)) as server, grpc.insecure_channel(server.target) as channel:
        stub, idle = pb_grpc.ExplainerServiceStub(channel), threading.Event()

        def messages() -> Iterator[pb.ExplainStreamRequest]:
            yield pb.ExplainStreamRequest(id="first", request=request(sample))
            idle.wait(SECONDS)

        replies = stub.ExplainStream(messages(), timeout=SECONDS)
        assert next(replies).id == "first"
        server.loop.call_soon_threadsafe(server.engine.drain)
        code, info, _ = failure(lambda: next(replies))
        assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        idle.set()
        code, info, _ = failure(lambda: stub.Explain(request(sample), timeout=SECONDS))
        assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


# Evaluate


def test_evaluate_equals_the_explainer(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    metrics = ["arcc", "complexity", "pointing_game", "arcc"]
    size = explainer.manifest.input_shape[1:]
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = 9
    message = pb.EvaluateRequest(image=pb.Image(encoded=sample), metrics=metrics, seed=3, class_index=2)
    message.object_mask.CopyFrom(pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=size, data=mask.tobytes()))
    reply = stub.Evaluate(message, timeout=SECONDS)
    inputs = explainer.preprocess_images(sample)
    made = explainer.explain(inputs, 2)
    expected = explainer.evaluate(inputs, made, metrics[:3], object_masks=mask[None] != 0, seed=3)
    assert set(reply.scores) == set(expected)
    for name, values in expected.items():
        assert reply.scores[name] == pytest.approx(values[0], abs=1e-4)
    assert reply.prediction.class_index == 2
    assert (reply.model.name, reply.model_digest) == ("shapes", DIGEST)
    assert reply.timings.total_us > 0


def test_evaluate_a_map_of_the_client(stub, explainer: camrt.Explainer, sample: bytes) -> None:
    size = explainer.manifest.input_shape[1:]
    values = np.full(size, 0.25, np.float32)
    message = pb.EvaluateRequest(image=pb.Image(encoded=sample), metrics=["complexity"])
    message.saliency_map.CopyFrom(pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=size, data=values.tobytes()))
    assert stub.Evaluate(message, timeout=SECONDS).scores["complexity"] == pytest.approx(0.25)
    message.saliency_map.data = np.full(size, 2.0, np.float32).tobytes()
    assert failure(lambda: stub.Evaluate(message, timeout=SECONDS))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"metrics": ["magic"]}, grpc.StatusCode.NOT_FOUND, "METHOD_NOT_FOUND"),
        ({"metrics": ["pointing_game"]}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ({"metrics": ["arcc"] * 17}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ({"class_index": 6}, grpc.StatusCode.NOT_FOUND, "CLASS_NOT_FOUND"),
        ({"class_name": ""}, grpc.StatusCode.NOT_FOUND, "CLASS_NOT_FOUND"),
        ({"class_name": "zebra"}, grpc.StatusCode.NOT_FOUND, "CLASS_NOT_FOUND"),
        ({"object_mask": pb.Tensor(data_type=1, shape=[2, 2], data=bytes(4))}, None, "INVALID_ARGUMENT"),
        ({"saliency_map": pb.Tensor(data_type=3, shape=[1, 1], data=bytes(4))}, None, "INVALID_ARGUMENT"),
    ],
)
def test_evaluate_refuses(stub, sample: bytes, fields: dict, code: grpc.StatusCode | None, reason: str) -> None:
    message = pb.EvaluateRequest(image=pb.Image(encoded=sample), **fields)
    got, info, error = failure(lambda: stub.Evaluate(message, timeout=SECONDS))
    assert (got, info.reason) == (code or grpc.StatusCode.INVALID_ARGUMENT, reason), error.details()


# Models


def test_list_models(stub) -> None:
    models = {item.model.name: item for item in stub.ListModels(pb.ListModelsRequest(), timeout=SECONDS).models}
    assert models["shapes"].state == models["bare"].state == pb.MODEL_STATE_READY
    assert models["shapes"].digest == DIGEST
    assert (models["bad"].state, models["bad"].reason) == (pb.MODEL_STATE_FAILED, "The file is damaged.")


def test_get_model(stub, explainer: camrt.Explainer, bare: camrt.Explainer) -> None:
    reply = stub.GetModel(pb.GetModelRequest(), timeout=SECONDS)
    manifest = explainer.manifest
    assert tuple(reply.input_shape) == manifest.input_shape
    assert tuple(reply.class_names) == manifest.class_names
    assert reply.num_classes == manifest.num_classes
    assert [layer.name for layer in reply.target_layers] == list(manifest.layer_names)
    for layer, known in zip(reply.target_layers, manifest.target_layers, strict=True):
        assert tuple(layer.shape) == known.shape
        assert layer.stride[0] == manifest.input_shape[1] / known.shape[1]
    available = available_methods(manifest, manifest.layer_names[:1])
    assert {"refinecam", *available} == {method.name for method in reply.methods}
    heavy = {method.name for method in reply.methods if method.heavy}
    assert heavy == {name for name in available if CAM_METHODS[name].expensive}
    assert all((method.cost > 1) == method.heavy for method in reply.methods)
    assert "product" in reply.fusions
    assert "arcc" in reply.metrics
    assert reply.defaults.method == "refinecam"
    assert camrt.Preprocessing.from_dict(json.loads(reply.preprocessing_json)) == explainer.preprocessing
    assert (reply.provider, reply.camrt_version) == ("cpu", camrt.__version__)
    assert (reply.precision, reply.HasField("parity")) == (manifest.precision, False)
    assert reply.summary.state == pb.MODEL_STATE_READY
    other = stub.GetModel(pb.GetModelRequest(model=pb.ModelReference(name="bare")), timeout=SECONDS)
    assert other.preprocessing_json == ""
    assert not other.class_names
    missing = pb.GetModelRequest(model=pb.ModelReference(name="none"))
    assert failure(lambda: stub.GetModel(missing, timeout=SECONDS))[1].reason == "MODEL_NOT_FOUND"
    assert Path(explainer.manifest.source_name)


def test_what_the_check_at_load_found(monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(embedded_bundle_path(), threads=1)
    session.parity = Parity("tensorrt", {"stage4": 0.9951, "stage3": 0.9922}, 0.002, 0.5, 0.99)
    session.manifest = replace(session.manifest, precision="fp16")
    monkeypatch.setattr("camrt.explainer.explainer.open_session", lambda *_: session)
    model = LoadedModel("shapes", "1", camrt.Explainer(), "digest", "tensorrt")
    reply = model_message(model, (), 8)
    assert reply.precision == "fp16"
    assert dict(reply.parity.layer_correlations) == pytest.approx(session.parity.correlations)
    figures = (reply.parity.logit_error, reply.parity.top1_agreement, reply.parity.threshold)
    assert (reply.parity.provider, figures) == ("tensorrt", pytest.approx((0.002, 0.5, 0.99)))
