"""Images from a folder, with their classes where folders name them, and object masks from a second folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from camrt.datasets.masks import MASK_SUFFIX, load_mask
from camrt.datasets.protocol import DatasetError, Problem, Sample
from camrt.errors import ImageError
from camrt.json_values import storable
from camrt.preprocess import IMAGE_SUFFIXES, load_image

UNREADABLE_IMAGE = "unreadable image"
NOT_AN_IMAGE = "file that is no image"
UNKNOWN_CLASS = "unknown class folder"
EMPTY_FOLDER = "folder without images"
UNREADABLE_FOLDER = "unreadable folder"
IMAGE_WITHOUT_MASK = "image without a mask"
MASK_WITHOUT_IMAGE = "mask without an image"
UNUSABLE_MASK = "unusable mask"


@dataclass(frozen=True, slots=True)
class FolderItem:
    """One image file; see DatasetItem.

    Attributes:
        item_id: path relative to the data set, of UTF-8 text.
        class_index: what its class folder says, or None.
        group: name of its class folder, empty where there is none.
        path: the file.
        mask_path: its mask, or None.
    """

    item_id: str
    class_index: int | None
    group: str
    path: Path
    mask_path: Path | None = None

    def load(self) -> Sample:
        """Reads the image and its mask; a mask that cannot be used becomes the sample's problem.

        Raises:
            ImageError: the image cannot be read.
        """
        try:
            is_file = self.path.is_file()
        except OSError as error:
            raise ImageError(f"{self.path} cannot be reached: {error.strerror}.", "Check its permissions.") from error
        if not is_file:
            raise ImageError(f"{self.path} is not a file.", "Check the path.")
        image = load_image(self.path)
        if self.mask_path is None:
            return Sample(image)
        try:
            return Sample(image, load_mask(self.mask_path, image.size))
        except ImageError as error:
            return Sample(image, None, Problem(UNUSABLE_MASK, self.item_id, str(error)))


@dataclass(slots=True)
class FolderDataset:
    """A flat folder of images, or a tree whose first level names the classes (torchvision's ImageFolder).

    Class folders are matched with ``class_names``, then with class indices. The images of a folder that is neither have
    no class; the folder is a problem. Masks lie under ``masks`` at the image's relative path, with the suffix .png. All
    that cannot be used is in ``problems``, or becomes one when an item loads; items are in the order of their paths.

    Args:
        root: the folder.
        class_names: of the model, in the order of its logits; or None.
        num_classes: K.
        masks: folder of object masks, or None.

    Raises:
        DatasetError: a folder does not exist, or there is no image at all.
    """

    root: Path
    class_names: Sequence[str] | None
    num_classes: int
    masks: Path | None = None
    items: list[FolderItem] = field(init=False, default_factory=list)
    problems: list[Problem] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        for folder in (self.root, self.masks):
            if folder is not None and (_identity(folder) is None or not folder.is_dir()):
                raise DatasetError(f"{_text(folder)} is not a folder.", "Give the folder that holds the images.")
        if self.masks is not None and _identity(self.masks) == _identity(self.root):
            raise DatasetError(
                f"{_text(self.root)} holds images and masks.", "Put the masks into a folder of their own."
            )
        files = sorted(self._files(self.root, self.masks), key=lambda path: path.parts)
        images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise DatasetError(
                f"The folder {_text(self.root)} has no image.", f"Images end in {', '.join(IMAGE_SUFFIXES)}."
            )
        self.problems += [
            Problem(NOT_AN_IMAGE, _text(path)) for path in files if path.suffix.lower() not in IMAGE_SUFFIXES
        ]
        classes = self._classes(images)
        masks = self._masks(images)
        taken: set[str] = set()
        for path in images:
            label = path.parts[0] if len(path.parts) > 1 else ""
            mask = masks.get(path.with_suffix(""))
            item = FolderItem(_free_id(path, taken), classes.get(label), _text(label), self.root / path, mask)
            if self.masks is not None and mask is None:
                self.problems.append(Problem(IMAGE_WITHOUT_MASK, item.item_id))
            self.items.append(item)

    @property
    def name(self) -> str:
        """The folder's path."""
        return _text(self.root)

    @property
    def has_masks(self) -> bool:
        """Whether a folder of masks was given."""
        return self.masks is not None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over paths, classes, sizes and times of change of the images and masks."""
        digest = hashlib.sha256()
        for item in self.items:
            stamps = [_stamp(path) for path in (item.path, item.mask_path) if path is not None]
            digest.update(repr((item.item_id, item.class_index, stamps)).encode())
        return digest.hexdigest()

    def _files(self, root: Path, leave_out: Path | None) -> Iterator[Path]:
        """Files under a folder, relative to it, without hidden ones; folders that are linked in a circle once."""
        left_out = {_identity(leave_out)} - {None} if leave_out is not None else set()
        seen: set[tuple[int, int]] = set()
        for name, folders, files in os.walk(root, onerror=self._note_unreadable, followlinks=True):
            folder = Path(name)
            identity = _identity(folder)
            if identity is None:
                self.problems.append(Problem(UNREADABLE_FOLDER, _text(folder), "it cannot be reached"))
            if identity is None or identity in seen | left_out:
                folders.clear()
                continue
            seen.add(identity)
            folders[:] = sorted(one for one in folders if not one.startswith("."))
            shown = [file for file in files if not file.startswith(".")]
            inner = [one for one in folders if _identity(folder / one) not in left_out]
            if not shown and not inner and folder != root:
                self.problems.append(Problem(EMPTY_FOLDER, _text(folder.relative_to(root))))
            yield from ((folder / file).relative_to(root) for file in shown)

    def _note_unreadable(self, error: OSError) -> None:
        self.problems.append(Problem(UNREADABLE_FOLDER, _text(error.filename), error.strerror or ""))

    def _classes(self, images: Sequence[Path]) -> dict[str, int]:
        """Class folder to class index, for the folders that name a class."""
        counts: dict[str, int] = {}
        for path in images:
            if len(path.parts) > 1:
                counts[path.parts[0]] = counts.get(path.parts[0], 0) + 1
        found = {folder: index for folder in counts if (index := self._class_index(folder)) is not None}
        self.problems += [
            Problem(UNKNOWN_CLASS, _text(folder), f"{count} images have no class")
            for folder, count in counts.items()
            if folder not in found
        ]
        return found

    def _class_index(self, folder: str) -> int | None:
        names = list(self.class_names or ())
        if folder in names:
            return names.index(folder)
        if folder.isascii() and folder.isdecimal() and int(folder) < self.num_classes:
            return int(folder)
        return None

    def _masks(self, images: Sequence[Path]) -> dict[Path, Path]:
        """Relative path without suffix, to the mask file."""
        if self.masks is None:
            return {}
        stems = {path.with_suffix("") for path in images}
        found: dict[Path, Path] = {}
        for path in sorted(self._files(self.masks, None), key=lambda path: path.parts):
            if path.suffix.lower() != MASK_SUFFIX:
                self.problems.append(Problem(UNUSABLE_MASK, _text(path), "not a PNG file"))
            elif path.with_suffix("") not in stems:
                self.problems.append(Problem(MASK_WITHOUT_IMAGE, _text(path)))
            else:
                found[path.with_suffix("")] = self.masks / path
        return found


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None where the path cannot be reached."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None where the file cannot be reached."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _text(path: str | os.PathLike[str]) -> str:
    return storable(Path(path).as_posix()) if os.fspath(path) else ""


def _free_id(path: Path, taken: set[str]) -> str:
    """The path as text, with a number where another path has the same text."""
    name, number = _text(path), 1
    while name in taken:
        number += 1
        name = f"{_text(path)}#{number}"
    taken.add(name)
    return name
