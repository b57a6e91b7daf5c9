"""A model that serves, and where the versions of a model stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from camrt.explainer import Explainer

ModelState: TypeAlias = Literal["loading", "ready", "unloading", "failed"]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LoadedModel:
    """A model that is ready. Two objects are equal only if they are the same, so that a reload is another model.

    Attributes:
        name: its name in the repository.
        version: a number, as text.
        explainer: the open bundle, warmed up.
        digest: SHA-256 of the bundle file, hex.
        provider: execution provider.
    """

    name: str
    version: str
    explainer: Explainer
    digest: str
    provider: str


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Where one version of a model stands; ``reason`` says why it failed, ``digest`` is empty until it is ready."""

    name: str
    version: str
    state: ModelState
    reason: str = ""
    digest: str = ""
