"""The provider "tensorrt-ort": ONNX Runtime's own use of TensorRT, its engines kept in camrt's cache.

ONNX Runtime writes an engine as an "EP context", an ONNX file with one node that holds it, and would load whatever lies
there. So the file is written to a folder of its own, goes into the cache sealed (see camrt.runtime.engine_cache), and
ONNX Runtime gets the bytes that were checked.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnxruntime

from camrt.errors import InvalidModelError
from camrt.runtime.engine_cache import EngineCache, EngineKey
from camrt.runtime.engine_options import EngineOptions

_log = logging.getLogger(__name__)


def session_by_context(
    cache: EngineCache,
    key: EngineKey,
    model: bytes,
    opened: Callable[[bytes, dict[str, str]], onnxruntime.InferenceSession],
) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session of a graph: on the cached engine, or on a new one, which is then kept.

    Args:
        cache: where engines are kept.
        key: of the engine.
        model: the graph that it is built from.
        opened: opens a graph, given further options of the TensorRT provider.

    Raises:
        InvalidModelError: ONNX Runtime cannot load ``model``. An engine that it refuses is built again.
    """
    with cache.locked(key.digest):
        context = cache.read(key)
        if context is not None:
            try:
                return opened(context, {})
            except InvalidModelError as error:
                _log.warning("The engine in %s is built again: ONNX Runtime refuses it: %s", cache.path(key), error)
        with tempfile.TemporaryDirectory(prefix=key.digest, dir=cache.folder) as folder:
            written = Path(folder) / "context.onnx"
            session = opened(model, _dumped_to(written))
            if written.exists():
                cache.write(key, written.read_bytes())
            else:
                _log.warning("ONNX Runtime left no engine of %s; it is built again at the next start.", key.outputs)
            return session


def _dumped_to(path: Path) -> dict[str, str]:
    """Options that write an engine into one file: a file of its own beside it would be out of the seal's reach."""
    return {
        "trt_dump_ep_context_model": "1",
        "trt_ep_context_embed_mode": "1",
        "trt_ep_context_file_path": str(path),
    }


def tensorrt_options(
    folder: Path, tails: Mapping[str, tuple[int, ...]], options: EngineOptions, stream: int
) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider: one profile a bucket, so that no run builds an engine again.

    Args:
        folder: for the timings of TensorRT's tactics, which ONNX Runtime reads and writes by itself.
        tails: input name -> its shape without the first axis.
        options: buckets, and whether launches are recorded.
        stream: that everything runs on.
    """

    def shapes(sizes: Sequence[int]) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, (size, *tail)))}" for size in sizes for name, tail in tails.items())

    return {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_profile_min_shapes": shapes([1] * len(options.batches)),
        "trt_profile_opt_shapes": shapes(options.batches),
        "trt_profile_max_shapes": shapes(options.batches),
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_cuda_graph_enable": "1" if options.cuda_graphs else "0",
    }
