"""What a server says about its models."""

from __future__ import annotations

import json
from dataclasses import dataclass

from camrt.client.errors import RemoteError
from camrt.errors import InvalidInputError
from camrt.preprocess import Preprocessing
from camrt.v1 import explainer_pb2 as pb


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One version of a model.

    Attributes:
        name, version: what calls name it by.
        state: "loading", "ready", "unloading" or "failed".
        reason: why it failed.
        digest: SHA-256 of the bundle.
    """

    name: str
    version: str
    state: str
    reason: str
    digest: str


@dataclass(frozen=True, slots=True)
class RemoteLayer:
    """A target layer: its name, (C, h, w), and the rows and columns of the input to one of the layer."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RemoteParity:
    """How the server's engine compared with the CPU provider when the model was loaded.

    Attributes:
        provider: what was compared.
        correlations: layer name -> lowest Pearson correlation of its maps over the fixed images.
        logit_error: max |difference| / max |logit of the CPU provider|.
        top1_agreement: share of images with the same most probable class.
        threshold: what every correlation had to reach.
    """

    provider: str
    correlations: dict[str, float]
    logit_error: float
    top1_agreement: float
    threshold: float


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """Everything about one model.

    Attributes:
        summary: name, version, state.
        input_shape: (3, H, W).
        class_names: K names, or None.
        num_classes: K.
        target_layers: coarse to fine.
        methods: name to what an explanation costs, in forward and backward passes.
        fusions, metrics: names.
        preprocessing: how images become tensors, or None: only tensors are taken.
        provider: execution provider.
        camrt_version: of the server.
        precision: of the bundle: "fp32", "fp16" or "int8"; empty from a server that does not say.
        parity: how the engine compared with the CPU provider, or None: nothing was compared.
    """

    summary: ModelSummary
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...] | None
    num_classes: int
    target_layers: tuple[RemoteLayer, ...]
    methods: dict[str, float]
    fusions: tuple[str, ...]
    metrics: tuple[str, ...]
    preprocessing: Preprocessing | None
    provider: str
    camrt_version: str
    precision: str
    parity: RemoteParity | None


def summary_of(message: pb.ModelSummary) -> ModelSummary:
    """One version of a model."""
    known = message.state in pb.ModelState.values()
    state = pb.ModelState.Name(message.state).removeprefix("MODEL_STATE_").lower() if known else "unknown"
    return ModelSummary(message.model.name, message.model.version, state, message.reason, message.digest)


def details_of(message: pb.GetModelResponse) -> ModelDetails:
    """Everything about one model.

    Raises:
        RemoteError: a preprocessing that this camrt does not know.
    """
    return ModelDetails(
        summary=summary_of(message.summary),
        input_shape=tuple(message.input_shape),
        class_names=tuple(message.class_names) or None,
        num_classes=message.num_classes,
        target_layers=tuple(
            RemoteLayer(layer.name, tuple(layer.shape), tuple(layer.stride)) for layer in message.target_layers
        ),
        methods={method.name: method.cost for method in message.methods},
        fusions=tuple(message.fusions),
        metrics=tuple(message.metrics),
        preprocessing=_preprocessing(message.preprocessing_json),
        provider=message.provider,
        camrt_version=message.camrt_version,
        precision=message.precision,
        parity=_parity(message.parity) if message.HasField("parity") else None,
    )


def _parity(message: pb.Parity) -> RemoteParity:
    return RemoteParity(
        message.provider,
        dict(message.layer_correlations),
        message.logit_error,
        message.top1_agreement,
        message.threshold,
    )


def _preprocessing(text: str) -> Preprocessing | None:
    if not text:
        return None
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        return Preprocessing.from_dict(fields)
    except (ValueError, InvalidInputError) as error:
        raise RemoteError(
            f"The server sent a preprocessing that this camrt cannot read ({error}).", "Update camrt.", "INTERNAL"
        ) from error
