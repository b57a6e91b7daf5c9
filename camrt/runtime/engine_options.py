"""What a GPU engine is built and run with: one place for arguments, and for the environment of a server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from camrt.bundle import Manifest
from camrt.errors import InvalidInputError

BATCH_VARIABLE, CACHE_VARIABLE = "CAMRT_ENGINE_BATCH", "CAMRT_ENGINE_CACHE"
GRAPHS_VARIABLE, TF32_VARIABLE = "CAMRT_CUDA_GRAPHS", "CAMRT_TF32"
_LARGEST_BATCH = 4096


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How engines are built.

    Attributes:
        batches: batch buckets, rising: an engine is tuned for each, and larger batches run in parts.
        cache: folder of built engines.
        cuda_graphs: records the launches of a bucket once and replays them; batches are then filled up to a bucket.
        tf32: lets products of float32 round their factors to 10 bits, as GPUs since Ampere can; faster, and still
            compared with the CPU by the limits of the bundle's precision.
        check: compares the engine with the CPU provider when it is loaded, see camrt.runtime.parity.
    """

    batches: tuple[int, ...] = (1, 8)
    cache: Path = field(default_factory=lambda: default_cache(os.environ))
    cuda_graphs: bool = False
    tf32: bool = False
    check: bool = True

    def __post_init__(self) -> None:
        rising = list(self.batches) == sorted(set(self.batches))
        if not self.batches or not rising or self.batches[0] < 1 or self.batches[-1] > _LARGEST_BATCH:
            raise InvalidInputError(
                f"Batch buckets are {self.batches}.", f"Give rising numbers from 1 to {_LARGEST_BATCH}, as in 1,8."
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> EngineOptions:
        """From CAMRT_ENGINE_BATCH (1,8), CAMRT_ENGINE_CACHE (a folder), CAMRT_CUDA_GRAPHS, CAMRT_TF32 (0 or 1).

        Raises:
            InvalidInputError: a value that cannot be read.
        """
        return cls(
            parse_batches(environment.get(BATCH_VARIABLE, "1,8")),
            default_cache(environment),
            cuda_graphs=_switch(environment, GRAPHS_VARIABLE),
            tf32=_switch(environment, TF32_VARIABLE),
        )

    def bucket(self, batch: int) -> int:
        """The index of the smallest bucket that holds ``batch``, at most the largest bucket."""
        return next(index for index, size in enumerate(self.batches) if size >= batch)


def _switch(environment: Mapping[str, str], variable: str) -> bool:
    """Whether a variable is 1; InvalidInputError where it is neither that nor 0."""
    value = environment.get(variable, "0")
    if value not in ("0", "1"):
        raise InvalidInputError(f"{variable} is {value!r}.", "Set it to 0 or 1.")
    return value == "1"


def parse_batches(text: str) -> tuple[int, ...]:
    """``1,8`` as (1, 8).

    Raises:
        InvalidInputError: another text.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InvalidInputError(f"Batch buckets are {text!r}.", "Give numbers separated by commas, as in 1,8.")
    return tuple(map(int, parts))


def default_cache(environment: Mapping[str, str]) -> Path:
    """CAMRT_ENGINE_CACHE, or camrt/engines in the user's cache."""
    if chosen := environment.get(CACHE_VARIABLE):
        return Path(chosen)
    base = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "~")).expanduser() / ".cache")
    return Path(base) / "camrt" / "engines"


def input_tail(manifest: Manifest, name: str) -> tuple[int, ...]:
    """The shape without its first axis of an input of a bundle's graph, or of a graph cut at a layer's activations."""
    if name == manifest.class_index_input:
        return ()
    if name == manifest.input_name:
        channels, height, width = manifest.input_shape
        return manifest.input_shape if manifest.input_layout == "NCHW" else (height, width, channels)
    return next(layer.shape for layer in manifest.target_layers if layer.activations == name)
