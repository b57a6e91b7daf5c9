"""CAM methods, and RefineCAM over any of them."""

from __future__ import annotations

from camrt.cam.methods import CAM_METHODS, CamMethod, cam_method
from camrt.cam.plan import Plan, make_plan
from camrt.cam.refine import LAYER_CHOICES, REFINECAM

__all__ = ["CAM_METHODS", "LAYER_CHOICES", "REFINECAM", "CamMethod", "Plan", "cam_method", "make_plan"]
