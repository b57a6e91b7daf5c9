"""FinerCAM (arXiv 2501.11309): what tells a class from the classes that the model takes for nearly as likely.

The explained value is y_k - gamma * mean(y_n), n the three classes (fewer where the model has fewer) whose logits are
nearest to y_k, gamma = 1. A gradient is linear in its cotangent, so G = G_k - gamma * mean(G_n): the gradients of the
classes concerned, in one run of each image. Which classes are nearest is known from a prediction before it, or, for the
predicted class alone, from their ranks: then there is one run and no prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.bundle import MAX_RANK, Manifest
from camrt.cam.method import MapRequest
from camrt.cam.ranks import resolve_ranks
from camrt.errors import ClassIndexError, MethodUnavailableError
from camrt.runtime.session import Session
from camrt.types import FloatArray, IntArray, LayerOutputs, SessionOutputs

GAMMA = 1.0
NEAREST = 3
_CLASSES_A_RUN = 16


def require_two_classes(manifest: Manifest, _layers: Sequence[str]) -> None:
    """Refuses a model of a single class."""
    if manifest.num_classes < 2:
        raise MethodUnavailableError(
            "finercam compares a class with others; the model has only one.", "Choose gradcam, say."
        )


def collect_finer(session: Session, request: MapRequest) -> SessionOutputs:
    """Gradients of y_k - gamma * mean(y_n), image by image."""
    if not len(request.class_indices):
        raise ClassIndexError("There is no class to explain.", "Give at least one.")
    for item in request.class_indices:
        session.manifest.class_index(int(item))
    found = [
        _finer(session, request.inputs[n : n + 1], request.class_indices[rows], request.layers)
        for n, rows in enumerate(request.rows_of_images())
    ]
    layers = tuple(
        LayerOutputs(
            name,
            np.concatenate([outputs.layers[index].activations for outputs in found]),
            np.concatenate([outputs.layers[index].gradients for outputs in found]),
        )
        for index, name in enumerate(request.layers)
    )
    logits, chosen = (
        np.concatenate(arrays) for arrays in zip(*((o.logits, o.class_indices) for o in found), strict=True)
    )
    return SessionOutputs(logits, chosen, layers)


def _finer(session: Session, image: FloatArray, classes: IntArray, layers: tuple[str, ...]) -> SessionOutputs:
    """One image (1, C, H, W) and its classes."""
    count = min(NEAREST, session.manifest.num_classes - 1)
    if classes.tolist() == [-1] and count < MAX_RANK:
        asked = -np.arange(1, count + 2, dtype=np.int64)
        groups = [np.arange(count + 1)]
    else:
        predicted = session.predict(image)
        logits, chosen = predicted[0], resolve_ranks(predicted, classes[None])[0]
        near = np.stack([np.r_[k, _nearest(logits, k, count)] for k in chosen])
        asked, positions = np.unique(near, return_inverse=True)
        groups = list(positions.reshape(near.shape))
    runs = [
        session.run(image, asked[start : start + _CLASSES_A_RUN], layers)
        for start in range(0, len(asked), _CLASSES_A_RUN)
    ]
    of_runs = np.concatenate([run.class_indices for run in runs])
    return SessionOutputs(
        runs[0].logits,
        of_runs[[group[0] for group in groups]],
        tuple(_difference([run.layers[index] for run in runs], groups) for index in range(len(layers))),
    )


def _difference(parts: Sequence[LayerOutputs], groups: Sequence[IntArray]) -> LayerOutputs:
    """The layer with G_k - gamma * mean(G_n) for each group of rows (k, n, n, ...)."""
    gradients = np.concatenate([part.gradients for part in parts])
    differences = [
        gradients[group[0]] - np.float32(GAMMA) * gradients[group[1:]].mean(axis=0, dtype=np.float32)
        for group in groups
    ]
    return LayerOutputs(parts[0].name, parts[0].activations, np.stack(differences))


def _nearest(logits: FloatArray, k: int, count: int) -> IntArray:
    """The ``count`` other classes with the logits nearest to that of ``k``, the nearest first."""
    distance = np.abs(logits.astype(np.float64) - float(logits[k]))
    distance[k] = np.inf
    return np.argsort(distance, kind="stable")[:count].astype(np.int64)
