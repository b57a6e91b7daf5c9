"""What the service says about a model: metadata, configuration, statistics."""

from __future__ import annotations

from camrt.inference import open_inference_pb2 as pb
from camrt.server.models import LoadedModel, ModelStatus
from camrt.server.open_inference.requests import (
    ACTIVATIONS,
    CLASS_INDEX,
    GRADIENTS,
    IMAGE,
    IMAGE_DATATYPES,
    LOGITS,
    SALIENCY_MAP,
)
from camrt.server.settings import ServerSettings
from camrt.server.statistics import ModelStatistics

PLATFORM = "camrt_bundle"
BACKEND = "camrt"
_ANY = -1
_DATA_TYPES = {"FP32": pb.TYPE_FP32, "INT64": pb.TYPE_INT64}
_STATES = {"ready": "READY", "loading": "LOADING", "unloading": "UNLOADING", "failed": "UNAVAILABLE"}


def _inputs(model: LoadedModel) -> dict[str, tuple[str, list[int]]]:
    """Name to data type and shape without the batch axis. The image has the type that every model takes."""
    return {IMAGE: ("FP32", list(model.explainer.manifest.input_shape)), CLASS_INDEX: ("INT64", [_ANY])}


def _outputs(model: LoadedModel) -> dict[str, tuple[str, list[int]]]:
    manifest = model.explainer.manifest
    outputs = {
        LOGITS: ("FP32", [manifest.num_classes]),
        CLASS_INDEX: ("INT64", [_ANY]),
        SALIENCY_MAP: ("FP32", [_ANY, *manifest.input_shape[1:]]),
    }
    for layer in manifest.target_layers:
        outputs[ACTIVATIONS + layer.name] = ("FP32", list(layer.shape))
        outputs[GRADIENTS + layer.name] = ("FP32", [_ANY, *layer.shape])
    return outputs


def model_metadata(model: LoadedModel, versions: list[str]) -> pb.ModelMetadataResponse:
    """Inputs and outputs of a model, the batch axis first."""
    response = pb.ModelMetadataResponse(name=model.name, versions=versions, platform=PLATFORM)
    for tensors, target in ((_inputs(model), response.inputs), (_outputs(model), response.outputs)):
        for name, (datatype, shape) in tensors.items():
            target.add(name=name, datatype=datatype, shape=[_ANY, *shape])
    return response


def model_config(model: LoadedModel, settings: ServerSettings) -> pb.ModelConfig:
    """How a model is served; what the protocol has no field for is in the parameters."""
    config = pb.ModelConfig(name=model.name, platform=PLATFORM, backend=BACKEND, max_batch_size=settings.max_batch)
    for name, (datatype, dims) in _inputs(model).items():
        config.input.add(name=name, data_type=_DATA_TYPES[datatype], dims=dims, optional=name != IMAGE)
    for name, (datatype, dims) in _outputs(model).items():
        config.output.add(name=name, data_type=_DATA_TYPES[datatype], dims=dims)
    config.dynamic_batching.max_queue_delay_microseconds = round(1000 * settings.max_delay_ms)
    manifest = model.explainer.manifest
    told = {
        "image_datatypes": ",".join(IMAGE_DATATYPES if model.explainer.preprocessing else IMAGE_DATATYPES[:1]),
        "target_layers": ",".join(manifest.layer_names),
        "model_digest": model.digest,
        "provider": model.provider,
    }
    for key, value in told.items():
        config.parameters[key].string_value = value
    return config


def index_entry(status: ModelStatus) -> pb.RepositoryIndexResponse.ModelIndex:
    """A version of a model, as RepositoryIndex lists it."""
    return pb.RepositoryIndexResponse.ModelIndex(
        name=status.name, version=status.version, state=_STATES[status.state], reason=status.reason
    )


def unloaded_entry(name: str) -> pb.RepositoryIndexResponse.ModelIndex:
    """A model that is in the server's folder and not loaded."""
    return pb.RepositoryIndexResponse.ModelIndex(name=name, state="UNAVAILABLE", reason="unloaded")


def model_statistics(name: str, version: str, row: ModelStatistics) -> pb.ModelStatistics:
    """Requests of every service; inference_count is the images of those that were answered."""
    message = pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=round(1000 * row.last_inference),
        inference_count=row.items,
        execution_count=row.executions,
    )
    for field, count, seconds in (
        ("success", row.successes, row.success_seconds),
        ("fail", row.failures, row.failure_seconds),
        ("queue", row.successes, row.queue_seconds),
        ("compute_input", row.successes, row.decode_seconds),
        ("compute_infer", row.successes, row.run_seconds),
        ("compute_output", row.successes, row.encode_seconds),
    ):
        duration = getattr(message.inference_stats, field)
        duration.count, duration.ns = count, round(1e9 * seconds)
    return message
