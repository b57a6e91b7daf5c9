"""The check of a bundle that computes NaN or infinity somewhere, and what it keeps of its runs."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import camrt
from camrt.errors import InvalidInputError
from camrt.evaluation import CheckReport, CheckRow, bundle_check, check_bundle
from camrt.evaluation.batch_check import check_batches
from camrt.evaluation.finite_differences import check_gradients
from camrt.preprocess import random_inputs
from camrt.runtime import Session, open_session
from camrt.types import AnyArray, SessionOutputs
from tests.small_network import write_small_network

LAYERS = ["stage2", "stage3"]
SHAPE = (1, 16, 16, 20)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_small_network(tmp_path_factory.mktemp("models") / "small.onnx")
    return camrt.export(source, source.with_name("bundle.onnx"), LAYERS, second_order=True).path


def plus(bundle: Path, path: Path, output: str, operand: AnyArray) -> Path:
    """The bundle with an array added to one of its outputs."""
    proto = onnx.load(bundle)
    graph = proto.graph
    for node in graph.node:
        node.output[:] = [f"{output}/right" if name == output else name for name in node.output]
        node.input[:] = [f"{output}/right" if name == output else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(operand.astype(np.float32), f"{output}/added"))
    graph.node.append(helper.make_node("Add", [f"{output}/right", f"{output}/added"], [output]))
    onnx.save(proto, path)
    return path


def row(report: CheckReport, name: str) -> CheckRow:
    return next(row for row in report.rows if row.name == name)


def somewhere(value: float) -> AnyArray:
    """Zeros, and one other number."""
    array = np.zeros(SHAPE)
    array[0, 3, 5, 7] = value
    return array


def inputs_of(session: Session, count: int) -> AnyArray:
    manifest = session.manifest
    return random_inputs(manifest.input_shape, manifest.preprocessing, count, np.random.default_rng(0))


@pytest.mark.parametrize("added", [np.full(1, NAN), somewhere(NAN), somewhere(INF)], ids=["all_nan", "nan", "inf"])
def test_gradients_that_are_not_finite_fail(added: AnyArray, bundle: Path, tmp_path: Path) -> None:
    report = check_bundle(plus(bundle, tmp_path / "b.onnx", "gradients/stage2", added), samples=3)
    assert not report.passed
    finite = row(report, "activations and gradients finite")
    assert (finite.passed, finite.detail) == (False, "3 images, not at stage2")
    for name in ("gradients of stage2", "gradients of stage2 differ", "several images in one run"):
        assert row(report, name).passed is False, name
        assert "not finite" in row(report, name).detail
    assert row(report, "gradients of stage3").passed is True
    assert row(report, "gradients of stage3 differ").passed is True


def test_finite_activations_and_gradients_are_a_row_of_their_own(bundle: Path) -> None:
    report = check_bundle(bundle, samples=3)
    finite = row(report, "activations and gradients finite")
    assert (finite.passed, finite.detail) == (True, "3 images, 2 layers")
    assert [row.name for row in report.rows].index(finite.name) == 3


@pytest.mark.parametrize("output", ["hessian_vectors/stage2", "target_gradients/stage2"])
def test_second_derivatives_that_are_not_finite_fail(output: str, bundle: Path, tmp_path: Path) -> None:
    report = check_bundle(plus(bundle, tmp_path / "b.onnx", output, somewhere(NAN)), samples=2)
    name = "Hessian products of stage2" if "hessian" in output else "target gradients of stage2"
    assert [one.name for one in report.rows if one.passed is False] == [name]
    assert "not finite" in row(report, name).detail


def test_logits_that_are_not_finite_are_a_report_and_no_error(bundle: Path, tmp_path: Path) -> None:
    logits = camrt.Bundle.open(bundle).manifest.logits
    report = check_bundle(plus(bundle, tmp_path / "b.onnx", logits, np.full(1, NAN)), samples=2)
    assert row(report, "logits finite").passed is False
    assert row(report, "saliency map differs").passed is False
    assert "not finite" in row(report, "saliency map differs").detail


def test_one_good_image_does_not_excuse_another(bundle: Path) -> None:
    session = open_session(bundle, threads=1)
    classes = np.zeros(1, np.int64)
    good, other = (session.run(image[None], classes, ["stage2"]).layers[0] for image in inputs_of(session, 2))
    bad = replace(other, gradients=np.full_like(other.gradients, NAN))

    def verdict(*outputs: Any) -> bool | None:
        return check_gradients(session, "row", outputs, lambda logits: logits[:, 0], np.random.default_rng(0)).passed

    assert verdict(good, other) is True
    assert verdict(good, bad) is False
    assert verdict(bad, good) is False
    assert verdict(good, replace(other, activations=np.full_like(other.activations, INF))) is False


@pytest.mark.parametrize("exact", [True, False])
def test_nan_in_a_batch_is_no_kink(exact: bool, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are off by a rounding, as next to a kink, and gradients of NaN in the batch only."""
    session = open_session(bundle, threads=1)
    right = session.run

    def run(inputs: AnyArray, chosen: AnyArray, layers: Sequence[str], derivatives: int = 1) -> SessionOutputs:
        found = right(inputs, chosen, layers, derivatives)
        if len(inputs) == 1:
            return found
        broken = [replace(one, gradients=np.full_like(one.gradients, NAN)) for one in found.layers]
        return replace(found, logits=found.logits * np.float32(1 + 2e-6), layers=tuple(broken))

    monkeypatch.setattr(session, "run", run)
    rows = check_batches(session, inputs_of(session, 3), np.array([0, 1, 2]), exact)
    assert rows[1].passed is False
    assert "not finite" in rows[1].detail


RAMP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
FLAT = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    ("maps", "verdict"),
    [
        ([RAMP, 1 - RAMP], True),
        ([RAMP, RAMP, RAMP], False),
        ([RAMP, 1 - RAMP, RAMP * NAN, RAMP * NAN, RAMP * NAN], False),
        ([RAMP * NAN, 1 - RAMP, RAMP], False),
        ([FLAT, FLAT, FLAT], False),
        ([RAMP, FLAT, FLAT, FLAT], False),
        ([FLAT, RAMP, 1 - RAMP, RAMP], True),
        ([FLAT, RAMP, RAMP, RAMP], False),
        ([FLAT, RAMP], None),
    ],
)
def test_maps(maps: list[AnyArray], verdict: bool | None) -> None:
    found = bundle_check._check_maps("map", maps)
    assert found.passed is verdict
    assert ("not finite" in found.detail) == any(np.isnan(one).any() for one in maps)


def test_a_report_with_infinity_is_strict_json() -> None:
    rows = (CheckRow("one", False, "", INF, 1e-6), CheckRow("two", False, "", NAN), CheckRow("three", True, "", 0.5))
    document = CheckReport(Path("b.onnx"), rows).to_dict()
    json.dumps(document, allow_nan=False)
    assert [one["value"] for one in document["rows"]] == [None, None, 0.5]
    assert document["rows"][0]["tolerance"] == 1e-6


def test_memory_does_not_grow_with_samples(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of earlier runs that are alive at each run, but for the first images that are looked at again."""
    opened: list[weakref.ref[Any]] = []
    alive: list[int] = []
    open_right: Callable[..., Session] = bundle_check.open_session

    def open_counting(*arguments: Any, **options: Any) -> Session:
        session = open_right(*arguments, **options)
        right = session.run

        def run(*given: Any, **named: Any) -> SessionOutputs:
            alive.append(sum(reference() is not None for reference in opened))
            found = right(*given, **named)
            opened.extend(weakref.ref(layer.gradients) for layer in found.layers)
            return found

        monkeypatch.setattr(session, "run", run)
        return session

    monkeypatch.setattr(bundle_check, "open_session", open_counting)
    check_bundle(bundle, samples=20)
    assert len(alive) > 20
    assert max(alive) <= 6 * len(LAYERS)


def test_a_negative_seed_is_a_typed_error(bundle: Path) -> None:
    with pytest.raises(InvalidInputError, match="seed is -1"):
        check_bundle(bundle, seed=-1)
