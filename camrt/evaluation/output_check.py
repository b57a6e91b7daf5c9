"""Are the source model's outputs unchanged in its bundle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from camrt.bundle import Bundle, Manifest
from camrt.evaluation.check_row import CheckRow, difference
from camrt.runtime import Optimization, open_model
from camrt.types import AnyArray, FloatArray

OUTPUT_TOLERANCE = 1e-6
FUSION_TOLERANCE = 1e-5
"""What the engine's own fusions may make of equal arithmetic; what differs by more is not looked at any further."""

_FEWER_FUSIONS: tuple[Optimization, ...] = ("extended", "basic")
_NAME = "original outputs"


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How far a bundle's outputs are from its source model's: max |difference| / max |value| over images and outputs.

    Attributes:
        value: at ``level``.
        level: the first of ONNX Runtime's levels of graph optimization, from its default down, at which the outputs
            are within OUTPUT_TOLERANCE; the default, "all", where there is none.
        by_default: at the default level.
    """

    value: float
    level: Optimization
    by_default: float

    @property
    def passed(self) -> bool:
        """The outputs are the same at ``level``."""
        return self.value <= OUTPUT_TOLERANCE


def output_difference(
    source: str | os.PathLike[str],
    bundle: Bundle,
    inputs: FloatArray,
    threads: int = 0,
    by_default: float | None = None,
) -> OutputDifference:
    """Compares bundle and source model, image by image, on the CPU provider.

    What ONNX Runtime fuses depends on what it knows: shapes that are constants in a bundle are computed in its source.
    Fused or not, float32 rounds otherwise. Where outputs differ by no more than FUSION_TOLERANCE, both are therefore
    run again with fewer fusions, where the arithmetic is the same.

    Args:
        source: the source model.
        bundle: its bundle, in float32.
        inputs: (N, C, H, W).
        threads: inside an operator; 0 = one a core.
        by_default: what they differ by at the default level, where it is known.
    """
    if by_default is None:
        by_default = _difference(source, bundle, inputs, threads, "all")
    if OUTPUT_TOLERANCE < by_default <= FUSION_TOLERANCE:
        for level in _FEWER_FUSIONS:
            value = _difference(source, bundle, inputs, threads, level)
            if value <= OUTPUT_TOLERANCE:
                return OutputDifference(value, level, by_default)
    return OutputDifference(by_default, "all", by_default)


def check_outputs(bundle: Bundle, against: str | os.PathLike[str] | None, inputs: FloatArray) -> CheckRow:
    """Every original output against the source model's."""
    manifest = bundle.manifest
    if manifest.precision != "fp32":
        return CheckRow(_NAME, None, f"{manifest.precision}: give the fp32 bundle with --against")
    if against is None:
        return CheckRow(_NAME, None, "no source model given: add --against MODEL")
    missing = [output for output in manifest.outputs if output not in open_model(against).output_names]
    if missing:
        return CheckRow(_NAME, False, f"{against} has no output {', '.join(missing)}: it is another model")
    found = output_difference(against, bundle, inputs)
    details = [f"{len(inputs)} images"]
    if found.level != "all":
        details.append(
            f"the same at graph optimization level {found.level}; at the default level {found.by_default:.1e}, "
            "by the engine's fusions"
        )
    from camrt.exporter.source_files import source_sha256  # imports ONNX

    if source_sha256(Path(against)) != manifest.source_sha256:
        details.append("the source file is not the one that was exported")
    return CheckRow(_NAME, found.passed, "; ".join(details), found.value, OUTPUT_TOLERANCE)


def feeds(manifest: Manifest, image: FloatArray) -> dict[str, AnyArray]:
    """One image (C, H, W) as the graph takes it."""
    tensor = image[None] if manifest.input_layout == "NCHW" else image[None].transpose(0, 2, 3, 1)
    return {manifest.input_name: np.ascontiguousarray(tensor)}


def _difference(
    source: str | os.PathLike[str], bundle: Bundle, inputs: FloatArray, threads: int, level: Optimization
) -> float:
    manifest = bundle.manifest
    original, rewritten = open_model(source, threads, level), open_model(bundle.path, threads, level)
    chosen = {manifest.class_index_input: np.array([-1], np.int64)}
    worst = 0.0
    for image in inputs:
        given = feeds(manifest, image)
        expected, actual = original.run(given), rewritten.run({**given, **chosen})
        worst = max(worst, *(difference(actual[output], expected[output]) for output in manifest.outputs))
    return worst
