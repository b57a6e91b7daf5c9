"""Evaluation: is a bundle right, and how good are its explanations."""

from __future__ import annotations

from camrt.evaluation.bundle_check import CheckReport, CheckRow, check_bundle
from camrt.evaluation.config import ConfigError, EvaluationConfig, read_config
from camrt.evaluation.pipeline import EvaluationResult, evaluate
from camrt.evaluation.session import EvaluationSession

__all__ = [
    "CheckReport",
    "CheckRow",
    "ConfigError",
    "EvaluationConfig",
    "EvaluationResult",
    "EvaluationSession",
    "check_bundle",
    "evaluate",
    "read_config",
]
