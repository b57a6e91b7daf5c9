"""CAM methods, and RefineCAM over any of them."""

from __future__ import annotations

from camrt.cam.method import CamMethod, MapRequest, Perturbation
from camrt.cam.methods import CAM_METHODS, GRADIENT_METHODS, available_methods, cam_method
from camrt.cam.plan import Plan, check_method, make_plan
from camrt.cam.ranks import resolve_ranks
from camrt.cam.refine import DEFAULT_BASE, DEFAULT_FUSION, DEFAULT_ORDER, LAYER_CHOICES, REFINECAM

__all__ = [
    "CAM_METHODS",
    "DEFAULT_BASE",
    "DEFAULT_FUSION",
    "DEFAULT_ORDER",
    "GRADIENT_METHODS",
    "LAYER_CHOICES",
    "REFINECAM",
    "CamMethod",
    "MapRequest",
    "Perturbation",
    "Plan",
    "available_methods",
    "cam_method",
    "check_method",
    "make_plan",
    "resolve_ranks",
]
