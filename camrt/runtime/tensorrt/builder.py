"""From a graph to a TensorRT engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camrt.errors import UnsupportedModelError
from camrt.runtime.engine_options import EngineOptions


def build_engine(
    tensorrt: Any, graph: bytes, tails: Mapping[str, tuple[int, ...]], options: EngineOptions, timings: bytes
) -> tuple[bytes, bytes]:
    """Builds an engine with one optimisation profile a batch bucket.

    The network is strongly typed: every layer computes in the type that the graph says; float32 is float32 where TF32
    is not asked for. A profile takes from one image or class to its bucket, and is tuned for the bucket: several
    classes of one image come with a batch of one.

    Args:
        tensorrt: the package.
        graph: a serialised ONNX model with its weights.
        tails: input name -> its shape without the first axis.
        options: buckets, and TF32.
        timings: the timing cache of earlier builds, or nothing.

    Returns:
        The serialised engine, and the timing cache.

    Raises:
        UnsupportedModelError: TensorRT cannot parse or build the graph.
    """
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(graph):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise UnsupportedModelError(f"TensorRT cannot parse the bundle: {reasons}.", "Use provider 'cuda'.")
    config = builder.create_builder_config()
    if not options.tf32:  # TensorRT's default is to use it
        config.clear_flag(tensorrt.BuilderFlag.TF32)
    config.set_timing_cache(config.create_timing_cache(timings), False)
    for batch in options.batches:
        profile = builder.create_optimization_profile()
        for name, tail in tails.items():
            profile.set_shape(name, (1, *tail), (batch, *tail), (batch, *tail))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UnsupportedModelError(
            "TensorRT cannot build an engine of the bundle; its log says why.", "Use provider 'cuda'."
        )
    return bytes(plan), bytes(config.get_timing_cache().serialize())
