"""What a report says about the machine, and how threads are kept on the same cores for all contenders."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from camrt.errors import InvalidInputError
from camrt.runtime import available_providers

PACKAGES = ("camrt", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "cupy-cuda13x", "torch")
_THERMAL_ZONES = Path("/sys/class/thermal")
_FREQUENCIES = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def describe_machine() -> dict[str, Any]:
    """Date, processor, cores, memory, load, temperatures, accelerators, packages, providers; the unknown left out."""
    machine: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": _packages(),
        "providers": [status.name for status in available_providers() if status.available],
        "load_average": os.getloadavg()[0],
    }
    optional = {
        "memory_gib": _memory_gib(),
        "frequency_governor": _text(_FREQUENCIES / "scaling_governor"),
        "celsius": _temperatures(),
        "gpu": _gpus(),
    }
    return {**machine, **{name: value for name, value in optional.items() if value}}


def quiet_notes(machine: dict[str, Any]) -> list[str]:
    """Sentences about load and clock settings that make times hard to trust."""
    notes = []
    if machine["load_average"] > 0.25 * machine["cores"]:
        notes.append(
            f"The load average was {machine['load_average']:.2f} on {machine['cores']} cores before anything ran."
        )
    governor = machine.get("frequency_governor")
    if governor is not None and governor != "performance":
        notes.append(f"The frequency governor is {governor!r}; times settle sooner with 'performance'.")
    return notes


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keeps this thread, and the threads that it starts inside, on the first ``threads`` cores it may use.

    Raises:
        InvalidInputError: there are fewer cores.
    """
    if threads < 1 or threads > available_cores():
        raise InvalidInputError(
            f"{threads} threads on {available_cores()} cores.", f"Give 1 to {available_cores()} threads."
        )
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _processor() -> str:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _memory_gib() -> float | None:
    for line in (_text(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemTotal"):
            return round(int(line.split()[1]) / 2**20, 1)
    return None


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _temperatures() -> list[float]:
    zones = sorted(_THERMAL_ZONES.glob("thermal_zone*/temp")) if _THERMAL_ZONES.is_dir() else []
    texts = (_text(zone) for zone in zones)
    return [int(text) / 1000 for text in texts if text and text.lstrip("-").isdecimal()]


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.strip().splitlines()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding=sys.getdefaultencoding()).strip()
    except OSError:
        return None
