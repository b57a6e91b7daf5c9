"""Which models the parity tests run over, and on which images and classes.

The images and classes are those that `choose_cases` finds sound; the weights' seed is 0 everywhere, and the models
are conditioned on their images (tests.conditioning).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.models import ARCHITECTURES, EXPORTERS, Exporter

SMALL, FULL = 96, 224
NUM_CLASSES = {SMALL: 20, FULL: 1000}
# Both exporters by default on those that export fast.
DYNAMO_BY_DEFAULT = ("resnet18", "mobilenet_v3_small")


@dataclass(frozen=True, slots=True)
class Image:
    """The seed of an image, and the given class that is explained in it (the other one is the prediction)."""

    seed: int
    class_index: int


@dataclass(frozen=True, slots=True)
class Case:
    """One exported model."""

    architecture: str
    exporter: Exporter
    size: int

    @property
    def id(self) -> str:
        return f"{self.architecture}-{self.exporter}-{self.size}"

    @property
    def key(self) -> tuple[str, int]:
        """Into IMAGES."""
        return self.architecture, self.size

    @property
    def num_classes(self) -> int:
        return NUM_CLASSES[self.size]


IMAGES: dict[tuple[str, int], tuple[Image, Image]] = {
    ("resnet18", SMALL): (Image(100, 1), Image(101, 1)),
    ("resnet50", SMALL): (Image(102, 10), Image(103, 7)),
    ("vgg11_bn", SMALL): (Image(100, 4), Image(101, 1)),
    ("vgg16", SMALL): (Image(100, 1), Image(101, 1)),
    ("mobilenet_v2", SMALL): (Image(100, 1), Image(101, 4)),
    ("mobilenet_v3_small", SMALL): (Image(100, 1), Image(101, 1)),
    ("efficientnet_b0", SMALL): (Image(110, 16), Image(111, 13)),
    ("densenet121", SMALL): (Image(116, 10), Image(117, 4)),
    ("squeezenet1_1", SMALL): (Image(100, 1), Image(101, 1)),
    ("convnext_tiny", SMALL): (Image(100, 1), Image(101, 1)),
    ("resnet18", FULL): (Image(100, 1), Image(101, 1)),
    ("resnet50", FULL): (Image(100, 333), Image(101, 1)),
    ("vgg11_bn", FULL): (Image(100, 1), Image(101, 1)),
    ("vgg16", FULL): (Image(116, 1), Image(117, 1)),
    ("mobilenet_v2", FULL): (Image(100, 1), Image(101, 1)),
    ("mobilenet_v3_small", FULL): (Image(110, 1), Image(111, 333)),
    ("efficientnet_b0", FULL): (Image(110, 665), Image(111, 333)),
    ("densenet121", FULL): (Image(120, 1), Image(121, 1)),
    ("squeezenet1_1", FULL): (Image(100, 1), Image(101, 1)),
    ("convnext_tiny", FULL): (Image(100, 1), Image(101, 1)),
}


def _parameters() -> list[Any]:
    default, slow = [], []
    for architecture in ARCHITECTURES:
        for exporter in EXPORTERS:
            small, full = Case(architecture, exporter, SMALL), Case(architecture, exporter, FULL)
            by_default = exporter == "torchscript" or architecture in DYNAMO_BY_DEFAULT
            (default if by_default else slow).append(small)
            slow.append(full)
    return [
        *(pytest.param(case, id=case.id) for case in default),
        *(pytest.param(case, id=case.id, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]) for case in slow),
    ]


CASES = _parameters()
