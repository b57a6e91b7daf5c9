"""Score-CAM and Ablation-CAM: a channel weighs what the model answers when the image or the layer is changed.

Both run the model once a channel, in chunks that hold at most ``Perturbation.memory_bytes``. Chunks depend on nothing
but shapes and that limit, so the same request gives the same weights. Between chunks ``Perturbation.progress`` is
called, and a session that checks whether to go on (camrt.explainer.checked_session) can stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from camrt.cam.method import MapRequest, Perturbation, run_forward
from camrt.kernels import KernelBackend
from camrt.runtime.session import Session
from camrt.types import DoubleArray, FloatArray, IntArray, LayerOutputs, SessionOutputs

_MOST_A_RUN = 64
_RANGE_EPSILON = 1e-8


def weighted_maps(backend: KernelBackend, layers: Sequence[LayerOutputs]) -> list[FloatArray]:
    """sum_c w_c A_c with the weights that were found, ReLU, min-max."""
    maps = []
    for layer in layers:
        assert layer.channel_weights is not None
        maps.append(backend.normalize(backend.weighted_sum(layer.activations, layer.channel_weights)))
    return maps


def collect_scores(session: Session, request: MapRequest) -> SessionOutputs:
    """Score-CAM: w = softmax over channels of the logit of image x mask_c.

    mask_c is A_c resized to the image (bilinear, corner pixels on corner pixels, as pytorch-grad-cam does) and brought
    to [0, 1] by min-max. Channels that are not tried get the weight 0.
    """

    def weights(image: FloatArray, layer: FloatArray, _name: str, classes: IntArray, tell: _Tell) -> FloatArray:
        channels = _varying_channels(layer, request.perturbation)
        size = _chunk(request.perturbation, image.nbytes)
        logits: list[DoubleArray] = []
        for start in range(0, len(channels), size):
            masks = _masks(layer[channels[start : start + size]], (image.shape[1], image.shape[2]))
            answers = session.predict(image[None] * masks[:, None])
            logits.append(answers[:, classes].T.astype(np.float64))
            tell(len(answers))
        answered = np.concatenate(logits, axis=1)
        powers = np.exp(answered - answered.max(axis=1, keepdims=True))
        return _spread(powers / powers.sum(axis=1, keepdims=True), channels, len(layer))

    return _collect(session, request, weights)


def collect_ablations(session: Session, request: MapRequest) -> SessionOutputs:
    """Ablation-CAM: w_c = (y - y_c) / y, with y_c the logit with channel c of the layer set to zero.

    Only what comes after the layer runs. Channels that are not tried get the weight 0, as one without effect has.
    Where y is 0 the weights are not finite, and the map is reported as degenerate.
    """

    def weights(_image: FloatArray, layer: FloatArray, name: str, classes: IntArray, tell: _Tell) -> FloatArray:
        channels = _varying_channels(layer, request.perturbation)
        size = _chunk(request.perturbation, layer.nbytes)
        whole = session.run_from_layer(name, layer[None])[0, classes].astype(np.float64)
        ablated: list[DoubleArray] = []
        for start in range(0, len(channels), size):
            chunk = channels[start : start + size]
            changed = np.repeat(layer[None], len(chunk), axis=0)
            changed[np.arange(len(chunk)), chunk] = 0
            ablated.append(session.run_from_layer(name, changed)[:, classes].T.astype(np.float64))
            tell(len(chunk))
        with np.errstate(divide="ignore", invalid="ignore"):
            drops = (whole[:, None] - np.concatenate(ablated, axis=1)) / whole[:, None]
        return _spread(drops, channels, len(layer))

    return _collect(session, request, weights)


class _Tell:
    """Counts channels, and tells the caller's callback.

    Args:
        total: channels in all.
        progress: the callback, or None.
    """

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _collect(
    session: Session,
    request: MapRequest,
    weigh: Callable[[FloatArray, FloatArray, str, IntArray, _Tell], FloatArray],
) -> SessionOutputs:
    """One forward run, then the weights of every layer of every image, (M, C) a layer."""
    forward = run_forward(session, request)
    channels = [_tried(layer.activations.shape[1], request.perturbation) for layer in forward.layers]
    tell = _Tell(len(request.inputs) * sum(channels), request.perturbation.progress)
    layers = []
    for layer in forward.layers:
        found = [
            weigh(image, layer.activations[n], layer.name, forward.class_indices[rows], tell)
            for n, (image, rows) in enumerate(zip(request.inputs, request.rows_of_images(), strict=True))
        ]
        weights = np.concatenate(found)
        layers.append(LayerOutputs(layer.name, layer.activations, layer.gradients, channel_weights=weights))
    return SessionOutputs(forward.logits, forward.class_indices, tuple(layers))


def _tried(channels: int, limits: Perturbation) -> int:
    return channels if limits.channels is None else min(channels, limits.channels)


def _varying_channels(layer: FloatArray, limits: Perturbation) -> IntArray:
    """The channels of (C, h, w) that are tried, in rising order."""
    deviation = layer.std(axis=(1, 2), dtype=np.float64)
    count = _tried(len(layer), limits)
    return np.sort(np.argsort(-deviation, kind="stable")[:count]).astype(np.int64)


def _chunk(limits: Perturbation, nbytes: int) -> int:
    """Items of ``nbytes`` that one run takes."""
    return max(1, min(_MOST_A_RUN, limits.memory_bytes // nbytes))


def _spread(weights: DoubleArray, channels: IntArray, count: int) -> FloatArray:
    """Weights (M, tried) as (M, C) float32, 0 for channels that were not tried."""
    spread = np.zeros((len(weights), count), np.float32)
    spread[:, channels] = weights
    return spread


def _masks(channels: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Activations (n, h, w) as masks (n, H, W) in [0, 1]."""
    rows, columns = (_interpolation(source, target) for source, target in zip(channels.shape[1:], size, strict=True))
    enlarged = rows @ channels @ columns.T
    low, high = enlarged.min(axis=(1, 2), keepdims=True), enlarged.max(axis=(1, 2), keepdims=True)
    masks: FloatArray = (enlarged - low) / (high - low + np.float32(_RANGE_EPSILON))
    return masks


def _interpolation(source: int, target: int) -> FloatArray:
    """The matrix (target, source) of linear interpolation with the ends on the ends."""
    places = np.linspace(0, source - 1, target)
    left = np.minimum(places.astype(np.int64), max(source - 2, 0))
    share = places - left
    matrix = np.zeros((target, source), np.float32)
    matrix[np.arange(target), left] = 1 - share
    if source > 1:
        matrix[np.arange(target), left + 1] = share
    return matrix
