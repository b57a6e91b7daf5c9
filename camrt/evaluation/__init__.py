"""Evaluation: is a bundle right, and how good are its explanations."""

from __future__ import annotations

from camrt.evaluation.bundle_check import CheckReport, CheckRow, check_bundle

__all__ = ["CheckReport", "CheckRow", "check_bundle"]
