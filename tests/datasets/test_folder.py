from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camrt.datasets import DatasetError, FolderDataset, Sample, ShapesDataset, SyntheticShapes, mask_in_view, to_input
from camrt.errors import ImageError
from camrt.preprocess import Preprocessing
from tests.test_preprocess import png_header

NAMES = ("cat", "dog", "7")


def save(path: Path, size: tuple[int, int] = (12, 10), value: int = 90, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "P") else (value,) * len(mode)).save(path)
    return path


def save_mask(path: Path, mask: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def folder(root: Path, masks: Path | None = None) -> FolderDataset:
    return FolderDataset(root, NAMES, 8, masks)


def told(data: FolderDataset) -> list[tuple[str, str]]:
    return [(problem.kind, problem.name) for problem in data.problems]


class TestFolders:
    def test_a_flat_folder(self, tmp_path: Path) -> None:
        for name in ("b.jpg", "a.png", "C.WEBP"):
            save(tmp_path / name)
        data = folder(tmp_path)
        assert [item.item_id for item in data.items] == ["C.WEBP", "a.png", "b.jpg"]
        assert {(item.class_index, item.group) for item in data.items} == {(None, "")}
        assert data.items[1].load().image.size == (12, 10)
        assert data.problems == []
        assert not data.has_masks

    def test_class_folders_by_name_and_by_index(self, tmp_path: Path) -> None:
        for name in ("dog/x.png", "dog/deeper/y.png", "3/z.png", "7/w.png"):
            save(tmp_path / name)
        found = {item.item_id: (item.class_index, item.group) for item in folder(tmp_path).items}
        # "7" is the name of class 2: names go before indices.
        assert found == {
            "3/z.png": (3, "3"),
            "7/w.png": (2, "7"),
            "dog/deeper/y.png": (1, "dog"),
            "dog/x.png": (1, "dog"),
        }

    def test_a_folder_that_is_no_class_is_a_problem_and_its_images_stay(self, tmp_path: Path) -> None:
        for name in ("cow/a.png", "cow/b.png", "8/c.png", "cat/d.png", "e.png"):
            save(tmp_path / name)
        data = folder(tmp_path)
        assert {item.item_id: item.class_index for item in data.items} == {
            "8/c.png": None,
            "cat/d.png": 0,
            "cow/a.png": None,
            "cow/b.png": None,
            "e.png": None,
        }
        assert told(data) == [("unknown class folder", "8"), ("unknown class folder", "cow")]
        assert data.problems[1].detail == "2 images have no class"

    def test_what_is_no_image_is_named(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png")
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "old.bmp").write_bytes(b"BM")
        (tmp_path / ".hidden").write_text("x")
        (tmp_path / "cat").mkdir()
        assert told(folder(tmp_path)) == [
            ("folder without images", "cat"),
            ("file that is no image", "notes.txt"),
            ("file that is no image", "old.bmp"),
        ]

    @pytest.mark.parametrize("content", [[], ["notes.txt"]])
    def test_no_image_at_all(self, tmp_path: Path, content: list[str]) -> None:
        for name in content:
            (tmp_path / name).write_text("x")
        with pytest.raises(DatasetError, match="has no image"):
            folder(tmp_path)

    def test_folders_that_are_not_there(self, tmp_path: Path) -> None:
        save(tmp_path / "data" / "a.png")
        with pytest.raises(DatasetError, match=r"missing is not a folder"):
            folder(tmp_path / "missing")
        with pytest.raises(DatasetError, match=r"missing is not a folder"):
            folder(tmp_path / "data", tmp_path / "missing")
        with pytest.raises(DatasetError, match="holds images and masks"):
            folder(tmp_path / "data", tmp_path / "data")

    def test_links_in_a_circle_end(self, tmp_path: Path) -> None:
        save(tmp_path / "cat" / "a.png")
        (tmp_path / "cat" / "again").symlink_to(tmp_path, target_is_directory=True)
        assert [item.item_id for item in folder(tmp_path).items] == ["cat/a.png"]

    def test_what_permissions_keep_away_is_a_problem(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("a.png", "closed/b.png", "gone/c.png"):
            save(tmp_path / name)
        save_mask(tmp_path / "masks" / "a.png", np.ones((10, 12), np.uint8))
        stat = os.stat

        def refuse(path: str | Path, *arguments: object, **options: object) -> os.stat_result:
            if str(path).endswith(("closed/b.png", "gone")):
                raise PermissionError(13, "Permission denied", str(path))
            return stat(path, *arguments, **options)

        monkeypatch.setattr(os, "stat", refuse)
        data = folder(tmp_path, tmp_path / "masks")
        assert ("unreadable folder", "gone") in [(kind, Path(name).name) for kind, name in told(data)]
        assert [item.item_id for item in data.items] == ["a.png", "closed/b.png"]
        data.items[0].load()
        with pytest.raises(ImageError, match=r"b\.png cannot be reached: Permission denied"):
            data.items[1].load()
        assert len(data.fingerprint) == 64
        with pytest.raises(DatasetError, match="gone is not a folder"):
            folder(tmp_path / "gone")

    def test_names_that_are_no_utf8(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png")
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes((tmp_path / "a.png").read_bytes())
        (tmp_path / r"\udcff.png").write_bytes((tmp_path / "a.png").read_bytes())
        names = [item.item_id for item in folder(tmp_path).items]
        assert len(set(names)) == 3
        assert all(name.encode("utf-8") for name in names)

    def test_the_fingerprint_follows_the_files(self, tmp_path: Path) -> None:
        path = save(tmp_path / "cat" / "a.png")
        first = folder(tmp_path).fingerprint
        assert folder(tmp_path).fingerprint == first
        save(path, (13, 10))
        changed = folder(tmp_path).fingerprint
        save(tmp_path / "b.png")
        assert len({first, changed, folder(tmp_path).fingerprint}) == 3


class TestBadImages:
    def test_they_fail_when_they_load(self, tmp_path: Path) -> None:
        (tmp_path / "bad.png").write_text("no")
        (tmp_path / "empty.jpg").write_bytes(b"")
        (tmp_path / "huge.png").write_bytes(png_header(20000, 20000))
        (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
        os.mkfifo(tmp_path / "pipe.png")
        items = folder(tmp_path).items
        assert len(items) == 5
        for item in items:
            with pytest.raises(ImageError):
                item.load()


class TestMasks:
    def test_any_nonzero_pixel_is_object_in_every_mode(self, tmp_path: Path) -> None:
        mask = np.zeros((10, 12), np.uint8)
        mask[3:5, 6] = 1
        save_mask(tmp_path / "m" / "gray.png", mask)
        save_mask(tmp_path / "m" / "wide.png", mask.astype(np.uint16))
        save_mask(tmp_path / "m" / "bits.png", mask > 0)
        save_mask(tmp_path / "m" / "colour.png", np.stack([mask * 0, mask * 0, mask], axis=2))
        save_mask(tmp_path / "m" / "alpha.png", np.stack([mask, mask * 0, mask * 0, mask * 0 + 255], axis=2))
        palette = Image.fromarray(mask).convert("P")
        palette.putpalette([255, 255, 255, 0, 0, 0])
        palette.save(tmp_path / "m" / "palette.png")
        names = [path.stem for path in (tmp_path / "m").iterdir()]
        for name in names:
            save(tmp_path / "d" / f"{name}.jpg")
        data = folder(tmp_path / "d", tmp_path / "m")
        assert data.has_masks
        assert data.problems == []
        for item in data.items:
            sample = item.load()
            assert sample.problem is None
            assert np.array_equal(sample.object_mask, mask > 0), item.item_id

    def test_a_pipe_is_no_mask(self, tmp_path: Path) -> None:
        save(tmp_path / "images" / "a.png")
        (tmp_path / "masks").mkdir()
        os.mkfifo(tmp_path / "masks" / "a.png")
        sample = folder(tmp_path / "images", tmp_path / "masks").items[0].load()
        assert sample.object_mask is None
        assert sample.problem is not None
        assert "not a file" in sample.problem.detail

    def test_pairs_are_told(self, tmp_path: Path) -> None:
        save(tmp_path / "d" / "cat" / "a.jpg")
        save(tmp_path / "d" / "cat" / "b.jpg")
        mask = np.full((10, 12), 255, np.uint8)
        save_mask(tmp_path / "m" / "cat" / "a.png", mask)
        save_mask(tmp_path / "m" / "cat" / "c.png", mask)
        (tmp_path / "m" / "cat" / "b.gif").write_bytes(b"GIF89a")
        data = folder(tmp_path / "d", tmp_path / "m")
        assert told(data) == [
            ("unusable mask", "cat/b.gif"),
            ("mask without an image", "cat/c.png"),
            ("image without a mask", "cat/b.jpg"),
        ]
        assert [item.load().object_mask is not None for item in data.items] == [True, False]

    def test_masks_inside_the_folder_are_no_images(self, tmp_path: Path) -> None:
        save(tmp_path / "a.jpg")
        save_mask(tmp_path / "masks" / "a.png", np.full((10, 12), 9, np.uint8))
        data = folder(tmp_path, tmp_path / "masks")
        assert [item.item_id for item in data.items] == ["a.jpg"]
        assert data.problems == []

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("size", "has 10 x 12 pixels, its image 12 x 10"),
            ("empty", "no object pixel"),
            ("text", "no PNG, or damaged"),
            ("short", "damaged|cannot be read"),
            ("bomb", "has 20000 x 20000 pixels"),
        ],
    )
    def test_masks_that_cannot_be_used(self, tmp_path: Path, name: str, reason: str) -> None:
        save(tmp_path / "d" / "a.jpg")
        path = tmp_path / "m" / "a.png"
        save_mask(path, np.random.default_rng(0).integers(0, 255, (10, 12), np.uint8))
        whole = path.read_bytes()
        content = {"text": b"no", "short": whole[: len(whole) // 2], "bomb": png_header(20000, 20000)}
        if name in content:
            path.write_bytes(content[name])
        else:
            save_mask(path, np.full((12, 10), 1, np.uint8) if name == "size" else np.zeros((10, 12), np.uint8))
        (item,) = folder(tmp_path / "d", tmp_path / "m").items
        sample = item.load()
        assert sample.object_mask is None
        assert sample.problem is not None
        assert (sample.problem.kind, sample.problem.name) == ("unusable mask", "a.jpg")
        assert re.search(reason, sample.problem.detail)


class TestMasksInInputPixels:
    @pytest.mark.parametrize(
        "preprocessing",
        [
            Preprocessing((30, 40), "squash"),
            Preprocessing((32, 32), "crop", 41),
            Preprocessing((33, 48), "letterbox", pad_value=0),
        ],
    )
    @pytest.mark.parametrize("size", [(61, 47), (20, 90), (224, 224)])
    def test_they_lie_on_the_object_of_the_view(self, preprocessing: Preprocessing, size: tuple[int, int]) -> None:
        """A white object on black: where the mask's inside or outside is clear, the view is white or black."""
        rng = np.random.default_rng(0)
        cells = rng.random((3, 3)) < 0.5
        rows = np.minimum(np.arange(size[1]) * 3 // size[1], 2)
        columns = np.minimum(np.arange(size[0]) * 3 // size[0], 2)
        mask = cells[rows[:, None], columns]
        image = Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))
        _, seen = to_input(Sample(image, mask), preprocessing)
        assert seen is not None
        view = np.asarray(preprocessing.view(image)[0])[..., 0]
        assert seen.shape == preprocessing.size
        assert seen[view == 255].all()
        assert not seen[view == 0].any()
        assert np.mean((view > 127) == seen) > 0.95

    def test_nearest_neighbour_by_hand(self) -> None:
        mask = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], np.bool_)
        halved = np.array([[0.5, 0, 0], [0, 1, 0]], np.float32)
        # Centres of view columns 0 and 1 lie at 1 and 3 of the original, which belong to pixels 1 and 3.
        assert mask_in_view(mask, halved, (2, 2)).tolist() == [[False, False], [False, True]]
        moved = np.array([[1, 0, -2], [0, 1, 1]], np.float32)
        assert mask_in_view(mask, moved, (3, 3)).tolist() == [[False] * 3, [False] * 3, [True, True, False]]

    def test_no_mask_stays_none(self) -> None:
        tensor, mask = to_input(Sample(Image.new("RGB", (9, 9))), Preprocessing((8, 8)))
        assert tensor.shape == (3, 8, 8)
        assert mask is None


class TestShapes:
    def test_items_are_those_of_the_synthetic_shapes(self) -> None:
        data = ShapesDataset("test", 19, (96, 80), SyntheticShapes.class_names)
        shapes = SyntheticShapes("test", 19, 96)
        assert len(data.items) == 19
        assert len({item.item_id for item in data.items}) == 19
        for index in (0, 7, 18):
            item, expected = data.items[index], shapes.item(index)
            sample = item.load()
            assert np.array_equal(np.asarray(sample.image), expected.image)
            assert np.array_equal(sample.object_mask, expected.object_mask)
            assert (item.class_index, item.group) == (expected.class_index, expected.size_range)
        assert data.problems == []

    def test_classes_are_matched_by_name(self) -> None:
        names = ["square", "disc", "ring"]
        data = ShapesDataset("test", 18, (64, 64), names)
        shapes = SyntheticShapes("test", 18, 64)
        for index, item in enumerate(data.items):
            name = shapes.item(index).class_name
            assert item.class_index == (names.index(name) if name in names else None)
        assert [problem.name for problem in data.problems] == [
            "triangle",
            "disc outline",
            "square outline",
            "triangle outline",
        ]

    def test_without_names_indices_count(self) -> None:
        data = ShapesDataset("test", 5, (64, 64), None)
        assert [item.class_index for item in data.items] == [SyntheticShapes("test", 5).label(i)[0] for i in range(5)]
