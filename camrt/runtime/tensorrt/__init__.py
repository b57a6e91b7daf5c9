"""The provider "tensorrt": engines built from bundles by TensorRT itself.

Precision is in the graph (casts for fp16, Q/DQ for int8), networks are strongly typed, so one way serves TensorRT from
10.12 on and 11.
"""

from __future__ import annotations

TENSORRT, TENSORRT_ORT = "tensorrt", "tensorrt-ort"
TENSORRT_PROVIDERS = (TENSORRT, TENSORRT_ORT)
