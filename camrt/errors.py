"""The tree of typed errors. Every message names the thing, the reason and the next step."""

from __future__ import annotations


class CamrtError(Exception):
    """Base of every error that camrt raises on purpose.

    Args:
        message: what is wrong, naming the thing and the reason.
        next_step: what the caller can do about it; appended to the text as a sentence of its own.
    """

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(f"{message} {next_step}".strip())
        self.message = message
        self.next_step = next_step


class ModelError(CamrtError):
    """A model file cannot be used."""


class InvalidModelError(ModelError):
    """The file is not a readable ONNX model, or is truncated or inconsistent."""


class UnsupportedModelError(ModelError):
    """A valid ONNX model that camrt cannot rewrite (no image input, no class output, an unknown layout)."""


_NO_WORKING_LAYER = (
    "None of the target layers asked for works without it. Name layers between it and the logits: camrt layers MODEL "
    "lists them; or write a rule: docs/adding_an_op.md."
)


class UnsupportedOpError(UnsupportedModelError):
    """An operator without a vjp rule lies between a target layer and the logits.

    Attributes:
        op_type: the ONNX operator.
        reason: why its rule refused it, empty where there is no rule.
        node_name: the node that needs the rule.
        working_layers: those of the target layers asked for that do not depend on it, coarse to fine.
    """

    def __init__(self, op_type: str, node_name: str, working_layers: tuple[str, ...] = (), reason: str = "") -> None:
        works = ", ".join(working_layers)
        super().__init__(
            f"No gradient rule for operator {op_type} (node {node_name!r})" + (f": {reason}." if reason else "."),
            f"These target layers work without it: {works}." if works else _NO_WORKING_LAYER,
        )
        self.reason = reason
        self.op_type = op_type
        self.node_name = node_name
        self.working_layers = working_layers


class LayerNotFoundError(CamrtError, LookupError):
    """A requested target layer does not exist in the model or bundle."""


class BundleError(CamrtError):
    """A bundle file is damaged, has no manifest, or has one of an unknown schema version."""


class InvalidInputError(CamrtError, ValueError):
    """An argument or array has a wrong shape, dtype or value."""


class ImageError(InvalidInputError):
    """An image file or array cannot be decoded or is outside the limits."""


class ClassIndexError(InvalidInputError):
    """A class index, rank or name is not one of the model's classes."""


class MethodNotFoundError(InvalidInputError, LookupError):
    """An unknown CAM method, base method or fusion."""


class MethodUnavailableError(CamrtError):
    """A CAM method needs what this bundle or layer does not have (a linear head, second derivatives)."""


class ImputationError(InvalidInputError):
    """Missing pixels cannot be filled, since no pixel of the image is known."""


class BackendUnavailableError(CamrtError):
    """A kernel backend or execution provider cannot be used here."""
