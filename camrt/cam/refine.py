"""RefineCAM (arXiv 2605.14641): the maps of several layers, coarse to fine, fused into one high-resolution map."""

from __future__ import annotations

from collections.abc import Sequence

from camrt.errors import MethodNotFoundError
from camrt.kernels.backend import FUSIONS, ORDERS, Fusion, Order

REFINECAM = "refinecam"
DEFAULT_BASE, DEFAULT_FUSION, DEFAULT_ORDER = "gradcam++", "product", "normalize_twice"
LAYER_CHOICES = ("all", "top", "above")


def choose_layers(choice: str, names: Sequence[str]) -> tuple[str, ...]:
    """The layers of ``names`` (coarse to fine) that a choice stands for.

    all: every layer. top: the coarsest and the finest. above: the two finest.
    """
    if choice == "top":
        return tuple(dict.fromkeys((names[0], names[-1])))
    return tuple(names[-2:] if choice == "above" else names)


def check_fusion(fusion: str, order: str) -> tuple[Fusion, Order]:
    """Both names, if they are known.

    Raises:
        MethodNotFoundError: one is not.
    """
    if fusion not in FUSIONS:
        raise MethodNotFoundError(f"Unknown fusion {fusion!r}.", f"Choose one of {', '.join(FUSIONS)}.")
    if order not in ORDERS:
        raise MethodNotFoundError(f"Unknown order {order!r}.", f"Choose one of {', '.join(ORDERS)}.")
    return fusion, order
