"""The Explainer on small networks: methods, layers, sizes, images, and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import camrt
from camrt.cam import CAM_METHODS, MapRequest, Perturbation, available_methods, make_plan
from camrt.errors import (
    BackendUnavailableError,
    CamrtError,
    ClassIndexError,
    ImageError,
    InvalidInputError,
    LayerNotFoundError,
    MethodNotFoundError,
    MethodUnavailableError,
)
from camrt.explainer import embedded_bundle_path, sample_image_path
from camrt.explanation import Explanation
from camrt.kernels import get_backend
from camrt.kernels.backend import FUSIONS
from camrt.preprocess import Preprocessing
from camrt.runtime import open_session
from tests.exporter.graphs import GraphWriter, residual_classifier, small_classifier

LAYERS = ("stage3", "stage2", "stage1")
NAMES = ["ant", "bee", "cat", "dog", "eel"]
SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explainer")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    source = residual_classifier(folder / "source.onnx")
    preprocessing = Preprocessing((SIDE, SIDE), "crop", 40)
    return camrt.export(
        source, folder / "bundle.onnx", preprocess=preprocessing, class_names=NAMES, second_order=True
    ).path


@pytest.fixture(scope="module")
def explainer(bundle: Path) -> camrt.Explainer:
    return camrt.Explainer(bundle, threads=1)


@pytest.fixture(scope="module")
def bare(folder: Path) -> camrt.Explainer:
    """Without class names and preprocessing."""
    source = small_classifier(folder / "bare.onnx", head="Sigmoid")
    return camrt.Explainer(camrt.export(source, folder / "bare.bundle.onnx").path, threads=1)


def tensors(count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)


def picture(height: int = 48, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def is_map(values: np.ndarray, size: tuple[int, int]) -> bool:
    return values.shape == size and values.dtype == np.float32 and 0 <= values.min() <= values.max() <= 1


# explain


@pytest.mark.parametrize("method", CAM_METHODS)
def test_a_plain_method_explains_the_coarsest_layer(explainer: camrt.Explainer, method: str) -> None:
    for explanation in explainer.explain(tensors(), method=method):
        assert is_map(explanation.saliency_map, (SIDE, SIDE))
        assert list(explanation.layer_maps) == ["stage3"]
        assert (explanation.method, explanation.base_method, explanation.fusion) == (method, None, None)


@pytest.mark.parametrize("base", [name for name in CAM_METHODS if name != "cam"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_refinecam_is_the_kernels_on_what_the_method_collects(
    explainer: camrt.Explainer, bundle: Path, base: str, fusion: Any
) -> None:
    inputs, classes = tensors(), np.array([1, 4])
    method, kernels = CAM_METHODS[base], get_backend("reference")
    outputs = method.collect(open_session(bundle, threads=1), MapRequest(inputs, classes, LAYERS))
    maps = method.maps(kernels, outputs)
    expected, _ = kernels.fuse_layers(maps, (SIDE, SIDE), fusion)
    explanations = explainer.explain(inputs, [1, 4], base_method=base, fusion=fusion)
    for n, explanation in enumerate(explanations):
        np.testing.assert_allclose(explanation.saliency_map, expected[n], rtol=0, atol=1e-5)
        assert list(explanation.layer_maps) == list(LAYERS)
        for m, layer in enumerate(LAYERS):
            np.testing.assert_allclose(explanation.layer_maps[layer], maps[m][n], rtol=0, atol=1e-5)
        assert (explanation.method, explanation.base_method, explanation.fusion) == ("refinecam", base, fusion)


def test_what_a_method_needs_and_the_bundle_lacks(explainer: camrt.Explainer, bare: camrt.Explainer) -> None:
    assert available_methods(explainer.manifest, ["stage3"]) == tuple(CAM_METHODS)
    assert set(CAM_METHODS) - set(available_methods(explainer.manifest, LAYERS)) == {"cam"}
    expensive = set(CAM_METHODS) - set(available_methods(explainer.manifest, ["stage3"], expensive=False))
    assert expensive == {"scorecam", "ablationcam"}
    with pytest.raises(MethodUnavailableError, match=r"'stage2', 'stage1' does not \(layers that do: stage3\)"):
        explainer.explain(tensors(1), base_method="cam")
    with pytest.raises(MethodUnavailableError, match="second_order=True"):
        bare.explain(np.zeros((1, *bare.manifest.input_shape), np.float32), method="shapleycam")


def test_the_embedded_bundle_is_what_the_exporter_writes_today(tmp_path: Path) -> None:
    """Made by training/make_bundle.py; made again where the exporter says more about a model."""
    shipped = camrt.Bundle.open(embedded_bundle_path()).manifest
    source = Path(__file__).parents[1] / "training" / shipped.source_name
    names = list(shipped.class_names or ())
    made = camrt.export(source, tmp_path / "made.onnx", preprocess="symmetric", class_names=names).manifest
    assert replace(made, camrt_version=shipped.camrt_version) == shipped


def test_cam_of_the_embedded_model_is_its_gradcam() -> None:
    embedded = camrt.Explainer(threads=1)
    maps = [embedded.explain_images(sample_image_path(), method=name)[0].saliency_map for name in ("cam", "gradcam")]
    assert maps[0].max() > 0.9
    np.testing.assert_allclose(*maps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", CAM_METHODS)
def test_classes_of_one_image_are_explained_as_alone(explainer: camrt.Explainer, method: str) -> None:
    inputs = tensors(1)
    together = explainer.explain(inputs, [3, -1, 0], method=method)
    for explanation, k in zip(together, (3, -1, 0), strict=True):
        (alone,) = explainer.explain(inputs, k, method=method)
        assert (explanation.class_index, explanation.degenerate) == (alone.class_index, alone.degenerate)
        np.testing.assert_allclose(explanation.saliency_map, alone.saliency_map, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", CAM_METHODS)
def test_classes_that_are_not_there(explainer: camrt.Explainer, method: str) -> None:
    plan = make_plan(explainer.manifest, method, method, "product", None, "normalize_twice")
    for classes in ([5], [-6], [0, 1, 2], []):
        with pytest.raises(ClassIndexError):
            explainer.explain_batch(tensors(2 if len(classes) == 3 else 1), np.array(classes, np.int64), plan)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_perturbation_tells_its_progress_and_can_be_stopped(explainer: camrt.Explainer, method: str) -> None:
    seen: list[tuple[int, int]] = []
    limits = Perturbation(channels=5, memory_bytes=1, progress=lambda done, total: seen.append((done, total)))
    explainer.explain(tensors(), method="refinecam", base_method=method, perturbation=limits)
    assert seen == [(done, 30) for done in range(1, 31)]  # two images, three layers, five channels, one a run

    def stop() -> None:
        if len(seen) > 33:
            raise InterruptedError

    plan = make_plan(explainer.manifest, method, method, "product", None, "normalize_twice", limits)
    with pytest.raises(InterruptedError):
        explainer.explain_batch(tensors(), np.array([0, 1]), plan, stop)
    assert len(seen) == 34


def test_evaluation_explains_again_with_the_same_perturbation(explainer: camrt.Explainer) -> None:
    inputs, limits = tensors(1), Perturbation(channels=3)
    explanations = explainer.explain(inputs, method="scorecam", perturbation=limits)
    few, all_channels = (
        explainer.evaluate(inputs, explanations, ("coherency",), perturbation=p)["coherency"] for p in (limits, None)
    )
    assert 0 <= few[0] <= 1
    assert few[0] != all_channels[0]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, LAYERS),
        ("all", LAYERS),
        ("top", ("stage3", "stage1")),
        ("above", ("stage2", "stage1")),
        ("stage2", ("stage2",)),
        (["stage1", "stage3"], ("stage3", "stage1")),
        (("stage2", "stage2"), ("stage2",)),
    ],
)
def test_layer_choices(explainer: camrt.Explainer, choice: Any, expected: tuple[str, ...]) -> None:
    (explanation,) = explainer.explain(tensors(1), target_layers=choice)
    assert tuple(explanation.layer_maps) == expected
    (same,) = explainer.explain(tensors(1), target_layers=list(expected))
    np.testing.assert_allclose(explanation.saliency_map, same.saliency_map, rtol=0, atol=1e-6)


def test_a_plain_method_on_a_named_layer(explainer: camrt.Explainer) -> None:
    (explanation,) = explainer.explain(tensors(1), method="gradcam", target_layers="stage1")
    assert {name: values.shape for name, values in explanation.layer_maps.items()} == {"stage1": (8, 8)}


@pytest.mark.parametrize("size", [(1, 1), (7, 50), [64, 20]])
def test_output_size(explainer: camrt.Explainer, size: Any) -> None:
    for explanation in explainer.explain(tensors(), output_size=size):
        assert is_map(explanation.saliency_map, tuple(size))


def test_orders_differ(explainer: camrt.Explainer) -> None:
    twice, once = (
        explainer.explain(tensors(1), order=order)[0].saliency_map for order in ("normalize_twice", "resize_once")
    )
    assert np.abs(twice - once).max() > 1e-3


def test_classes_names_ranks_and_probabilities(explainer: camrt.Explainer) -> None:
    inputs = tensors(1)
    logits = explainer.predict(inputs)[0]
    powers = np.exp(logits - logits.max())
    shares = powers / powers.sum()
    ranking = np.argsort(-logits)
    explanations = explainer.explain(inputs, [-1, "dog", 0, -5])
    assert [item.class_index for item in explanations] == [ranking[0], 3, 0, ranking[4]]
    for item in explanations:
        assert item.class_name == NAMES[item.class_index]
        assert item.logit == pytest.approx(logits[item.class_index], abs=1e-6)
        assert item.probability == pytest.approx(shares[item.class_index], abs=1e-6)


@pytest.mark.parametrize("classes", [3, "dog", np.int64(3), [3, 3], np.array([3, 3]), ("dog", 3)])
def test_ways_to_write_a_class(explainer: camrt.Explainer, classes: Any) -> None:
    assert [item.class_index for item in explainer.explain(tensors(), classes)] == [3, 3]


def test_without_classes_the_prediction_is_explained(explainer: camrt.Explainer) -> None:
    inputs = tensors(4, seed=5)
    predicted = explainer.predict(inputs).argmax(axis=1).tolist()
    assert [item.class_index for item in explainer.explain(inputs)] == predicted


def test_several_classes_of_one_image_equal_single_runs(explainer: camrt.Explainer) -> None:
    together = explainer.explain(tensors(1), [0, 1, 2])
    for number, item in enumerate(together):
        (alone,) = explainer.explain(tensors(1), number)
        np.testing.assert_allclose(item.saliency_map, alone.saliency_map, rtol=0, atol=1e-5)
    assert np.abs(together[0].saliency_map - together[1].saliency_map).max() > 1e-2


def test_a_sigmoid_model_gives_a_probability_a_class(bare: camrt.Explainer) -> None:
    inputs = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    logits = bare.predict(inputs)[0]
    for item in bare.explain(inputs, [0, 1, 2, 3, 4]):
        assert item.probability == pytest.approx(1 / (1 + np.exp(-logits[item.class_index])), abs=1e-6)
        assert item.class_name is None


@pytest.mark.parametrize("head", ["logits", "LogSoftmax"])
def test_other_heads_give_softmax_probabilities(head: str, tmp_path: Path) -> None:
    bundle = camrt.export(small_classifier(tmp_path / "source.onnx", head=head), tmp_path / "bundle.onnx")
    explainer = camrt.Explainer(bundle.path, threads=1)
    items = explainer.explain(np.ones((1, 3, 16, 16), np.float32), [0, 1, 2, 3, 4])
    assert sum(item.probability for item in items) == pytest.approx(1, abs=1e-6)


def test_timings_are_told(explainer: camrt.Explainer) -> None:
    (item,) = explainer.explain(tensors(1))
    assert {"inference", "kernels"} <= set(item.timings)
    (seen,) = explainer.explain_images(picture())
    assert {"decode", "preprocess", "inference", "kernels", "warp"} <= set(seen.timings)
    assert all(0 <= seconds < 60 for seconds in (*item.timings.values(), *seen.timings.values()))


def test_degenerate_layers_are_reported(tmp_path: Path) -> None:
    """Class 1 is never moved by any pixel: its gradient is zero, every map constant."""
    w = GraphWriter()
    value = w.add("Relu", "r2", w.conv("c2", w.add("Relu", "r1", w.conv("c1", "image", (3, 4), 3, 2)), (4, 4)))
    w.classify(value, 4)
    w.constants["fc"][1] = 0
    bundle = camrt.export(w.save(tmp_path / "source.onnx"), tmp_path / "bundle.onnx", ["r2", "r1"])
    dull, usual = camrt.Explainer(bundle.path, threads=1).explain(tensors(1), [1, 0])
    assert dull.degenerate == ("r2", "r1")
    assert not dull.saliency_map.any()
    assert "degenerate" in repr(dull)
    assert usual.degenerate == ()


def test_inputs_are_not_written_to_and_need_not_be_contiguous(explainer: camrt.Explainer) -> None:
    inputs = np.asfortranarray(tensors())
    before = inputs.copy()
    inputs.flags.writeable = False
    explanations = explainer.explain(inputs, [0, 1])
    np.testing.assert_array_equal(inputs, before)
    for mine, theirs in zip(explanations, explainer.explain(tensors(), [0, 1]), strict=True):
        np.testing.assert_array_equal(mine.saliency_map, theirs.saliency_map)


def test_explanations_of_one_run_do_not_change_with_the_next(explainer: camrt.Explainer) -> None:
    (first,) = explainer.explain(tensors(1), 0)
    kept = first.saliency_map.copy()
    explainer.explain(tensors(1, seed=9), 1)
    np.testing.assert_array_equal(first.saliency_map, kept)


def test_threads_get_what_each_call_gives_alone(explainer: camrt.Explainer) -> None:
    def explain(number: int) -> np.ndarray:
        layers = [None, "top", "stage2"][number % 3]
        return explainer.explain(tensors(2, number), [number % 5, -1], target_layers=layers)[0].saliency_map

    alone = [explain(number) for number in range(9)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(explain, range(9)))
    for mine, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_backends(bundle: Path, explainer: camrt.Explainer, backend: str) -> None:
    (item,) = camrt.Explainer(bundle, threads=1, backend=backend).explain(tensors(1))
    np.testing.assert_allclose(item.saliency_map, explainer.explain(tensors(1))[0].saliency_map, rtol=0, atol=1e-5)


# explain_images


def image_forms(folder: Path) -> Iterator[Any]:
    array = picture()
    image = Image.fromarray(array)
    path = folder / "picture.png"
    image.save(path)
    encoded = path.read_bytes()
    yield from (array, image, path, str(path), encoded, bytearray(encoded), memoryview(encoded))


def test_one_image_in_every_form(explainer: camrt.Explainer, folder: Path) -> None:
    explanations = [explainer.explain_images(form) for form in image_forms(folder)]
    for items in explanations:
        assert len(items) == 1
        assert is_map(items[0].saliency_map, (48, 40))
        np.testing.assert_array_equal(items[0].saliency_map, explanations[0][0].saliency_map)


def test_several_images_of_different_sizes(explainer: camrt.Explainer) -> None:
    sizes = [(48, 40), (32, 100), (77, 41), (20, 20)]
    images = [picture(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    for batch_size in (1, 3, 8):
        items = explainer.explain_images(iter(images), batch_size=batch_size)
        assert [item.saliency_map.shape for item in items] == sizes
        for image, item in zip(images, items, strict=True):
            (alone,) = explainer.explain_images([image])
            assert item.class_index == alone.class_index
            np.testing.assert_allclose(item.saliency_map, alone.saliency_map, rtol=0, atol=1e-5)


def test_a_class_an_image(explainer: camrt.Explainer) -> None:
    images = [picture(seed=seed) for seed in range(3)]
    items = explainer.explain_images(images, [4, "bee", -1], batch_size=2)
    assert [item.class_index for item in items[:2]] == [4, 1]
    assert [item.class_index for item in explainer.explain_images(images[0], [4, "bee", 0])] == [4, 1, 0]


def test_top_k(explainer: camrt.Explainer) -> None:
    items = explainer.explain_images([picture(seed=1), picture(60, 33, seed=2)], top_k=3)
    assert [item.saliency_map.shape for item in items] == [(48, 40)] * 3 + [(60, 33)] * 3
    for three in (items[:3], items[3:]):
        assert len({item.class_index for item in three}) == 3
        probabilities = [item.probability for item in three]
        assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize(("size", "expected"), [("original", (48, 70)), ("input", (SIDE, SIDE)), ((9, 11), (9, 11))])
def test_sizes_of_image_maps(explainer: camrt.Explainer, size: Any, expected: tuple[int, int]) -> None:
    (item,) = explainer.explain_images(picture(48, 70), output_size=size)
    assert is_map(item.saliency_map, expected)


def test_what_the_crop_leaves_out_is_zero(explainer: camrt.Explainer) -> None:
    """40 of the shorter side remain 32: of 80 x 120 pixels the model saw rows 8 to 72 and columns 28 to 92."""
    (item,) = explainer.explain_images(picture(80, 120), fusion="mean")
    seen = np.zeros((80, 120), bool)
    seen[8:72, 28:92] = True
    assert not item.saliency_map[~seen].any()
    assert (item.saliency_map[seen] > 0).mean() > 0.5


def test_the_map_in_original_pixels_is_the_input_map_moved_back(bundle: Path) -> None:
    explainer = camrt.Explainer(bundle, threads=1, preprocess=Preprocessing((SIDE, SIDE)))
    image = picture(SIDE, SIDE)
    (original,) = explainer.explain_images(image)
    (own,) = explainer.explain_images(image, output_size="input")
    np.testing.assert_allclose(original.saliency_map, own.saliency_map, rtol=0, atol=1e-5)


def test_preprocessing_is_what_explain_gets(explainer: camrt.Explainer, bundle: Path) -> None:
    preprocessing = Preprocessing((SIDE, SIDE), "crop", 40)
    tensor, _ = preprocessing.apply(picture())
    (direct,) = explainer.explain(tensor[None])
    (item,) = explainer.explain_images(picture(), output_size="input")
    np.testing.assert_allclose(item.saliency_map, direct.saliency_map, rtol=0, atol=1e-6)
    (other,) = camrt.Explainer(bundle, threads=1, preprocess="symmetric").explain_images(picture(), output_size="input")
    assert other.logit != item.logit


def test_no_images_give_no_explanations(explainer: camrt.Explainer) -> None:
    assert explainer.explain_images([]) == []


def test_the_embedded_bundle_explains_its_sample() -> None:
    explainer = camrt.Explainer(threads=1)
    assert embedded_bundle_path().is_file()
    (item,) = explainer.explain_images(sample_image_path())
    assert item.class_name in (explainer.manifest.class_names or ())
    assert item.probability > 0.5
    with Image.open(sample_image_path()) as image:
        assert item.saliency_map.shape == (image.height, image.width)
    assert item.degenerate == ()


# Refusals

Call = Callable[[camrt.Explainer], list[Explanation]]

REFUSED: list[tuple[str, type[CamrtError], Call]] = [
    ("method", MethodNotFoundError, lambda e: e.explain(tensors(), method="guess")),
    ("base", MethodNotFoundError, lambda e: e.explain(tensors(), base_method="guess")),
    ("base-refinecam", MethodNotFoundError, lambda e: e.explain(tensors(), base_method="refinecam")),
    ("fusion", MethodNotFoundError, lambda e: e.explain(tensors(), fusion="guess")),
    ("order", MethodNotFoundError, lambda e: e.explain(tensors(), order="guess")),
    ("layer", LayerNotFoundError, lambda e: e.explain(tensors(), target_layers="stage9")),
    ("layers", LayerNotFoundError, lambda e: e.explain(tensors(), target_layers=["stage1", "stage9"])),
    ("layers-number", InvalidInputError, lambda e: e.explain(tensors(), target_layers=3)),
    ("layers-numbers", LayerNotFoundError, lambda e: e.explain(tensors(), target_layers=[3])),
    ("choice-and-layer", LayerNotFoundError, lambda e: e.explain(tensors(), target_layers=["all", "stage1"])),
    ("no-layers", InvalidInputError, lambda e: e.explain(tensors(), target_layers=[])),
    ("two-layers", InvalidInputError, lambda e: e.explain(tensors(), method="gradcam", target_layers="top")),
    ("class", ClassIndexError, lambda e: e.explain(tensors(), 5)),
    ("rank", ClassIndexError, lambda e: e.explain(tensors(), -6)),
    ("class-name", ClassIndexError, lambda e: e.explain(tensors(), "zebra")),
    ("classes", ClassIndexError, lambda e: e.explain(tensors(), [0, 1, 2])),
    ("no-classes", ClassIndexError, lambda e: e.explain(tensors(), [])),
    ("class-float", ClassIndexError, lambda e: e.explain(tensors(), 1.5)),
    ("class-floats", ClassIndexError, lambda e: e.explain(tensors(), [1.5, 0])),
    ("class-float-array", ClassIndexError, lambda e: e.explain(tensors(), np.array([1.0, 0.0]))),
    ("class-matrix", ClassIndexError, lambda e: e.explain(tensors(), np.array([[1], [0]]))),
    ("class-scalar-array", ClassIndexError, lambda e: e.explain(tensors(), np.array(2.5))),
    ("class-huge", ClassIndexError, lambda e: e.explain(tensors(), 2**70)),
    ("class-none", ClassIndexError, lambda e: e.explain(tensors(), [None, 0])),
    ("nan", InvalidInputError, lambda e: e.explain(np.full((1, 3, SIDE, SIDE), np.nan, np.float32))),
    ("inf", InvalidInputError, lambda e: e.explain(np.full((1, 3, SIDE, SIDE), np.inf, np.float32))),
    ("shape", InvalidInputError, lambda e: e.explain(np.zeros((1, 3, SIDE, 31), np.float32))),
    ("channels", InvalidInputError, lambda e: e.explain(np.zeros((1, 1, SIDE, SIDE), np.float32))),
    ("no-batch", InvalidInputError, lambda e: e.explain(np.zeros((3, SIDE, SIDE), np.float32))),
    ("vector", InvalidInputError, lambda e: e.explain(np.zeros(7, np.float32))),
    ("scalar", InvalidInputError, lambda e: e.explain(np.float32(1))),
    ("empty", InvalidInputError, lambda e: e.explain(np.zeros((0, 3, SIDE, SIDE), np.float32))),
    ("float64", InvalidInputError, lambda e: e.explain(np.zeros((1, 3, SIDE, SIDE)))),
    ("uint8", InvalidInputError, lambda e: e.explain(np.zeros((1, 3, SIDE, SIDE), np.uint8))),
    ("list", InvalidInputError, lambda e: e.explain([[0.0]])),
    ("predict-nan", InvalidInputError, lambda e: e.predict(np.full((1, 3, SIDE, SIDE), np.nan, np.float32))),
    ("size-zero", InvalidInputError, lambda e: e.explain(tensors(), output_size=(0, 5))),
    ("size-negative", InvalidInputError, lambda e: e.explain(tensors(), output_size=(-4, 5))),
    ("size-one", InvalidInputError, lambda e: e.explain(tensors(), output_size=(5,))),
    ("size-float", InvalidInputError, lambda e: e.explain(tensors(), output_size=(5.0, 5.0))),
    ("size-text", InvalidInputError, lambda e: e.explain(tensors(), output_size="original")),
    ("size-array", InvalidInputError, lambda e: e.explain(tensors(), output_size=np.array([5, 5]))),
    ("image-size-array", InvalidInputError, lambda e: e.explain_images(picture(), output_size=np.array([5, 5]))),
    ("size-huge", InvalidInputError, lambda e: e.explain(tensors(), output_size=(10**6, 10**6))),
    ("image-size-text", InvalidInputError, lambda e: e.explain_images(picture(), output_size="Original")),
    ("image-size-zero", InvalidInputError, lambda e: e.explain_images(picture(), output_size=(0, 0))),
    ("batch-zero", InvalidInputError, lambda e: e.explain_images([picture()] * 3, batch_size=0)),
    ("batch-negative", InvalidInputError, lambda e: e.explain_images([picture()] * 3, batch_size=-1)),
    ("batch-float", InvalidInputError, lambda e: e.explain_images([picture()] * 3, batch_size=1.5)),
    ("top-text", InvalidInputError, lambda e: e.explain_images(picture(), top_k="2")),
    ("top-float", InvalidInputError, lambda e: e.explain_images(picture(), top_k=2.5)),
    ("channels-float", InvalidInputError, lambda e: e.explain(tensors(), perturbation=Perturbation(2.5))),
    ("top-zero", ClassIndexError, lambda e: e.explain_images(picture(), top_k=0)),
    ("top-many", ClassIndexError, lambda e: e.explain_images(picture(), top_k=6)),
    ("top-and-classes", ClassIndexError, lambda e: e.explain_images(picture(), [1], top_k=2)),
    ("image-classes", ClassIndexError, lambda e: e.explain_images([picture()] * 3, [0, 1])),
    ("more-classes", ClassIndexError, lambda e: e.explain_images([picture()] * 3, [0, 1, 2, 3], batch_size=2)),
    ("image-text", ImageError, lambda e: e.explain_images(b"no image")),
    ("image-missing", ImageError, lambda e: e.explain_images("missing.png")),
    ("image-none", ImageError, lambda e: e.explain_images(None)),
    ("image-number", ImageError, lambda e: e.explain_images(7)),
    ("image-numbers", ImageError, lambda e: e.explain_images([7])),
    ("image-bytearray", ImageError, lambda e: e.explain_images(bytearray(b"no image"))),
    ("image-memoryview", ImageError, lambda e: e.explain_images(memoryview(b"no image"))),
    ("no-image-classes", ClassIndexError, lambda e: e.explain_images(picture(), [])),
    ("image-floats", ImageError, lambda e: e.explain_images(np.zeros((8, 8, 3)))),
    ("image-batch", ImageError, lambda e: e.explain_images(np.zeros((2, 8, 8, 3), np.uint8))),
    ("image-pixel", ImageError, lambda e: e.explain_images(np.zeros((1, 1, 3), np.uint8))),
    ("second-image", ImageError, lambda e: e.explain_images([picture(), b"no image"])),
]


@pytest.mark.parametrize(("error", "call"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_wrong_arguments_are_refused(explainer: camrt.Explainer, error: type[CamrtError], call: Call) -> None:
    with pytest.raises(error) as caught:
        call(explainer)
    assert caught.value.next_step


def test_wrong_names_are_found_before_anything_runs(
    explainer: camrt.Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the session ran")

    monkeypatch.setattr(type(explainer._session), "run", fail)
    for name, error, call in REFUSED[:9]:
        with pytest.raises(error):
            call(explainer)
        assert name


def test_the_place_of_a_value_that_is_not_finite_is_told(explainer: camrt.Explainer) -> None:
    inputs = tensors()
    inputs[1, 2, 3, 4] = np.nan
    with pytest.raises(InvalidInputError, match=r"nan at \[1, 2, 3, 4\]"):
        explainer.explain(inputs)


def test_a_method_of_one_layer_says_how_to_refine_it(explainer: camrt.Explainer) -> None:
    with pytest.raises(InvalidInputError, match="base_method='xgradcam'"):
        explainer.explain(tensors(), method="xgradcam", target_layers="all")


def test_images_need_preprocessing(bare: camrt.Explainer) -> None:
    with pytest.raises(InvalidInputError, match="preprocess="):
        bare.explain_images(picture())


def test_class_names_need_names(bare: camrt.Explainer) -> None:
    with pytest.raises(ClassIndexError, match="no class names"):
        bare.explain(np.zeros((1, 3, 16, 16), np.float32), "cat")


def test_preprocessing_that_does_not_fit_is_refused_when_the_bundle_is_opened(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"images of \(16, 16\).*takes \(32, 32\).*size=\(32, 32\)"):
        camrt.Explainer(bundle, threads=1, preprocess=Preprocessing((16, 16)))
    w = GraphWriter()
    w.classify(w.add("Relu", "r1", w.conv("c1", "image", (1, 4), 3, 2)), 4)
    grey = camrt.export(w.save(tmp_path / "grey.onnx", ("N", 1, 16, 16)), tmp_path / "grey.bundle.onnx", ["r1"]).path
    for preprocess in ("unit", Preprocessing((16, 16))):
        with pytest.raises(InvalidInputError, match="1 channels"):
            camrt.Explainer(grey, threads=1, preprocess=preprocess)


def test_an_empty_list_of_classes_says_what_to_do(explainer: camrt.Explainer) -> None:
    for call in (lambda: explainer.explain(tensors(), []), lambda: explainer.explain_images(picture(), np.array([]))):
        with pytest.raises(ClassIndexError, match=r"class_indices is empty\. Name a class, or leave it out"):
            call()
    assert explainer.explain_images([], []) == []


@pytest.mark.parametrize("choice", ["all", "top", "above"])
def test_a_choice_of_layers_may_stand_in_a_list(explainer: camrt.Explainer, choice: str) -> None:
    (alone,) = explainer.explain(tensors(1), target_layers=choice)
    (listed,) = explainer.explain(tensors(1), target_layers=[choice])
    assert list(listed.layer_maps) == list(alone.layer_maps)
    np.testing.assert_array_equal(listed.saliency_map, alone.saliency_map)


def test_counts_may_be_any_integers(explainer: camrt.Explainer) -> None:
    items = explainer.explain_images([picture(), picture(seed=1)], top_k=np.int64(2), batch_size=np.uint8(1))
    assert len(items) == 4


def test_unknown_engines_are_refused(bundle: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="Unknown kernel backend"):
        camrt.Explainer(bundle, backend="abacus")
    with pytest.raises(BackendUnavailableError, match="Unknown provider"):
        camrt.Explainer(bundle, provider="abacus")
    with pytest.raises(InvalidInputError, match="preset"):
        camrt.Explainer(bundle, preprocess="no-such-preset")


def test_an_overlay_can_be_made_and_everything_saved(explainer: camrt.Explainer, tmp_path: Path) -> None:
    image = picture(30, 44)
    (item,) = explainer.explain_images(image)
    assert item.overlay(image).size == (44, 30)
    item.save(tmp_path / "item.npz")
    loaded = Explanation.load(tmp_path / "item.npz")
    np.testing.assert_array_equal(loaded.saliency_map, item.saliency_map)
    assert loaded.to_dict() == item.to_dict()
    stream = io.BytesIO()
    item.overlay(image).save(stream, "PNG")
    assert stream.tell() > 100
