"""What a GPU path is made of, piece by piece: whether each is here, and how to get it. Nothing is imported."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from camrt.errors import BackendUnavailableError
from camrt.runtime.cuda_driver import cuda_driver
from camrt.runtime.providers import ProviderStatus

_CUDA_MAJORS = (13, 12)


@dataclass(frozen=True, slots=True)
class _Library:
    """A shared library that is found by the loader, or comes with a package of PyPI.

    Attributes:
        sonames: its names, newest first.
        packages: distributions that bring it.
        install: how to get it.
    """

    sonames: tuple[str, ...]
    packages: tuple[str, ...]
    install: str


_TOOLKIT = "Install NVIDIA's CUDA toolkit"
_LIBRARIES = {
    "CUDA runtime": _Library(
        tuple(f"libcudart.so.{major}" for major in _CUDA_MAJORS),
        ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"),
        f"{_TOOLKIT}, or: pip install 'onnxruntime-gpu[cuda,cudnn]'.",
    ),
    "cuBLAS": _Library(
        tuple(f"libcublas.so.{major}" for major in _CUDA_MAJORS),
        ("nvidia-cublas", "nvidia-cublas-cu12"),
        f"{_TOOLKIT}, or: pip install 'onnxruntime-gpu[cuda,cudnn]'.",
    ),
    "cuDNN": _Library(
        ("libcudnn.so.9",),
        ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
        "pip install 'onnxruntime-gpu[cuda,cudnn]', or install cuDNN 9.",
    ),
}
_PACKAGES = {
    "onnxruntime-gpu": (("onnxruntime-gpu",), "pip uninstall onnxruntime, then pip install onnxruntime-gpu."),
    "tensorrt": (
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "Only for providers tensorrt and tensorrt-ort: pip install 'camrt[tensorrt]'.",
    ),
    "cupy": (("cupy-cuda13x", "cupy-cuda12x", "cupy"), "For the cuda kernels: pip install 'camrt[cuda]'."),
    "numba": (("numba",), "For the cuda kernels: pip install 'camrt[cuda]'."),
}


def gpu_pieces() -> tuple[ProviderStatus, ...]:
    """One status a piece, from the driver up."""
    return (
        _status("NVIDIA driver", lambda: str(cuda_driver().info)),
        *(ProviderStatus(name, *_library(library)) for name, library in _LIBRARIES.items()),
        *(ProviderStatus(name, *_package(names, install)) for name, (names, install) in _PACKAGES.items()),
        _status("nvcc", _compiler),
    )


def _status(name: str, detail: Callable[[], str]) -> ProviderStatus:
    try:
        return ProviderStatus(name, True, detail())
    except BackendUnavailableError as error:
        return ProviderStatus(name, False, str(error))


def _library(library: _Library) -> tuple[bool, str]:
    for soname in library.sonames:
        try:
            ctypes.CDLL(soname)
        except OSError:
            continue
        return True, soname
    found = _distribution(library.packages)
    if found is not None:
        return True, f"{found}, which ONNX Runtime and CuPy load by themselves"
    return False, f"{' and '.join(library.sonames)} cannot be loaded. {library.install}"


def _package(names: tuple[str, ...], install: str) -> tuple[bool, str]:
    found = _distribution(names)
    return (True, found) if found is not None else (False, f"Not installed. {install}")


def _distribution(names: tuple[str, ...]) -> str | None:
    """Name and version of the first of these distributions that is installed."""
    for name in names:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return None


def _compiler() -> str:
    path = shutil.which("nvcc")
    if path is None:
        raise BackendUnavailableError(
            "nvcc is not on the PATH.",
            f"Only to compile the kernels' sources in tests: {_TOOLKIT[0].lower()}{_TOOLKIT[1:]}.",
        )
    return path
