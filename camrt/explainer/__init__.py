"""``Explainer``: a bundle, a CAM method, the kernels and the metrics, put together."""

from __future__ import annotations

from camrt.explainer.batch import BatchResult
from camrt.explainer.explainer import ClassLike, Explainer, OutputSize, embedded_bundle_path, sample_image_path

__all__ = ["BatchResult", "ClassLike", "Explainer", "OutputSize", "embedded_bundle_path", "sample_image_path"]
