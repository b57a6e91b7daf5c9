"""Explainer.evaluate, evaluate_maps, arcc and preprocess_images on small networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import camrt
from camrt.errors import CamrtError, ClassIndexError, ImageError, InvalidInputError, LayerNotFoundError
from camrt.explanation import Explanation
from camrt.kernels import available_backends, get_backend
from camrt.metrics import METRICS, Measurement, measure
from camrt.preprocess import Preprocessing
from tests.exporter.graphs import residual_classifier, small_classifier

SIDE = 32
COUNT = 5
BLIND = [name for name, metric in METRICS.items() if not metric.needs_object_mask]
# What rounding of the model may change: its logits to 1e-6, and what follows from them.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    source = residual_classifier(folder / "source.onnx")
    return camrt.export(source, folder / "bundle.onnx", preprocess=Preprocessing((SIDE, SIDE), "letterbox")).path


@pytest.fixture(scope="module")
def explainer(bundle: Path) -> camrt.Explainer:
    return camrt.Explainer(bundle, threads=1)


def tensors(count: int = COUNT, seed: int = 3) -> np.ndarray:
    """Squares of 4 x 4 pixels, and some noise."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((count, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    return (coarse + 0.2 * random.standard_normal(coarse.shape)).astype(np.float32)


def masks(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(1).random((count, 8, 8)).repeat(4, axis=1).repeat(4, axis=2) < 0.4


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return coarse.repeat(10, axis=0).repeat(10, axis=1)


def assert_same(actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = ROUNDING) -> None:
    assert list(actual) == list(expected)
    for name, scores in expected.items():
        allowed = min(tolerance, 1e-2 * np.abs(scores).max(initial=0))  # infidelity is a tiny number
        np.testing.assert_allclose(actual[name], scores, rtol=0, atol=allowed, err_msg=name)


# A score depends on the image, its map, the class and the seed, and on nothing else


@pytest.fixture(scope="module")
def scores(explainer: camrt.Explainer) -> dict[str, np.ndarray]:
    """Every metric of five images."""
    explanations = explainer.explain(tensors())
    return explainer.evaluate(tensors(), explanations, list(METRICS), masks(), seed=3)


def test_scores_say_something(scores: dict[str, np.ndarray]) -> None:
    assert list(scores) == list(METRICS)
    for name, values in scores.items():
        assert values.shape == (COUNT,)
        assert np.isfinite(values).all()
        if name not in ("increase_in_confidence", "pointing_game"):
            assert np.ptp(values) > 1e-3 * np.abs(values).max() > 0, name


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_whatever_the_batch_size(explainer: camrt.Explainer, scores: dict[str, np.ndarray], batch_size: int) -> None:
    explanations = explainer.explain(tensors())
    actual = explainer.evaluate(tensors(), explanations, list(METRICS), masks(), 3, batch_size=batch_size)
    assert_same(actual, scores)


def test_whatever_else_is_in_the_batch(explainer: camrt.Explainer, scores: dict[str, np.ndarray]) -> None:
    explanations = explainer.explain(tensors())
    for n in range(COUNT):
        own = slice(n, n + 1)
        alone = explainer.evaluate(tensors()[own], explanations[own], list(METRICS), masks()[own], 3)
        assert_same(alone, {name: values[own] for name, values in scores.items()})
    backwards = explainer.evaluate(tensors()[::-1], explanations[::-1], list(METRICS), masks()[::-1], 3)
    assert_same(backwards, {name: values[::-1] for name, values in scores.items()})


def test_whatever_the_threads(bundle: Path, scores: dict[str, np.ndarray]) -> None:
    explainer = camrt.Explainer(bundle, threads=2)
    explanations = explainer.explain(tensors())
    assert_same(explainer.evaluate(tensors(), explanations, list(METRICS), masks(), 3), scores)


@pytest.mark.parametrize("backend", [status.name for status in available_backends() if status.available])
def test_whatever_the_backend(bundle: Path, explainer: camrt.Explainer, backend: str) -> None:
    """The same maps, so that the metrics' own kernels are compared. ARCC's slope over road is 6 at most."""
    inputs = tensors()
    explanations = explainer.explain(inputs)
    maps, classes = (
        np.stack([item.saliency_map for item in explanations]),
        np.array([item.class_index for item in explanations]),
    )

    def explain(images: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.stack([item.saliency_map for item in explainer.explain(images, of)])

    actual, expected = (
        camrt.Explainer(bundle, threads=1, backend=name).evaluate_maps(
            inputs, maps, classes, explain, ["complexity", "coherency", "road", "arcc", "adcc", "average_drop"]
        )
        for name in (backend, "reference")
    )
    assert_same({"arcc": actual.pop("arcc")}, {"arcc": expected.pop("arcc")}, 6 * ROUNDING)
    assert_same(actual, expected)


def test_seeds(explainer: camrt.Explainer, scores: dict[str, np.ndarray]) -> None:
    explanations = explainer.explain(tensors())
    other = explainer.evaluate(tensors(), explanations, list(METRICS), masks(), seed=4)
    random = {name for name in METRICS if not np.array_equal(other[name], scores[name])}
    assert random == {"road", "arcc", "infidelity", "max_sensitivity"}
    assert_same(
        explainer.evaluate_maps(
            tensors(),
            np.stack([item.saliency_map for item in explanations]),
            np.array([item.class_index for item in explanations]),
            lambda images, of: np.stack([item.saliency_map for item in explainer.explain(images, of)]),
            list(METRICS),
            masks(),
            seed=4,
        ),
        other,
    )


# What is measured, and with what


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "gradcam"},
        {"base_method": "layercam", "fusion": "mean"},
        {"order": "resize_once"},
        {"target_layers": "above"},
        {"method": "xgradcam", "target_layers": "stage1"},
    ],
)
def test_maps_are_explained_again_as_they_were_made(explainer: camrt.Explainer, options: dict[str, Any]) -> None:
    inputs, classes = tensors(), np.array([4, 3, 2, 1, 0])
    explanations = explainer.explain(inputs, classes, **options)

    def explain(images: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.stack([item.saliency_map for item in explainer.explain(images, of, **options)])

    maps = np.stack([item.saliency_map for item in explanations])
    names = ["coherency", "max_sensitivity", "arcc"]
    expected = explainer.evaluate_maps(inputs, maps, classes, explain, names)
    assert_same(explainer.evaluate(inputs, explanations, names), expected)
    if options:
        usual = explainer.evaluate_maps(
            inputs,
            maps,
            classes,
            lambda images, of: np.stack([e.saliency_map for e in explainer.explain(images, of)]),
            names,
        )
        assert np.abs(usual["coherency"] - expected["coherency"]).max() > 1e-3


def test_arcc_is_its_formula_on_the_explainers_own_answers(explainer: camrt.Explainer) -> None:
    inputs = tensors(3)
    explanations = explainer.explain(inputs)
    kernels = get_backend("reference")
    noise = 0.01 * np.random.default_rng(9).standard_normal((3, SIDE, SIDE), np.float32)
    expected = []
    for n, item in enumerate(explanations):
        saliency, k = item.saliency_map, item.class_index
        changed = kernels.perturbation_batch(inputs[n : n + 1], saliency[None], noise=noise)[0]
        logits = explainer.predict(changed).astype(np.float64)
        chances = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[:, k]
        road = (chances[4:].mean() - chances[:4].mean()) / 2
        (again,) = explainer.explain((inputs[n] * saliency)[None], k)
        coherency = (np.corrcoef(saliency.ravel(), again.saliency_map.ravel())[0, 1] + 1) / 2
        terms = coherency, 1 - saliency.mean(), min(max(2 * road, 0), 1)
        expected.append(3 / sum(1 / (term + 1e-8) for term in terms))
    assert max(expected) > 0.2
    assert min(expected) < 0.1
    np.testing.assert_allclose(explainer.arcc(inputs, explanations, seed=9), expected, rtol=0, atol=1e-4)


def test_target_logit_follows_the_logit(explainer: camrt.Explainer) -> None:
    inputs = tensors()
    explanations = explainer.explain(inputs, 2)
    maps, classes = np.stack([item.saliency_map for item in explanations]), np.full(COUNT, 2)
    names = [
        name for name in BLIND if METRICS[name].score.__name__ not in ("coherency", "arcc", "adcc", "max_sensitivity")
    ]

    def no_map(images: np.ndarray, of: np.ndarray) -> np.ndarray:
        raise AssertionError("nothing is explained")

    backend = get_backend("native", 1)
    logits = Measurement(inputs, maps, classes, lambda images: explainer.predict(images), no_map, backend)
    actual = explainer.evaluate(inputs, explanations, names, target="logit")
    assert_same(actual, measure(names, logits))
    chances = explainer.evaluate(inputs, explanations, names)
    assert np.abs(chances["road"] - actual["road"]).max() > 1e-2


def test_a_multi_label_model_is_followed_by_its_sigmoid(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx", head="Sigmoid")
    explainer = camrt.Explainer(camrt.export(source, tmp_path / "bundle.onnx").path, threads=1)
    inputs = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    explanations = explainer.explain(inputs, [0, 1, 2, 3, 4])
    drops = explainer.evaluate(inputs, explanations, ["average_drop"])["average_drop"]
    masked = np.stack([inputs[0] * item.saliency_map for item in explanations])
    before, after = (1 / (1 + np.exp(-explainer.predict(images).astype(np.float64))) for images in (inputs, masked))
    expected = np.maximum(0, 1 - np.diag(after) / before[0])
    assert expected.max() > 1e-3
    np.testing.assert_allclose(drops, expected, rtol=0, atol=1e-6)


def test_several_explanations_of_one_image(explainer: camrt.Explainer) -> None:
    inputs, shape = tensors(1), masks(1)
    explanations = explainer.explain(inputs, [0, 1, 2])
    together = explainer.evaluate(inputs, explanations, list(METRICS), shape)
    for n, item in enumerate(explanations):
        alone = explainer.evaluate(inputs, [item], list(METRICS), shape)
        assert_same({name: values[n : n + 1] for name, values in together.items()}, alone)


def test_explanations_of_several_kinds_in_one_call(explainer: camrt.Explainer) -> None:
    inputs, shapes = tensors(4), masks(4)
    kinds: list[dict[str, Any]] = [{}, {"method": "gradcam"}, {}, {"fusion": "mean", "order": "resize_once"}]
    explanations = [explainer.explain(inputs[n : n + 1], n, **kind)[0] for n, kind in enumerate(kinds)]
    together = explainer.evaluate(inputs, explanations, list(METRICS), shapes)
    for n in range(4):
        alone = explainer.evaluate(inputs[n : n + 1], explanations[n : n + 1], list(METRICS), shapes[n : n + 1])
        assert_same({name: values[n : n + 1] for name, values in together.items()}, alone)


def test_maps_of_other_sizes_are_measured_at_input_size(explainer: camrt.Explainer) -> None:
    images = [picture(40, 60), picture(60, 40, 1)]
    inputs = explainer.preprocess_images(images)
    expected = explainer.evaluate(inputs, explainer.explain(inputs, 1), BLIND)
    for size in ("original", "input", (50, 70), (SIDE, SIDE)):
        explanations = explainer.explain_images(images, 1, output_size=size)
        assert_same(explainer.evaluate(inputs, explanations, BLIND), expected)


def test_an_original_image_of_the_size_of_the_input_is_not_taken_for_the_input(tmp_path: Path, bundle: Path) -> None:
    """The original is the middle of what the model sees, so the warped map is another one, of the same shape."""
    explainer = camrt.Explainer(bundle, threads=1, preprocess=Preprocessing((SIDE, SIDE), "crop", 2 * SIDE))
    image = picture(40, 40)[:SIDE, :SIDE]
    (original,) = explainer.explain_images(image, 1)
    (own,) = explainer.explain_images(image, 1, output_size="input")
    assert original.saliency_map.shape == own.saliency_map.shape
    assert np.abs(original.saliency_map - own.saliency_map).max() > 0.1
    assert (original.in_input_pixels, own.in_input_pixels) == (False, True)
    inputs = explainer.preprocess_images(image)
    assert_same(explainer.evaluate(inputs, [original], BLIND), explainer.evaluate(inputs, [own], BLIND))


def test_saved_explanations_can_be_measured(explainer: camrt.Explainer, tmp_path: Path) -> None:
    inputs = tensors(1)
    (item,) = explainer.explain(inputs, 3, order="resize_once")
    item.save(tmp_path / "item.npz")
    loaded = Explanation.load(tmp_path / "item.npz")
    assert (loaded.order, loaded.in_input_pixels) == ("resize_once", True)
    assert_same(explainer.evaluate(inputs, [loaded]), explainer.evaluate(inputs, [item]))


def test_explanations_saved_by_earlier_versions_can_be_measured(explainer: camrt.Explainer, tmp_path: Path) -> None:
    """Their files name neither order nor pixels."""
    inputs = tensors(1)
    (item,) = explainer.explain(inputs, 3)
    item.save(tmp_path / "item.npz")
    with np.load(tmp_path / "item.npz") as file:
        arrays = dict(file)
    summary = json.loads(arrays["summary"].item())
    del summary["order"], summary["in_input_pixels"]
    arrays["summary"] = np.array(json.dumps(summary))
    np.savez(tmp_path / "old.npz", **arrays)
    loaded = Explanation.load(tmp_path / "old.npz")
    assert (loaded.order, loaded.in_input_pixels) == ("normalize_twice", False)
    assert_same(explainer.evaluate(inputs, [loaded]), explainer.evaluate(inputs, [item]))


def test_degenerate_explanations_have_scores(explainer: camrt.Explainer) -> None:
    for value in (0, 1):
        maps = np.full((1, SIDE, SIDE), value, np.float32)

        def explain(images: np.ndarray, of: np.ndarray, value: int = value) -> np.ndarray:
            return np.full((len(images), SIDE, SIDE), value, np.float32)

        measured = explainer.evaluate_maps(tensors(1), maps, np.array([2]), explain, list(METRICS), masks(1))
        assert measured["arcc"] == pytest.approx([0], abs=1e-6)
        undefined = {name for name, scores in measured.items() if np.isnan(scores).any()}
        assert undefined == (set() if value else {"max_sensitivity"})


def test_nothing_to_measure(explainer: camrt.Explainer) -> None:
    assert {
        name: len(scores) for name, scores in explainer.evaluate(tensors(1), [], ["road", "l2"], masks(1)).items()
    } == {
        "road": 0,
        "l2": 0,
    }
    none = np.empty((0, SIDE, SIDE), np.float32)
    assert explainer.evaluate_maps(tensors(1), none, np.empty(0, np.int64), lambda x, k: x)["arcc"].shape == (0,)


# preprocess_images


def test_preprocess_images_is_what_explain_images_explains(explainer: camrt.Explainer, tmp_path: Path) -> None:
    Image.fromarray(picture(30, 90)).save(tmp_path / "one.png")
    images = [tmp_path / "one.png", picture(60, 40)]
    inputs = explainer.preprocess_images(images)
    assert inputs.dtype == np.float32
    assert inputs.shape == (2, 3, SIDE, SIDE)
    direct = explainer.explain(inputs, 0)
    for one, other in zip(direct, explainer.explain_images(images, 0, output_size="input"), strict=True):
        np.testing.assert_allclose(one.saliency_map, other.saliency_map, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(explainer.preprocess_images(images[1]), inputs[1:])
    assert explainer.preprocess_images([]).shape == (0, 3, SIDE, SIDE)


# Refusals

Call = Callable[[camrt.Explainer, list[Explanation]], object]


def foreign(explanations: list[Explanation], **changes: Any) -> list[Explanation]:
    fields = {name: getattr(explanations[0], name) for name in Explanation.__dataclass_fields__}
    return [Explanation(**{**fields, **changes}), *explanations[1:]]


REFUSED: list[tuple[str, type[CamrtError], Call]] = [
    ("metric", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, ["guess"])),
    ("metric-text", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, "arcc")),
    ("no-metric", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, [])),
    ("no-masks", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, ["l2"])),
    ("mask-size", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, ["l2"], np.zeros((2, 30, SIDE), bool))),
    ("mask-count", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, ["l2"], masks(3))),
    ("mask-dtype", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, ["l2"], masks(2).astype(np.uint8))),
    ("mask-list", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, ["l2"], masks(2).tolist())),
    ("target", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, target="chance")),
    ("seed", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, seed=-1)),
    ("batch", InvalidInputError, lambda e, x: e.evaluate(tensors(2), x, batch_size=0)),
    ("count", InvalidInputError, lambda e, x: e.evaluate(tensors(3), x)),
    ("size", InvalidInputError, lambda e, x: e.evaluate(np.zeros((2, 3, 30, 30), np.float32), x)),
    ("nan", InvalidInputError, lambda e, x: e.evaluate(np.full((2, 3, SIDE, SIDE), np.nan, np.float32), x)),
    ("double", InvalidInputError, lambda e, x: e.evaluate(np.zeros((2, 3, SIDE, SIDE)), x)),
    ("not-explanations", InvalidInputError, lambda e, x: e.evaluate(tensors(2), [x[0], x[1].saliency_map])),
    ("class", ClassIndexError, lambda e, x: e.evaluate(tensors(2), foreign(x, class_index=5))),
    ("layer", LayerNotFoundError, lambda e, x: e.evaluate(tensors(2), foreign(x, layer_maps={"other": masks(1)[0]}))),
    (
        "layer-size",
        InvalidInputError,
        lambda e, x: e.evaluate(tensors(2), foreign(x, layer_maps={"stage1": np.zeros((3, 3), np.float32)})),
    ),
    ("no-layers", InvalidInputError, lambda e, x: e.evaluate(tensors(2), foreign(x, layer_maps={}))),
    ("method", InvalidInputError, lambda e, x: e.evaluate(tensors(2), foreign(x, method="guess"))),
    ("order", InvalidInputError, lambda e, x: e.evaluate(tensors(2), foreign(x, order="guess"))),
    ("maps", InvalidInputError, lambda e, x: e.evaluate_maps(tensors(2), None, np.zeros(2, np.int64), e.explain)),
    (
        "maps-size",
        InvalidInputError,
        lambda e, x: e.evaluate_maps(tensors(2), np.zeros((2, 8, 8), np.float32), np.zeros(2, np.int64), e.explain),
    ),
    (
        "maps-classes",
        ClassIndexError,
        lambda e, x: e.evaluate_maps(tensors(2), np.zeros((2, SIDE, SIDE), np.float32), np.full(2, -1), e.explain),
    ),
    (
        "maps-class",
        ClassIndexError,
        lambda e, x: e.evaluate_maps(
            tensors(2), np.zeros((2, SIDE, SIDE), np.float32), np.full(2, 5), e.explain, ["average_drop"]
        ),
    ),
    ("image", ImageError, lambda e, x: e.preprocess_images([picture(), b"no image"])),
]


@pytest.mark.parametrize(("error", "call"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_wrong_arguments_are_refused(explainer: camrt.Explainer, error: type[CamrtError], call: Call) -> None:
    explanations = explainer.explain(tensors(2), [0, 1])
    with pytest.raises(error) as caught:
        call(explainer, explanations)
    assert caught.value.next_step


def test_images_need_preprocessing(tmp_path: Path) -> None:
    bare = camrt.Explainer(
        camrt.export(small_classifier(tmp_path / "source.onnx"), tmp_path / "bundle.onnx").path, threads=1
    )
    with pytest.raises(InvalidInputError, match="preprocess="):
        bare.preprocess_images(picture())
