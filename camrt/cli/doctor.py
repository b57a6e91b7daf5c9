"""``camrt doctor``."""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from camrt.cli._console import JsonOption, print_fields, print_json, print_table

_PACKAGES = ("camrt", "numpy", "onnx", "onnx-ir", "onnxruntime", "pillow")
_CPU_FEATURES = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "asimd", "sve")
_NEEDED = ("native", "cpu")


def doctor(as_json: JsonOption = False) -> None:
    """Show versions, CPU features, kernel backends, execution providers and GPU parts: what works, and if not why.

    Exit code 1 where the native backend or the CPU provider does not work.
    """
    report = _collect()
    if as_json:
        print_json(report)
    else:
        print_fields(
            [*report["versions"].items(), ("platform", report["platform"]), ("cpu", _describe_cpu(report["cpu"]))]
        )
        for kind in ("backends", "providers", "gpu"):
            print_table(
                (kind, "works", "detail"),
                ((row["name"], "yes" if row["available"] else "no", row["detail"]) for row in report[kind]),
            )
    broken = [
        row for row in report["backends"] + report["providers"] if row["name"] in _NEEDED and not row["available"]
    ]
    raise typer.Exit(1 if broken else 0)


def _collect() -> dict[str, Any]:
    from camrt.kernels import available_backends
    from camrt.runtime import available_providers
    from camrt.runtime.gpu_pieces import gpu_pieces

    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "backends": [dataclasses.asdict(row) for row in available_backends()],
        "providers": [dataclasses.asdict(row) for row in available_providers()],
        "gpu": [dataclasses.asdict(row) for row in gpu_pieces()],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> dict[str, Any]:
    """Model and SIMD features as Linux reports them; elsewhere only what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = known.get("flags", known.get("Features", "")).split()
    return {
        "model": known.get("model name") or platform.processor() or platform.machine(),
        "features": [feature for feature in _CPU_FEATURES if feature in flags],
    }


def _describe_cpu(cpu: dict[str, Any]) -> str:
    return f"{cpu['model']} ({', '.join(cpu['features']) or 'features unknown'})"
