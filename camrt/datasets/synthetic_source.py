"""The synthetic shapes as a data set of an evaluation: grouped by object size, with exact object masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from camrt.datasets.protocol import Problem, Sample
from camrt.datasets.synthetic_shapes import CLASS_NAMES, MAX_SIZE, MIN_SIZE, SIZE_RANGES, SyntheticShapes

UNKNOWN_SHAPE = "shape that is no class of the model"


@dataclass(frozen=True, slots=True)
class ShapeItem:
    """One synthetic picture; see DatasetItem. The group is its size range."""

    item_id: str
    class_index: int | None
    group: str
    shapes: SyntheticShapes
    index: int

    def load(self) -> Sample:
        """Draws the picture."""
        drawn = self.shapes.item(self.index)
        return Sample(Image.fromarray(drawn.image), drawn.object_mask)


@dataclass(slots=True)
class ShapesDataset:
    """The first items of a split of SyntheticShapes.

    Args:
        split: of SyntheticShapes.
        length: number of items.
        input_size: (H, W) of the model; pictures are drawn at its longer side.
        class_names: of the model. A shape that is none of them has no class; without names, indices are taken.

    Raises:
        InvalidInputError: an argument is outside the values of SyntheticShapes.
    """

    split: str
    length: int
    input_size: tuple[int, int]
    class_names: Sequence[str] | None
    items: list[ShapeItem] = field(init=False)
    problems: list[Problem] = field(init=False)
    has_masks: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        side = min(max(*self.input_size, MIN_SIZE), MAX_SIZE)
        shapes = SyntheticShapes(self.split, self.length, side)
        names = CLASS_NAMES if self.class_names is None else tuple(self.class_names)
        classes = {name: names.index(name) if name in names else None for name in CLASS_NAMES}
        self.items = []
        for index in range(self.length):
            class_index, size_range = shapes.label(index)
            name = f"{self.split}/{index:06d}"
            self.items.append(ShapeItem(name, classes[CLASS_NAMES[class_index]], size_range, shapes, index))
        self.problems = [
            Problem(UNKNOWN_SHAPE, name, "its pictures have no class")
            for name, index in classes.items()
            if index is None
        ]

    @property
    def name(self) -> str:
        """Split and number of items."""
        return f"synthetic shapes, split {self.split}, {self.length} images"

    @property
    def fingerprint(self) -> str:
        """Split, length, size of the pictures and the classes of the shapes."""
        classes = ", ".join(str(item.class_index) for item in self.items[: len(CLASS_NAMES) * len(SIZE_RANGES)])
        return f"{self.name}, {self.items[0].shapes.size} px, classes {classes}"
