"""What a CAM method is: how the model is run for it, and how the arrays become the maps of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias

import numpy as np

from camrt.bundle import Manifest
from camrt.errors import ClassIndexError, InvalidInputError
from camrt.kernels import KernelBackend, as_numpy
from camrt.runtime.session import Session
from camrt.types import FloatArray, IntArray, LayerOutputs, SessionOutputs


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What the methods that run the model once a channel (scorecam, ablationcam) may spend.

    Attributes:
        channels: most channels of a layer that are tried: those whose activations vary most over positions (standard
            deviation). The others get no weight. None tries every channel.
        memory_bytes: most bytes of changed images, or changed activations, in one run of the model; what the engine
            needs for its own arrays comes on top. A run has at least one.
        progress: called after every run with the numbers of channels done and in all.

    Raises:
        InvalidInputError: no channel or no memory.
    """

    channels: int | None = None
    memory_bytes: int = 16 << 20
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.channels is not None and not (isinstance(self.channels, SupportsIndex) and self.channels >= 1):
            raise InvalidInputError(f"channels is {self.channels}.", "Give 1 or more, or None for every channel.")
        if self.memory_bytes < 1:
            raise InvalidInputError(f"memory_bytes is {self.memory_bytes}.", "Give the bytes that a run may hold.")


DEFAULT_PERTURBATION = Perturbation()


@dataclass(frozen=True, slots=True, eq=False)
class MapRequest:
    """What is to be explained.

    Attributes:
        inputs: (N, C, H, W) float32.
        class_indices: (M,) int64, M = N, or any M with N = 1; -r is the class with the r-th highest logit.
        layers: names of target layers, coarse to fine.
        perturbation: limits of the methods that run the model once a channel.
    """

    inputs: FloatArray
    class_indices: IntArray
    layers: tuple[str, ...]
    perturbation: Perturbation = DEFAULT_PERTURBATION

    def rows_of_images(self) -> list[IntArray]:
        """For each image the rows of ``class_indices`` that are its own: one, or all of them where N = 1.

        Raises:
            ClassIndexError: another number of classes.
        """
        if len(self.inputs) not in (1, len(self.class_indices)):
            raise ClassIndexError(
                f"{len(self.class_indices)} class indices for {len(self.inputs)} images.",
                "Give one an image, or several for a single image.",
            )
        rows = np.arange(len(self.class_indices))
        return [rows] if len(self.inputs) == 1 else list(rows[:, None])


Collect: TypeAlias = Callable[[Session, MapRequest], SessionOutputs]
LayerMaps: TypeAlias = Callable[[KernelBackend, Sequence[LayerOutputs]], list[FloatArray]]
Requirement: TypeAlias = Callable[[Manifest, Sequence[str]], None]


def run_once(session: Session, request: MapRequest) -> SessionOutputs:
    """One run with gradients."""
    return session.run(request.inputs, request.class_indices, request.layers)


def run_to_host(session: Session, request: MapRequest) -> SessionOutputs:
    """One run with gradients, for maps that NumPy makes: with ``run_once`` arrays may be left on a GPU."""
    return run_once(session, request)


def run_forward(session: Session, request: MapRequest) -> SessionOutputs:
    """One run without the backward part."""
    return session.run(request.inputs, request.class_indices, request.layers, derivatives=0)


def run_second_order(session: Session, request: MapRequest) -> SessionOutputs:
    """One run with gradients and Hessian-vector products."""
    return session.run(request.inputs, request.class_indices, request.layers, derivatives=2)


def nothing(_manifest: Manifest, _layers: Sequence[str]) -> None:
    """Every bundle has what the method needs."""


@dataclass(frozen=True, slots=True)
class CamMethod:
    """One method.

    Attributes:
        name: its name in the API.
        layer_maps: (backend, what ``collect`` found for L layers) -> L maps, (M, h, w) in [0, 1] each; (N, h, w) where
            they do not depend on the class.
        collect: runs the model: (session, request) -> logits, explained classes, arrays of the layers.
        derivatives: of the runs, see Session.run; what ``Session.prepare`` is asked for.
        require: raises MethodUnavailableError where (manifest, layers) lack something.
        expensive: whether the model runs once a channel of every layer, and not a few times.
    """

    name: str
    layer_maps: LayerMaps
    collect: Collect = run_once
    derivatives: int = 1
    require: Requirement = nothing
    expensive: bool = False

    def maps(self, backend: KernelBackend, outputs: SessionOutputs) -> list[FloatArray]:
        """The map of every explained class at every layer, L of (M, h, w)."""
        count = len(outputs.class_indices)
        found = self.layer_maps(backend, outputs.layers)
        return [maps if len(maps) == count else np.repeat(as_numpy(maps), count, axis=0) for maps in found]
