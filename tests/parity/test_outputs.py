"""The bundle keeps the source model's outputs and about its size."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from camrt.types import AnyArray, FloatArray
from tests.parity.conftest import THREADS, Exported

OUTPUT_TOLERANCE = 1e-6
LARGEST_GROWTH = 1.1


def run_file(path: str, feeds: dict[str, AnyArray], outputs: list[str]) -> list[FloatArray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(outputs, feeds)


def test_original_outputs_are_unchanged(exported: Exported) -> None:
    manifest = exported.bundle.manifest
    feeds = {manifest.input_name: exported.inputs}
    expected = run_file(str(exported.source), feeds, list(manifest.outputs))
    classes = np.asarray(exported.classes("given"), np.int64)
    actual = run_file(str(exported.bundle.path), {**feeds, manifest.class_index_input: classes}, list(manifest.outputs))
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert np.abs(ours - theirs).max() <= OUTPUT_TOLERANCE * np.abs(theirs).max()


def test_prediction_through_the_session_is_unchanged(exported: Exported) -> None:
    manifest = exported.bundle.manifest
    expected = run_file(str(exported.source), {manifest.input_name: exported.inputs}, [manifest.logits])[0]
    actual = exported.session.predict(exported.inputs)
    assert np.abs(actual - expected).max() <= OUTPUT_TOLERANCE * np.abs(expected).max()


def test_bundle_is_no_larger_than_a_tenth_more(exported: Exported) -> None:
    assert exported.bundle.path.stat().st_size <= LARGEST_GROWTH * exported.source.stat().st_size
