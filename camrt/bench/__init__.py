"""Benchmarks that run on any machine: latency, throughput, image sizes, kernels, a server, and the machine's limits.

Contenders take turns on the same inputs in one process; times are medians with percentiles, ratios are formed pair by
pair within a round. A report holds the environment and says when the machine was not quiet.
"""

from __future__ import annotations

from camrt.bench.compare import Change, compare_reports
from camrt.bench.report import Report, load_report
from camrt.bench.turns import Contender, Measured, take_turns

__all__ = ["Change", "Contender", "Measured", "Report", "compare_reports", "load_report", "take_turns"]
