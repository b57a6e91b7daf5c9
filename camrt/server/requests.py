"""What a request asks for, checked before anything is decoded."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from camrt.bundle import MAX_RANK, Manifest
from camrt.cam import DEFAULT_BASE, DEFAULT_FUSION, DEFAULT_ORDER, REFINECAM, Perturbation, Plan, make_plan
from camrt.errors import ClassIndexError, InvalidInputError
from camrt.server.errors import DeadlineError
from camrt.server.settings import ServerSettings
from camrt.server.status import Context
from camrt.types import IntArray
from camrt.v1 import explainer_pb2 as pb

DEFAULTS = pb.ExplanationOptions(method=REFINECAM, base_method=DEFAULT_BASE, fusion=DEFAULT_FUSION)
PREDICTED = -1


def deadline_of(context: Context) -> float | None:
    """The call's deadline, time.monotonic() seconds, or None.

    Raises:
        DeadlineError: it has passed.
    """
    remaining = context.time_remaining()
    if remaining is None:
        return None
    if remaining <= 0:
        raise DeadlineError("The deadline passed before the request arrived.", "Allow more time.")
    return time.monotonic() + remaining


def plan_of(manifest: Manifest, options: pb.ExplanationOptions, settings: ServerSettings) -> Plan:
    """How the maps of a request are made.

    Raises:
        MethodNotFoundError, LayerNotFoundError: a name that is not there.
        MethodUnavailableError: the model lacks what the method needs.
        InvalidInputError: too many layers or channels, or several layers for a method of one.
    """
    layers = list(options.target_layers)
    if len(layers) > settings.layers:
        raise InvalidInputError(f"{len(layers)} target layers.", f"Name at most {settings.layers}, or 'all'.")
    plan = make_plan(
        manifest,
        options.method or DEFAULTS.method,
        options.base_method or DEFAULTS.base_method,
        options.fusion or DEFAULTS.fusion,
        layers or None,
        DEFAULT_ORDER,
    )
    return limited(plan, options.channels, settings)


def limited(plan: Plan, channels: int, settings: ServerSettings) -> Plan:
    """The plan with the channels that an expensive method may try.

    Args:
        plan: as make_plan has it.
        channels: what the client says; 0 for the server's limit.
        settings: the limit.

    Raises:
        InvalidInputError: a number that is not allowed, or for a method that tries no channels.
    """
    if not plan.base.expensive:
        if channels:
            raise InvalidInputError(f"{plan.base.name!r} does not try channels one by one.", "Leave channels out.")
        return plan
    if not 0 <= channels <= settings.scorecam_channels:
        raise InvalidInputError(f"channels is {channels}.", f"Give 1 to {settings.scorecam_channels}, or leave it out.")
    return replace(plan, perturbation=Perturbation(channels or settings.scorecam_channels))


def classes_of(request: pb.ExplainRequest, manifest: Manifest, settings: ServerSettings) -> IntArray:
    """The classes to explain (M,), ranks as negative numbers.

    Raises:
        ClassIndexError: a class that the model does not have.
        InvalidInputError: none, or too many.
    """
    which = request.WhichOneof("classes")
    if which is None:
        return np.array([PREDICTED], np.int64)
    if which == "top_k":
        most = min(settings.classes, manifest.num_classes, MAX_RANK)
        if not 1 <= request.top_k <= most:
            raise InvalidInputError(f"top_k is {request.top_k}.", f"Give a number in 1..{most}.")
        return -np.arange(1, request.top_k + 1, dtype=np.int64)
    selection = request.selection
    count = len(selection.indices) + len(selection.names)
    if not 1 <= count <= settings.classes:
        raise InvalidInputError(f"The selection has {count} classes.", f"Name 1 to {settings.classes} of them.")
    chosen: list[int | str] = [*selection.indices, *selection.names]
    return np.array([manifest.class_index(item) for item in chosen], np.int64)


def class_count(request: pb.ExplainRequest, settings: ServerSettings) -> int:
    """How many classes a request says that it explains, for its admission: at least 1; classes_of checks it."""
    named = len(request.selection.indices) + len(request.selection.names)
    return max(1, min(named or request.top_k, settings.classes))


def class_of(request: pb.EvaluateRequest, manifest: Manifest) -> IntArray:
    """The class to measure a map for, (1,).

    Raises:
        ClassIndexError: the model does not have it.
    """
    which = request.WhichOneof("class")
    if which is None:
        return np.array([PREDICTED], np.int64)
    item: int | str = request.class_index if which == "class_index" else request.class_name
    if item == "":
        raise ClassIndexError("The class name is empty.", "Leave class_name out for the predicted class.")
    return np.array([manifest.class_index(item)], np.int64)


def metrics_of(request: pb.EvaluateRequest, settings: ServerSettings) -> list[str]:
    """The metrics to compute, each once.

    Raises:
        InvalidInputError: too many.
    """
    if len(request.metrics) > settings.metrics_per_request:
        raise InvalidInputError(
            f"{len(request.metrics)} metrics in a request.", f"Name at most {settings.metrics_per_request}."
        )
    return list(dict.fromkeys(request.metrics)) or ["arcc"]
