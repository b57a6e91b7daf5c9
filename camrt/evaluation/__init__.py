"""Evaluation: is a bundle right, and how good are its explanations."""

from __future__ import annotations

from camrt.evaluation.bundle_check import CheckReport, check_bundle
from camrt.evaluation.check_row import CheckRow
from camrt.evaluation.config import ConfigError, EvaluationConfig, read_config
from camrt.evaluation.map_fidelity import FidelityReport, map_fidelity
from camrt.evaluation.pipeline import EvaluationResult, evaluate
from camrt.evaluation.session import EvaluationSession

__all__ = [
    "CheckReport",
    "CheckRow",
    "ConfigError",
    "EvaluationConfig",
    "EvaluationResult",
    "EvaluationSession",
    "FidelityReport",
    "check_bundle",
    "evaluate",
    "map_fidelity",
    "read_config",
]
