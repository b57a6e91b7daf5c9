"""Rewrites ONNX classifiers so that they emit the activations and gradients of several layers."""

from __future__ import annotations

from camrt.exporter.layers import LayerCandidate
from camrt.exporter.pipeline import export, list_layers

__all__ = ["LayerCandidate", "export", "list_layers"]
