"""CAM methods, and RefineCAM over any of them."""

from __future__ import annotations

from camrt.cam.method import CamMethod, MapRequest, Perturbation
from camrt.cam.methods import CAM_METHODS, GRADIENT_METHODS, available_methods, cam_method
from camrt.cam.plan import Plan, make_plan
from camrt.cam.refine import LAYER_CHOICES, REFINECAM

__all__ = [
    "CAM_METHODS",
    "GRADIENT_METHODS",
    "LAYER_CHOICES",
    "REFINECAM",
    "CamMethod",
    "MapRequest",
    "Perturbation",
    "Plan",
    "available_methods",
    "cam_method",
    "make_plan",
]
