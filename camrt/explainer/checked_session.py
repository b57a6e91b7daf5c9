"""A session that asks before every run whether it should go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from camrt.runtime.session import Session
from camrt.types import FloatArray, IntArray, SessionOutputs


class CheckedSession:
    """A session that calls ``checkpoint`` before every run; what that raises is raised to the caller."""

    def __init__(self, session: Session, checkpoint: Callable[[], None]) -> None:
        self.manifest = session.manifest
        self._session = session
        self._checkpoint = checkpoint

    def predict(self, inputs: FloatArray) -> FloatArray:
        """See Session.predict."""
        self._checkpoint()
        return self._session.predict(inputs)

    def prepare(self, layers: Sequence[str], derivatives: int = 1) -> None:
        """See Session.prepare."""
        self._checkpoint()
        self._session.prepare(layers, derivatives)

    def run(
        self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str], derivatives: int = 1
    ) -> SessionOutputs:
        """See Session.run."""
        self._checkpoint()
        return self._session.run(inputs, class_indices, layers, derivatives)

    def run_from_layer(self, layer: str, activations: FloatArray) -> FloatArray:
        """See Session.run_from_layer."""
        self._checkpoint()
        return self._session.run_from_layer(layer, activations)

    def target_gradients_from_layer(self, layer: str, activations: FloatArray, class_indices: IntArray) -> FloatArray:
        """See Session.target_gradients_from_layer."""
        self._checkpoint()
        return self._session.target_gradients_from_layer(layer, activations, class_indices)
