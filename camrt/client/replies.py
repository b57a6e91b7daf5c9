"""Messages of a server as what an Explainer returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from camrt.client.errors import RemoteError
from camrt.errors import CamrtError
from camrt.explanation import Explanation
from camrt.types import AnyArray, FloatArray
from camrt.v1 import explainer_pb2 as pb

_MAP_DTYPES: dict[pb.MapEncoding, np.dtype[Any]] = {
    pb.MAP_ENCODING_UINT8: np.dtype("u1"),
    pb.MAP_ENCODING_FLOAT16: np.dtype("<f2"),
    pb.MAP_ENCODING_FLOAT32: np.dtype("<f4"),
}
_STAGES = ("decode", "queue", "inference", "kernels", "encode")


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class with its probability; the name is None where the model has none."""

    class_index: int
    class_name: str | None
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """Everything that a server says about one image.

    Attributes:
        explanations: one a class, in the order asked for. layer_maps are empty if they were not asked for.
        predictions: the five most probable classes.
        probabilities: (K,) float32, or None if they were not asked for.
        scores: of each explanation, metric to score; empty if they were not asked for.
        model, version, digest: of the model that was used; the digest is the SHA-256 of its bundle.
        timings: stage to seconds on the server, with "total".
        batch_size: how many images ran together.
    """

    explanations: list[Explanation]
    predictions: list[Prediction]
    probabilities: FloatArray | None
    scores: list[dict[str, float]]
    model: str
    version: str
    digest: str
    timings: Mapping[str, float]
    batch_size: int


@dataclass(frozen=True, slots=True, eq=False)
class StreamReply:
    """What became of one image of a stream.

    Attributes:
        index: number of the image, from 0.
        reply: or None where it failed.
        error: why it failed, or None.
    """

    index: int
    reply: Reply | None = None
    error: CamrtError | None = None

    @property
    def explanations(self) -> list[Explanation]:
        """The explanations; raises the error of an image that failed."""
        if self.reply is None:
            raise self.error or RemoteError("The server sent an empty reply.", "Try again.", "UNKNOWN")
        return self.reply.explanations


def reply_of(response: pb.ExplainResponse, sent_tensor: bool, space: int) -> Reply:
    """A response of Explain.

    Args:
        response: the message.
        sent_tensor: whether a tensor was sent: its pixels are those of the model's input.
        space: the OutputSpace that was asked for.

    Raises:
        RemoteError: arrays of a wrong size, or an encoding that was not asked for.
    """
    in_input_pixels = space == pb.OUTPUT_SPACE_INPUT or (sent_tensor and space != pb.OUTPUT_SPACE_GIVEN)
    timings = timings_of(response.timings)
    count = max(1, len(response.explanations))
    shared = {stage: timings[stage] / count for stage in _STAGES}
    return Reply(
        explanations=[_explanation(item, response.options, shared, in_input_pixels) for item in response.explanations],
        predictions=[prediction_of(item) for item in response.predictions],
        probabilities=_floats(response.probabilities) if response.HasField("probabilities") else None,
        scores=[dict(item.scores) for item in response.explanations],
        model=response.model.name,
        version=response.model.version,
        digest=response.model_digest,
        timings=timings,
        batch_size=response.batch_size,
    )


def prediction_of(message: pb.Prediction) -> Prediction:
    """A class with its probability."""
    return Prediction(message.class_index, message.class_name or None, message.probability)


def timings_of(message: pb.Timings) -> dict[str, float]:
    """Stage to seconds, with "total"."""
    return {stage: getattr(message, f"{stage}_us") / 1e6 for stage in (*_STAGES, "total")}


def _explanation(
    message: pb.Explanation, options: pb.ExplanationOptions, timings: Mapping[str, float], in_input_pixels: bool
) -> Explanation:
    return Explanation(
        saliency_map=_map(message.saliency_map),
        layer_maps={item.layer: _floats(item.values) for item in message.layer_maps},
        class_index=message.prediction.class_index,
        class_name=message.prediction.class_name or None,
        probability=message.prediction.probability,
        logit=message.logit,
        method=options.method,
        base_method=options.base_method or None,
        fusion=options.fusion or None,
        degenerate=tuple(message.degenerate),
        timings=timings,
        in_input_pixels=in_input_pixels,
    )


def _map(message: pb.Map) -> FloatArray:
    """(H, W) float32 in [0, 1]."""
    if message.encoding not in _MAP_DTYPES:
        raise _garbled(f"a map in the encoding {int(message.encoding)}")
    values = _array(message.data, _MAP_DTYPES[message.encoding], (message.height, message.width))
    scale = 255 if message.encoding == pb.MAP_ENCODING_UINT8 else 1
    floats: FloatArray = values.astype(np.float32)
    return floats / np.float32(scale) if scale != 1 else floats


def _floats(tensor: pb.Tensor) -> FloatArray:
    if tensor.data_type != pb.DATA_TYPE_FLOAT32:
        raise _garbled(f"a tensor of the type {int(tensor.data_type)}")
    floats: FloatArray = _array(tensor.data, np.dtype("<f4"), tuple(tensor.shape)).astype(np.float32)
    return floats


def _array(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> AnyArray:
    wanted = dtype.itemsize
    for side in shape:
        wanted *= max(0, side)
    if wanted != len(data):
        raise _garbled(f"{len(data)} bytes for {shape[:8]}")
    return np.frombuffer(data, dtype).reshape(shape)


def _garbled(what: str) -> RemoteError:
    return RemoteError(f"The server sent {what}.", "Is it a camrt server of a version that fits?", "INTERNAL")
