"""A model whose every answer can be written down, for methods that run one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from camrt.types import FloatArray, IntArray, LayerOutputs, SessionOutputs
from tests.cam.test_plan import manifest

SIDE = 8
CHANNELS = 4
CLASSES = 5


class LinearSession:
    """Layers "a" (2x2) and "b" (4x4) hold means of the image mixed to four channels; logits = W mean(a) + bias.

    Attributes:
        calls: (method, number of items) of every run.
    """

    def __init__(self, seed: int = 0, classes: int = CLASSES) -> None:
        rng = np.random.default_rng(seed)
        layers = tuple(
            replace(layer, shape=(CHANNELS, side, side), linear_head=layer.name == "a")
            for layer, side in zip(manifest("a", "b").target_layers, (2, 4), strict=True)
        )
        self.manifest = replace(manifest("a", "b"), num_classes=classes, target_layers=layers)
        self.mix = rng.standard_normal((CHANNELS, 3)).astype(np.float32)
        self.weights = rng.standard_normal((classes, CHANNELS)).astype(np.float32)
        self.bias = rng.standard_normal(classes).astype(np.float32)
        self.calls: list[tuple[str, int]] = []

    def activations(self, inputs: FloatArray, layer: str) -> FloatArray:
        side = self.manifest.layer(layer).shape[1]
        blocks = inputs.reshape(len(inputs), 3, side, SIDE // side, side, SIDE // side).mean(axis=(3, 5))
        return np.einsum("kc,nchw->nkhw", self.mix, blocks).astype(np.float32)

    def predict(self, inputs: FloatArray) -> FloatArray:
        self.calls.append(("predict", len(inputs)))
        return self._logits(self.activations(inputs, "a"))

    def prepare(self, layers: Sequence[str], derivatives: int = 1) -> None:
        pass

    def run(
        self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str], derivatives: int = 1
    ) -> SessionOutputs:
        self.calls.append(("run", len(class_indices)))
        logits = self._logits(self.activations(inputs, "a"))
        rows = np.broadcast_to(logits, (len(class_indices), logits.shape[1]))
        ranked = np.argsort(-rows, axis=1, kind="stable")
        chosen = np.array([ranked[m, -k - 1] if k < 0 else k for m, k in enumerate(class_indices)], np.int64)
        outputs = []
        for name in layers:
            shape = self.manifest.layer(name).shape
            gradients = np.empty((0, *shape), np.float32)
            if derivatives:
                spread = self.weights[chosen][:, :, None, None] / np.float32(shape[1] * shape[2])
                gradients = np.broadcast_to(spread, (len(chosen), *shape)).copy()
            outputs.append(LayerOutputs(name, self.activations(inputs, name), gradients))
        return SessionOutputs(logits, chosen, tuple(outputs))

    def run_from_layer(self, layer: str, activations: FloatArray) -> FloatArray:
        self.calls.append((f"from {layer}", len(activations)))
        return self._logits(activations)

    def _logits(self, activations: FloatArray) -> FloatArray:
        logits: FloatArray = activations.mean(axis=(2, 3)) @ self.weights.T + self.bias
        return logits


def images(count: int, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)
