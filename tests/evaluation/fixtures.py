"""Fabricated scores and a network that measures in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import camrt
from camrt.evaluation import EvaluationConfig, EvaluationSession
from camrt.evaluation.explainers import ExplainerSpec
from camrt.evaluation.scores import Scores
from camrt.preprocess import Preprocessing
from tests.small_network import HEIGHT, WIDTH, write_small_network

NAMES = ["disc", "square", "triangle", "disc outline"]
LAYERS = ("stage3", "stage2", "stage1")


def write_small_bundle(folder: Path, name: str = "small.onnx", seed: int = 0) -> Path:
    model = write_small_network(folder / f"source-{name}", seed)
    preprocessing = Preprocessing((HEIGHT, WIDTH))
    return camrt.export(model, folder / name, list(LAYERS), preprocess=preprocessing, class_names=NAMES).path


def open_session(bundle: Path, out: Path, **fields: Any) -> EvaluationSession:
    if "data" not in fields:
        fields = {"synthetic": True, **fields}
    return EvaluationSession.open(
        EvaluationConfig.from_mapping({"bundle": str(bundle), "out": str(out), "threads": 1, "resamples": 50, **fields})
    )


def plain(method: str, layer: str = "stage3") -> ExplainerSpec:
    return ExplainerSpec(method, None, None, (layer,), layer)


def refined(base: str = "gradcam++", fusion: str = "product", layers: tuple[str, ...] = LAYERS) -> ExplainerSpec:
    return ExplainerSpec("refinecam", base, fusion, layers, "all")


def baseline(name: str = "random") -> ExplainerSpec:
    return ExplainerSpec(name, None, None, (), "", is_baseline=True)


def make_scores(
    values: np.ndarray, metrics: tuple[str, ...], explainers: tuple[ExplainerSpec, ...], groups: tuple[str, ...] = ()
) -> Scores:
    count = len(values)
    return Scores(
        items=tuple(f"item {row}" for row in range(count)),
        groups=groups or ("",) * count,
        explainers=explainers,
        metrics=metrics,
        values=np.asarray(values, np.float64),
        degenerate=np.zeros(values.shape[:2], np.bool_),
        class_index=np.zeros(count, np.int64),
        predicted=np.zeros(count, np.int64),
        probability=np.full(count, 0.5),
        correct=np.full(count, np.nan),
    )
