"""Both clients against a server in this process: the same explanations as an Explainer's."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

import camrt
from camrt.client import AsyncExplainerClient, ExplainerClient, RemoteError, Reply
from camrt.errors import (
    CamrtError,
    ClassIndexError,
    ImageError,
    InvalidInputError,
    LayerNotFoundError,
    MethodNotFoundError,
)
from camrt.explainer import sample_image_path
from camrt.server.errors import DrainingError, ModelNotReadyError, OverloadedError, UnauthenticatedError
from tests.server.serving import DIGEST, Models, Serving, serving


@pytest.fixture(scope="module")
def explainer() -> camrt.Explainer:
    return camrt.Explainer(threads=1)


@pytest.fixture(scope="module")
def server(explainer: camrt.Explainer) -> Iterator[Serving]:
    with serving(Models(shapes=explainer)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[ExplainerClient]:
    with ExplainerClient(server.target, timeout=30) as connected:
        yield connected


@pytest.fixture
def sample() -> Path:
    return sample_image_path()


def ask(server: Serving, call, **options):
    """Runs ``call`` with an asynchronous client."""

    async def run():
        async with AsyncExplainerClient(server.target, **{"timeout": 30, **options}) as client:
            return await call(client)

    return asyncio.run(run())


# what comes out


@pytest.mark.parametrize(("precision", "error"), [("uint8", 0.002), ("float16", 3e-4), ("float32", 1e-6)])
def test_an_explanation_is_that_of_an_explainer(client, explainer, sample, precision: str, error: float) -> None:
    (got,) = client.explain(sample, precision=precision, return_layer_maps=True)
    (expected,) = explainer.explain_images(sample)
    assert got.saliency_map.dtype == np.float32
    assert got.saliency_map.shape == expected.saliency_map.shape
    np.testing.assert_allclose(got.saliency_map, expected.saliency_map, rtol=0, atol=error)
    assert list(got.layer_maps) == list(expected.layer_maps)
    for name, layer_map in expected.layer_maps.items():
        np.testing.assert_allclose(got.layer_maps[name], layer_map, rtol=0, atol=1e-6)
    for field in ("class_index", "class_name", "method", "base_method", "fusion", "degenerate", "order"):
        assert getattr(got, field) == getattr(expected, field)
    assert got.probability == pytest.approx(expected.probability, rel=1e-5)
    assert got.logit == pytest.approx(expected.logit, rel=1e-5)
    assert not got.in_input_pixels
    assert set(got.timings) == {"decode", "queue", "inference", "kernels", "encode"}


def test_an_explanation_can_be_saved_and_measured_like_a_local_one(client, explainer, sample, tmp_path) -> None:
    (got,) = client.explain(sample, output_size="input", precision="float32", return_layer_maps=True)
    got.save(tmp_path / "remote.npz")
    loaded = camrt.Explanation.load(tmp_path / "remote.npz")
    np.testing.assert_array_equal(loaded.saliency_map, got.saliency_map)
    inputs = explainer.preprocess_images(sample)
    here = explainer.explain_images(sample, output_size="input")
    assert got.in_input_pixels
    assert explainer.arcc(inputs, [got])[0] == pytest.approx(explainer.arcc(inputs, here)[0], abs=1e-4)


def test_every_kind_of_image(client, explainer, sample) -> None:
    picture = Image.open(sample).convert("RGB")
    pixels = np.asarray(picture)
    gray = np.asarray(picture.convert("L"))
    tensor = explainer.preprocess_images(sample)[0]
    (expected,) = client.explain(sample)
    encoded = sample.read_bytes()
    for image in (str(sample), encoded, bytearray(encoded), memoryview(encoded), picture, pixels, pixels.copy("F")):
        (got,) = client.explain(image)
        np.testing.assert_array_equal(got.saliency_map, expected.saliency_map)
    assert client.explain(gray)[0].saliency_map.shape == gray.shape
    for dtype in ("<f4", ">f4", "<f2"):
        (got,) = client.explain(tensor.astype(dtype))
        assert got.saliency_map.shape == tensor.shape[1:]
        assert got.class_index == expected.class_index
        assert got.in_input_pixels


def test_options(client, explainer, sample) -> None:
    options = {"base_method": "layercam", "fusion": "mean", "target_layers": "top", "output_size": (40, 30)}
    (got,) = client.explain(sample, precision="float32", class_indices=2, **options)
    (expected,) = explainer.explain_images(sample, 2, **options)
    np.testing.assert_allclose(got.saliency_map, expected.saliency_map, rtol=0, atol=1e-6)
    assert (got.class_index, got.base_method, got.fusion) == (2, "layercam", "mean")
    layer = explainer.manifest.layer_names[1]
    (single,) = client.explain(sample, method="hirescam", target_layers=[layer], return_layer_maps=True)
    assert list(single.layer_maps) == [layer]
    assert (single.method, single.base_method, single.fusion) == ("hirescam", None, None)


def test_classes(client, explainer, sample) -> None:
    names = explainer.manifest.class_names
    assert [item.class_index for item in client.explain(sample, class_indices=[3, 0])] == [3, 0]
    assert [item.class_name for item in client.explain(sample, class_indices=[names[4], names[1]])] == [
        names[4],
        names[1],
    ]
    for classes in (np.array([5, 2]), (np.int64(5), np.uint8(2)), range(5, 0, -3)):
        assert [item.class_index for item in client.explain(sample, class_indices=classes)] == [5, 2]
    assert [item.class_index for item in client.explain(sample, class_indices=np.int64(4))] == [4]
    top = client.explain(sample, top_k=3)
    assert [item.probability for item in top] == sorted((item.probability for item in top), reverse=True)


def test_a_reply_says_more(client, explainer, sample) -> None:
    reply = client.reply(sample, return_probabilities=True, return_arcc=True, seed=4)
    assert (reply.model, reply.version, reply.digest, reply.batch_size) == ("shapes", "1", DIGEST, 1)
    assert reply.probabilities.dtype == np.float32
    assert reply.probabilities.shape == (explainer.manifest.num_classes,)
    assert reply.predictions[0].class_index == int(reply.probabilities.argmax())
    assert reply.predictions[0].class_name == explainer.manifest.class_names[reply.predictions[0].class_index]
    here = explainer.explain_images(sample, output_size="input")
    expected = explainer.arcc(explainer.preprocess_images(sample), here, seed=4)[0]
    assert reply.scores[0]["arcc"] == pytest.approx(expected, abs=1e-4)
    assert sum(reply.timings[stage] for stage in ("decode", "inference", "kernels", "encode")) <= reply.timings["total"]
    bare = client.reply(sample)
    assert bare.probabilities is None
    assert bare.scores == [{}]
    assert not bare.explanations[0].layer_maps


def test_evaluate(client, explainer, sample) -> None:
    inputs = explainer.preprocess_images(sample)
    mask = np.zeros(inputs.shape[2:], bool)
    mask[: len(mask) // 2] = True
    made = explainer.explain(inputs, 1, base_method="layercam")
    expected = explainer.evaluate(inputs, made, ("complexity", "mass_iou"), mask[None])
    got = client.evaluate(sample, ("complexity", "mass_iou"), None, mask, class_indices=1, base_method="layercam")
    assert got == pytest.approx({name: values[0] for name, values in expected.items()}, abs=1e-4)
    flat = np.full(mask.shape, 0.5, np.float32)
    name = explainer.manifest.class_names[1]
    assert client.evaluate(sample, ["complexity"], flat, class_indices=name) == {"complexity": pytest.approx(0.5)}
    with pytest.raises(ClassIndexError):
        client.evaluate(sample, class_indices=[1, 2])


def test_models(client, explainer) -> None:
    summaries = client.list_models()
    assert [(item.name, item.version, item.state) for item in summaries] == [
        ("shapes", "1", "ready"),
        ("bad", "2", "failed"),
    ]
    assert summaries[0].digest == DIGEST
    assert summaries[1].reason
    details = client.get_model()
    assert details.summary == summaries[0]
    assert details.preprocessing == explainer.preprocessing
    assert details.class_names == explainer.manifest.class_names
    assert details.input_shape == explainer.manifest.input_shape
    assert [layer.name for layer in details.target_layers] == list(explainer.manifest.layer_names)
    assert details.methods["refinecam"] == 1
    assert details.camrt_version == camrt.__version__
    assert (details.precision, details.parity) == ("fp32", None)


# what goes wrong


@pytest.mark.parametrize(
    ("image", "options", "kind"),
    [
        ("missing.png", {}, ImageError),
        (b"nonsense", {}, InvalidInputError),
        (3, {}, ImageError),
        (np.zeros((4, 4), np.int32), {}, ImageError),
        (np.zeros((3, 4, 4), np.float32), {}, InvalidInputError),
        (None, {"method": "magic"}, MethodNotFoundError),
        (None, {"target_layers": "magic"}, LayerNotFoundError),
        (None, {"class_indices": 99}, ClassIndexError),
        (None, {"class_indices": [0, "disc"]}, ClassIndexError),
        (None, {"class_indices": []}, ClassIndexError),
        (None, {"class_indices": 0, "top_k": 2}, ClassIndexError),
        (None, {"top_k": 0}, InvalidInputError),
        (None, {"output_size": "huge"}, InvalidInputError),
        (None, {"output_size": (0, 4)}, InvalidInputError),
        (None, {"precision": "float64"}, InvalidInputError),
        (None, {"colour": "red"}, InvalidInputError),
        (None, {"output_size": (1 << 40, 4)}, InvalidInputError),
        (None, {"output_size": (4,)}, InvalidInputError),
        (None, {"top_k": "two"}, InvalidInputError),
        (None, {"method": 3}, InvalidInputError),
        (None, {"class_indices": 1 << 70}, InvalidInputError),
        (None, {"class_indices": [1.7]}, ClassIndexError),
        (None, {"class_indices": 1.0}, ClassIndexError),
        (None, {"class_indices": np.array([1.0, 2.0])}, ClassIndexError),
        (None, {"class_indices": np.array([[1]])}, ClassIndexError),
        (None, {"class_indices": [None]}, ClassIndexError),
        (None, {"top_k": 2.5}, InvalidInputError),
        (None, {"target_layers": 3}, InvalidInputError),
        (None, {"target_layers": []}, InvalidInputError),
        (None, {"target_layers": ""}, LayerNotFoundError),
        (None, {"channels": 1 << 40, "base_method": "scorecam"}, InvalidInputError),
        ("a\0b.png", {}, ImageError),
        (bytearray(b"nonsense"), {}, InvalidInputError),
        (None, {"seed": -1, "return_arcc": True}, InvalidInputError),
        (None, {"model": "none"}, RemoteError),
    ],
)
def test_errors_are_those_of_an_explainer(client, sample, image, options: dict, kind: type[CamrtError]) -> None:
    with pytest.raises(kind) as caught:
        client.explain(sample if image is None else image, **options)
    assert str(caught.value)


@pytest.mark.parametrize(
    ("image", "options", "kind"),
    [
        ("missing.png", {}, ImageError),
        (None, {"metod": "gradcam"}, InvalidInputError),
        (None, {"top_k": 3}, InvalidInputError),
        (None, {"output_size": "input"}, InvalidInputError),
        (None, {"return_arcc": True}, InvalidInputError),
        (None, {"metrics": "arcc"}, InvalidInputError),
        (None, {"metrics": ()}, InvalidInputError),
        (None, {"metrics": 3}, InvalidInputError),
        (None, {"channels": -1, "base_method": "scorecam"}, InvalidInputError),
        (None, {"channels": 1 << 40, "base_method": "scorecam"}, InvalidInputError),
        (None, {"channels": "many"}, InvalidInputError),
        (None, {"channels": 4}, InvalidInputError),
        (None, {"seed": 1 << 70}, InvalidInputError),
        (None, {"seed": 1.5}, InvalidInputError),
        (None, {"target_layers": 3}, InvalidInputError),
        (None, {"target_layers": []}, InvalidInputError),
        (None, {"method": 3}, InvalidInputError),
        (None, {"class_indices": [3]}, ClassIndexError),
        (None, {"class_indices": 1.7}, ClassIndexError),
        (None, {"class_indices": 1 << 70}, InvalidInputError),
        (None, {"class_indices": 99}, ClassIndexError),
        (None, {"saliency_map": "x"}, InvalidInputError),
        (None, {"model": "none"}, RemoteError),
    ],
)
def test_evaluate_refuses_what_explain_refuses(client, sample, image, options: dict, kind: type[CamrtError]) -> None:
    with pytest.raises(kind) as caught:
        client.evaluate(sample if image is None else image, **options)
    assert str(caught.value)


def test_an_unknown_option_of_evaluate_names_those_there_are(client, sample) -> None:
    with pytest.raises(InvalidInputError, match=r"Unknown option top_k\. The options are class_indices, .*seed"):
        client.evaluate(sample, top_k=3)


def test_the_class_of_evaluate_may_be_any_integer(client, sample) -> None:
    expected = client.evaluate(sample, ["complexity"], class_indices=3)
    assert client.evaluate(sample, ["complexity"], class_indices=np.int64(3)) == expected
    assert client.evaluate(sample, ["complexity"], class_indices=2) != expected


def test_a_remote_error_says_what_and_where(client, sample) -> None:
    with pytest.raises(RemoteError) as caught:
        client.explain(sample, model="none")
    assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert caught.value.request_id
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_nobody_answers(sample) -> None:
    started = time.monotonic()
    with (
        ExplainerClient("127.0.0.1:1", timeout=0.5) as client,
        pytest.raises(RemoteError, match="Is the server") as caught,
    ):
        client.explain(sample)
    assert caught.value.code == "UNAVAILABLE"
    assert time.monotonic() - started < 5


def test_a_message_that_is_too_large_is_not_tried_again(server, sample) -> None:
    with ExplainerClient(server.target, message_bytes=1000) as client, pytest.raises(RemoteError) as caught:
        client.explain(sample)
    assert caught.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    "options",
    [
        {"target": ""},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"retries": -1},
        {"token": "secret", "target": "example.com:50051"},
        {"token": "line\nbreak"},
        {"token": ""},
        {"tls": camrt.client.TlsOptions(authority="missing.pem")},
        {"tls": camrt.client.TlsOptions(certificate=b"x")},
    ],
)
def test_connections_that_make_no_sense(options: dict) -> None:
    with pytest.raises(InvalidInputError) as caught:
        ExplainerClient(**{"target": "127.0.0.1:1", **options})
    assert "secret" not in str(caught.value)


class Failing:
    """Makes the first calls of a server fail."""

    def __init__(self, server: Serving, *errors: CamrtError) -> None:
        self.server, self.errors, self.calls = server, list(errors), 0

    def __enter__(self) -> Failing:
        self.get = self.server.models.get
        self.server.models.get = self._get
        return self

    def __exit__(self, *_) -> None:
        self.server.models.get = self.get

    def _get(self, name: str = "", version: str = "") -> object:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.get(name, version)


@pytest.fixture(params=["sync", "async"])
def explain(request, server):
    """explain of either client."""
    if request.param == "sync":

        def call(image, retries: int = 4, timeout: float = 30, **options):
            with ExplainerClient(server.target, retries=retries, timeout=timeout) as client:
                return client.explain(image, **options)

    else:

        def call(image, retries: int = 4, timeout: float = 30, **options):
            return ask(server, lambda client: client.explain(image, **options), retries=retries, timeout=timeout)

    return call


def test_what_passes_is_tried_again(server, explain, sample) -> None:
    errors = (DrainingError("Stopping."), ModelNotReadyError("Loading."), OverloadedError("Full.", retry_after_ms=30))
    with Failing(server, *errors) as failing:
        assert len(explain(sample)) == 1
    assert failing.calls == 4


def test_pushback_is_waited_for(server, explain, sample) -> None:
    with Failing(server, OverloadedError("Full.", retry_after_ms=400)):
        started = time.monotonic()
        assert len(explain(sample)) == 1
        assert time.monotonic() - started >= 0.4


def test_retries_are_bounded(server, explain, sample) -> None:
    with Failing(server, *[OverloadedError("Full.", retry_after_ms=1)] * 9) as failing, pytest.raises(RemoteError):
        explain(sample, retries=2)
    assert failing.calls == 3


def test_nobody_waits_longer_than_the_timeout(server, explain, sample) -> None:
    started = time.monotonic()
    with (
        Failing(server, *[OverloadedError("Full.", retry_after_ms=60_000)] * 9) as failing,
        pytest.raises(RemoteError) as caught,
    ):
        explain(sample, timeout=5)
    assert caught.value.reason == "OVERLOADED"
    assert failing.calls == 1
    assert time.monotonic() - started < 4


def test_what_does_not_pass_is_not_tried_again(server, explain, sample) -> None:
    with Failing(server, UnauthenticatedError("Who?")) as failing, pytest.raises(RemoteError) as caught:
        explain(sample)
    assert (failing.calls, caught.value.reason) == (1, "UNAUTHENTICATED")


# streams


def frames(sample: Path, count: int = 9) -> list:
    stream = io.BytesIO()
    Image.open(sample).convert("RGB").save(stream, "JPEG")
    return [[stream.getvalue(), "missing.png", b"nonsense"][number % 3] for number in range(count)]


def check_stream(replies: list, count: int) -> None:
    assert [reply.index for reply in replies] == list(range(count))
    for reply in replies:
        if reply.index % 3 == 0:
            assert isinstance(reply.reply, Reply)
            assert len(reply.explanations) == 2
        else:
            assert reply.reply is None
            kind = ImageError if reply.index % 3 == 1 else InvalidInputError
            with pytest.raises(kind, match=r"Cannot read|not a JPEG"):
                _ = reply.explanations


def test_stream(client, sample) -> None:
    check_stream(list(client.explain_stream(frames(sample), top_k=2)), 9)
    check_stream(list(client.explain_stream(iter(frames(sample, 8)), top_k=2)), 8)
    assert list(client.explain_stream([])) == []
    (only,) = client.explain_stream(["missing.png"])
    assert isinstance(only.error, ImageError)


def test_asynchronous_stream(server, sample) -> None:
    async def collect(client: AsyncExplainerClient) -> list:
        async def later():
            for frame in frames(sample):
                await asyncio.sleep(0)
                yield frame

        first = [reply async for reply in client.explain_stream(frames(sample), top_k=2)]
        return [first, [reply async for reply in client.explain_stream(later(), top_k=2)]]

    for replies in ask(server, collect):
        check_stream(replies, 9)


def test_a_stream_is_left_early(server, client, sample) -> None:
    endless = iter(lambda: sample, None)
    for reply in client.explain_stream(endless):
        assert reply.error is None
        if reply.index == 3:
            break
    until = time.monotonic() + 10
    while server.engine.in_flight and time.monotonic() < until:
        time.sleep(0.02)
    assert server.engine.in_flight == 0


def test_an_overload_says_when_to_come_back(server, client, sample) -> None:
    server.models.broken = OverloadedError("Full.", "Wait.", retry_after_ms=70_000)
    try:
        with pytest.raises(RemoteError) as refused:
            client.explain(sample)
        (reply,) = client.explain_stream([sample])
    finally:
        server.models.broken = None
    assert refused.value.retry_after_ms == 70_000
    assert isinstance(reply.error, RemoteError)
    assert (reply.error.code, reply.error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert reply.error.retry_after_ms == 70_000
    (reply,) = client.explain_stream([sample], model="none")
    assert reply.error.retry_after_ms is None


def test_a_stream_that_ends_with_the_server(explainer, sample) -> None:
    with serving(Models(shapes=explainer)) as server, ExplainerClient(server.target, timeout=30) as client:
        release = threading.Event()

        def images():
            yield sample
            release.wait(30)

        replies = client.explain_stream(images())
        assert next(replies).error is None
        server.loop.call_soon_threadsafe(server.engine.drain)
        with pytest.raises(RemoteError) as caught:
            next(replies)
        release.set()
        assert caught.value.reason == "DRAINING"


def failing_images(sample: Path) -> Iterator[Path]:
    yield sample
    raise ConnectionResetError("the camera is gone")


def test_what_the_images_raise_comes_out(client, sample, caplog) -> None:
    with pytest.raises(ConnectionResetError, match="the camera is gone"):
        list(client.explain_stream(failing_images(sample)))
    with pytest.raises(InvalidInputError, match="precision"):
        list(client.explain_stream([sample], precision="float64"))
    assert client.explain(sample)


def test_what_the_images_raise_comes_out_of_the_asynchronous_client_too(server, sample) -> None:
    async def collect(client: AsyncExplainerClient, images, options: dict) -> list:
        return [reply async for reply in client.explain_stream(images, **options)]

    with pytest.raises(ConnectionResetError, match="the camera is gone"):
        ask(server, lambda client: collect(client, failing_images(sample), {}))
    with pytest.raises(InvalidInputError, match="precision"):
        ask(server, lambda client: collect(client, [sample], {"precision": "float64"}))


# the asynchronous client


def test_asynchronous_calls(server, explainer, sample) -> None:
    async def calls(client: AsyncExplainerClient):
        many = await asyncio.gather(*[client.explain(sample, class_indices=number % 6) for number in range(12)])
        return many, await client.list_models(), await client.get_model("shapes"), await client.evaluate(sample)

    many, models, details, scores = ask(server, calls)
    assert [item.class_index for (item,) in many] == [number % 6 for number in range(12)]
    assert models[0].name == details.summary.name == "shapes"
    assert set(scores) == {"arcc"}


def test_the_asynchronous_client_reads_files_and_decodes_pictures_in_a_thread(server, sample, tmp_path) -> None:
    pipe = tmp_path / "pipe"  # reading it takes until somebody writes
    os.mkfifo(pipe)

    async def calls(client: AsyncExplainerClient) -> tuple[int, int, float]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        writer = threading.Timer(0.3, lambda: pipe.write_bytes(sample.read_bytes()))
        writer.start()
        (explained,) = await client.explain(pipe)
        while_explaining = ticks
        writer.join()
        writer = threading.Timer(0.3, lambda: pipe.write_bytes(sample.read_bytes()))
        writer.start()
        (reply,) = [reply async for reply in client.explain_stream([pipe])]
        writer.join()
        ticking.cancel()
        assert reply.reply is not None
        assert reply.reply.explanations[0].class_index == explained.class_index
        return while_explaining, ticks - while_explaining, explained.probability

    during, streaming, probability = ask(server, calls)
    assert during >= 10
    assert streaming >= 10
    assert probability > 0


def test_threads_share_a_client(client, sample) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda k=k: found.append(client.explain(sample, class_indices=k)[0].class_index))
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == list(range(6))
