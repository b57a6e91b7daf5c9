"""Results as messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
from google.protobuf.message import Message
from PIL import Image

import camrt
from camrt.bundle import Manifest
from camrt.cam import CAM_METHODS, REFINECAM, Plan
from camrt.cam.methods import available_methods
from camrt.errors import InvalidInputError
from camrt.explainer import Explainer
from camrt.explanation import Explanation
from camrt.kernels.backend import FUSIONS
from camrt.metrics import METRICS
from camrt.runtime.parity import Parity
from camrt.server.codec import Decoded, Output, array_tensor, encode_map
from camrt.server.models import LoadedModel, ModelStatus
from camrt.server.requests import DEFAULTS
from camrt.types import FloatArray
from camrt.v1 import explainer_pb2 as pb

TOP = 5

_STATES = {
    "loading": pb.MODEL_STATE_LOADING,
    "ready": pb.MODEL_STATE_READY,
    "unloading": pb.MODEL_STATE_UNLOADING,
    "failed": pb.MODEL_STATE_FAILED,
}


def reference(model: LoadedModel) -> pb.ModelReference:
    """The model that was used."""
    return pb.ModelReference(name=model.name, version=model.version)


def prediction(manifest: Manifest, class_index: int, probability: float) -> pb.Prediction:
    """A class with its probability."""
    name = manifest.class_name(class_index) or ""
    return pb.Prediction(class_index=class_index, class_name=name, probability=probability)


def top_predictions(manifest: Manifest, probabilities: FloatArray) -> list[pb.Prediction]:
    """The five most probable classes, the most probable first."""
    count = min(TOP, len(probabilities))
    best = np.argpartition(-probabilities, count - 1)[:count]
    ordered = best[np.argsort(-probabilities[best], kind="stable")]
    return [prediction(manifest, int(index), float(probabilities[index])) for index in ordered]


def in_output_pixels(
    explainer: Explainer, explanation: Explanation, plan: Plan, decoded: Decoded, output: Output
) -> Explanation:
    """The explanation with its map in the pixels that ``output`` names."""
    if output.space == pb.OUTPUT_SPACE_GIVEN:
        return explainer.to_size(explanation, plan, output.given_size)
    if output.space == pb.OUTPUT_SPACE_ORIGINAL and decoded.affine is not None:
        return explainer.to_original(explanation, decoded.affine, decoded.original_size[::-1])
    return explanation


def explanation_message(
    manifest: Manifest, explanation: Explanation, output: Output, background: Image.Image | None, layer_maps: bool
) -> pb.Explanation:
    """One explained class.

    Args:
        manifest: of the bundle.
        explanation: its map as it is sent.
        output: the encoding.
        background: what an overlay lies on.
        layer_maps: whether the maps of the layers are sent.
    """
    maps = explanation.layer_maps.items() if layer_maps else ()
    return pb.Explanation(
        prediction=prediction(manifest, explanation.class_index, explanation.probability),
        saliency_map=encode_map(explanation.saliency_map, output, background),
        degenerate=explanation.degenerate,
        layer_maps=[pb.LayerMap(layer=name, values=array_tensor(values)) for name, values in maps],
        logit=explanation.logit,
    )


def check_reply(reply: Message, most: int) -> None:
    """Refuses a reply that gRPC would not send, in words that say what to do.

    Raises:
        InvalidInputError: more than ``most`` bytes.
    """
    size = reply.ByteSize()
    if size > most:
        raise InvalidInputError(
            f"The reply has {size} bytes; at most {most} are sent.", "Ask for fewer classes, images, outputs or pixels."
        )


def layer_map_bytes(manifest: Manifest, layers: Sequence[str]) -> int:
    """Bytes of the maps of ``layers``, FLOAT32, of one class."""
    shapes = [manifest.layer(name).shape for name in layers]
    return sum(4 * height * width for _, height, width in shapes)


def options_message(plan: Plan) -> pb.ExplanationOptions:
    """How maps were made."""
    options = pb.ExplanationOptions(method=plan.method, target_layers=plan.layers)
    if plan.refines:
        options.base_method, options.fusion = plan.base.name, plan.fusion
    if plan.base.expensive:
        options.channels = plan.perturbation.channels or 0
    return options


def microseconds(seconds: float) -> int:
    """Seconds as the whole microseconds of a message."""
    return round(1e6 * seconds)


def model_summary(status: ModelStatus) -> pb.ModelSummary:
    """Where a model stands."""
    return pb.ModelSummary(
        model=pb.ModelReference(name=status.name, version=status.version),
        state=_STATES[status.state],
        reason=status.reason,
        digest=status.digest,
    )


def model_message(model: LoadedModel, statuses: Iterable[ModelStatus], channels: int) -> pb.GetModelResponse:
    """Everything about a model; expensive methods try at most ``channels`` of a layer."""
    manifest, preprocessing = model.explainer.manifest, model.explainer.preprocessing
    own = ModelStatus(model.name, model.version, "ready", digest=model.digest)
    status = next((item for item in statuses if (item.name, item.version) == (own.name, own.version)), own)
    return pb.GetModelResponse(
        summary=model_summary(status),
        input_shape=manifest.input_shape,
        class_names=manifest.class_names or (),
        num_classes=manifest.num_classes,
        target_layers=_target_layers(manifest),
        methods=_methods(manifest, channels),
        fusions=FUSIONS,
        metrics=list(METRICS),
        defaults=DEFAULTS,
        preprocessing_json="" if preprocessing is None else json.dumps(preprocessing.to_dict()),
        provider=model.provider,
        camrt_version=camrt.__version__,
        precision=manifest.precision,
        parity=_parity(model.explainer.parity),
    )


def _parity(parity: Parity | None) -> pb.Parity | None:
    """The figures of the check at load; None where nothing was compared."""
    if parity is None:
        return None
    return pb.Parity(
        provider=parity.provider,
        layer_correlations=parity.correlations,
        logit_error=parity.logit_error,
        top1_agreement=parity.top1_agreement,
        threshold=parity.threshold,
    )


def _methods(manifest: Manifest, channels: int) -> list[pb.Method]:
    """What some layer of the bundle has, with its cost for the coarsest; a forward pass alone is a third of one."""
    tried = min(channels, manifest.target_layers[0].shape[0])
    some = {name for layer in manifest.layer_names for name in available_methods(manifest, (layer,))}
    methods = [method for method in CAM_METHODS.values() if method.name in some]
    return [
        pb.Method(name=REFINECAM, cost=1),
        *(
            pb.Method(name=method.name, cost=tried / 3 if method.expensive else 1, heavy=method.expensive)
            for method in methods
        ),
    ]


def _target_layers(manifest: Manifest) -> Sequence[pb.TargetLayer]:
    _, height, width = manifest.input_shape
    return [
        pb.TargetLayer(name=layer.name, shape=layer.shape, stride=(height / layer.shape[1], width / layer.shape[2]))
        for layer in manifest.target_layers
    ]
