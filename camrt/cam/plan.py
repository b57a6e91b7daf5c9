"""What one call to an explainer computes, with every name checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from camrt.bundle import Manifest
from camrt.cam.method import DEFAULT_PERTURBATION, CamMethod, MapRequest, Perturbation
from camrt.cam.methods import CAM_METHODS, cam_method
from camrt.cam.refine import LAYER_CHOICES, REFINECAM, check_fusion, choose_layers
from camrt.errors import InvalidInputError, MethodNotFoundError
from camrt.kernels.backend import Fusion, Order
from camrt.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Plan:
    """One method over some layers.

    Attributes:
        method: "refinecam", or a key of CAM_METHODS.
        base: how each layer's map is made; with another method than refinecam, that method.
        fusion: how the layers are combined.
        order: how they are brought to one size.
        layers: coarse to fine.
        perturbation: limits of base methods that run the model once a channel.
    """

    method: str
    base: CamMethod
    fusion: Fusion
    order: Order
    layers: tuple[str, ...]
    perturbation: Perturbation = DEFAULT_PERTURBATION

    @property
    def refines(self) -> bool:
        """Whether several layers are fused."""
        return self.method == REFINECAM

    def request(self, inputs: FloatArray, class_indices: IntArray) -> MapRequest:
        """What the base method is asked for."""
        return MapRequest(inputs, class_indices, self.layers, self.perturbation)


def check_method(name: str) -> None:
    """Refuse a method that is neither refinecam nor a key of CAM_METHODS.

    Raises:
        MethodNotFoundError: it is unknown.
    """
    if name != REFINECAM and name not in CAM_METHODS:
        known = ", ".join((REFINECAM, *CAM_METHODS))
        raise MethodNotFoundError(f"Unknown CAM method {name!r}.", f"Choose one of {known}.")


def make_plan(
    manifest: Manifest,
    method: str,
    base_method: str,
    fusion: str,
    target_layers: str | Sequence[str] | None,
    order: str,
    perturbation: Perturbation | None = None,
) -> Plan:
    """The plan that the arguments of Explainer.explain describe.

    Raises:
        MethodNotFoundError: an unknown method, base method, fusion or order.
        LayerNotFoundError: a layer that the bundle does not have.
        InvalidInputError: no layer, or several for a method of one layer.
        MethodUnavailableError: the bundle or a layer lacks what the method needs.
    """
    layers = _layers(manifest, method, target_layers)
    checked_fusion, checked_order = check_fusion(fusion, order)
    limits = perturbation or DEFAULT_PERTURBATION
    if method == REFINECAM:
        base = cam_method(base_method)
        base.require(manifest, layers)
        return Plan(method, base, checked_fusion, checked_order, layers, limits)
    check_method(method)
    if len(layers) > 1:
        raise InvalidInputError(
            f"Method {method!r} explains one layer, not {len(layers)}.",
            f"Name one, or use method={REFINECAM!r} with base_method={method!r}.",
        )
    base = cam_method(method)
    base.require(manifest, layers)
    return Plan(method, base, checked_fusion, checked_order, layers, limits)


def _layers(manifest: Manifest, method: str, target_layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of layers, coarse to fine. A choice may stand alone in a list: messages of a server have nothing else."""
    names = manifest.layer_names
    if target_layers is None:
        return names if method == REFINECAM else names[:1]
    given = [target_layers] if isinstance(target_layers, str) else target_layers
    if not isinstance(given, Iterable):
        raise InvalidInputError(f"target_layers is {given!r}.", f"Name some of {', '.join(names)}.")
    given = list(given)
    if len(given) == 1 and given[0] in LAYER_CHOICES:
        return choose_layers(given[0], names)
    wanted = {manifest.layer(name).name for name in given}
    if not wanted:
        raise InvalidInputError("target_layers is empty.", f"Name some of {', '.join(names)}.")
    return tuple(name for name in names if name in wanted)
