"""Sessions on OpenVINO's CPU plugin: in float32, or with the backward part in bfloat16 under an exact forward part."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from camrt.errors import BackendUnavailableError, InvalidModelError, UnsupportedModelError
from camrt.runtime.bundle_session import BundleSession
from camrt.runtime.openvino_precision import keep_forward_exact, rounded_forward_nodes
from camrt.types import AnyArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    import openvino

OPENVINO, OPENVINO_BFLOAT16 = "openvino", "openvino-bf16"
OPENVINO_PROVIDERS = (OPENVINO, OPENVINO_BFLOAT16)
_INSTALL = "Install it with: pip install 'camrt[openvino]'"
_LOW = "bf16"
_LEAST_CORRELATION_BFLOAT16 = 0.99


def openvino_detail(provider: str) -> str:
    """What runs the provider here, for people.

    Raises:
        BackendUnavailableError: OpenVINO is not installed, or the processor has no bfloat16 arithmetic.
    """
    core = _core()
    processor = core.get_property("CPU", "FULL_DEVICE_NAME")
    if provider == OPENVINO_BFLOAT16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendUnavailableError(
            f"Provider {provider!r} needs bfloat16 arithmetic, which {processor} does not have.", "Use 'openvino'."
        )
    return f"OpenVINO {_module().__version__.split('-')[0]} on {processor}"


@dataclass(slots=True)
class _Engine:
    """A compiled graph and its idle requests; a request serves one thread at a time."""

    model: openvino.CompiledModel
    idle: queue.SimpleQueue[openvino.InferRequest] = field(default_factory=queue.SimpleQueue)

    @contextmanager
    def request(self) -> Iterator[openvino.InferRequest]:
        try:
            request = self.idle.get_nowait()
        except queue.Empty:
            request = self.model.create_infer_request()
        try:
            yield request
        finally:
            self.idle.put(request)


class OpenVinoSession(BundleSession[_Engine]):
    """A bundle on OpenVINO. See camrt.runtime.session.Session for the methods.

    With "openvino-bf16" all that logits, classes and activations are computed from stays in float32, and the rest
    computes in bfloat16: gradients are rounded to 8 bits of mantissa on their way.

    Args:
        path: the bundle.
        provider: "openvino" or "openvino-bf16".
        threads: of a run; 0 = one a core.

    Raises:
        InvalidModelError, BundleError: the file cannot be used.
        BackendUnavailableError: the provider cannot be used here.
        InvalidInputError: a negative number of threads.
    """

    def __init__(self, path: str | os.PathLike[str], provider: str = OPENVINO, threads: int = 0) -> None:
        openvino_detail(provider)
        self._low_precision = provider == OPENVINO_BFLOAT16
        super().__init__(path, threads)
        self._core = _core()

    @property
    def least_correlation(self) -> float:
        """See BundleSession.least_correlation; gradients in bfloat16 need not reach what float32 does."""
        own = super().least_correlation
        return min(own, _LEAST_CORRELATION_BFLOAT16) if self._low_precision else own

    def _open(self, outputs: tuple[str, ...], cut_at: str | None) -> _Engine:
        graph = self._model.complete(outputs, cut_at)
        mixed, exact = self._low_precision and self.manifest.class_index_output in outputs, self._exact(outputs)
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self._threads or (os.cpu_count() or 1),
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _LOW if mixed else "f32",
        }
        try:
            model = self._core.read_model(model=graph)
            if mixed:
                model = keep_forward_exact(self._core, model, exact)
            compiled = self._core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise InvalidModelError(
                f"OpenVINO cannot load {self._path}: {_first_line(error)}.", "Use provider 'cpu'."
            ) from error
        if mixed:
            self._check_exact(compiled, exact)
        return _Engine(compiled)

    def _execute(self, engine: _Engine, feeds: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        with engine.request() as request:
            try:
                results = request.infer(dict(feeds))
            except RuntimeError as error:
                raise InvalidModelError(
                    f"OpenVINO cannot run {self._path}: {_first_line(error)}.", "Use provider 'cpu'."
                ) from error
            return [results[index] for index in range(len(engine.model.outputs))]

    def _exact(self, outputs: Sequence[str]) -> list[int]:
        """Positions of the outputs of the forward part."""
        manifest = self.manifest
        names = {manifest.logits, manifest.class_index_output}
        names.update(layer.activations for layer in manifest.target_layers)
        return [position for position, name in enumerate(outputs) if name in names]

    def _check_exact(self, compiled: openvino.CompiledModel, exact: Sequence[int]) -> None:
        """UnsupportedModelError where a node of the forward part would compute in bfloat16 all the same."""
        if rounded := rounded_forward_nodes(compiled, exact):
            raise UnsupportedModelError(
                f"OpenVINO would round the forward part of {self._path} to bfloat16, at {', '.join(rounded[:3])}.",
                "Use provider 'openvino', which computes in float32 throughout.",
            )


def _module() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailableError(f"OpenVINO is not installed ({error}).", _INSTALL) from error
    return openvino


def _core() -> openvino.Core:
    core: openvino.Core = _module().Core()
    return core


def _first_line(error: RuntimeError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
