from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camrt.errors import ImageError, InvalidInputError
from camrt.explanation import Explanation


def make(**changes: object) -> Explanation:
    rng = np.random.default_rng(0)
    fields: dict[str, object] = {
        "saliency_map": rng.random((12, 9), dtype=np.float32),
        "layer_maps": {"layer4": rng.random((2, 3), dtype=np.float32), "a/b": rng.random((4, 6), dtype=np.float32)},
        "class_index": 3,
        "class_name": "Scheibe, groß",
        "probability": 0.75,
        "logit": 2.5,
        "method": "refinecam",
        "base_method": "gradcam++",
        "fusion": "product",
        "degenerate": ("a/b",),
        "timings": {"run": 0.012, "fuse": 0.001},
        "order": "resize_once",
        "in_input_pixels": True,
    }
    return Explanation(**{**fields, **changes})


def test_npz_round_trip(tmp_path: Path) -> None:
    explanation = make()
    explanation.save(tmp_path / "e.npz")
    loaded = Explanation.load(tmp_path / "e.npz")
    assert np.array_equal(loaded.saliency_map, explanation.saliency_map)
    assert list(loaded.layer_maps) == ["layer4", "a/b"]
    for name, layer_map in explanation.layer_maps.items():
        assert np.array_equal(loaded.layer_maps[name], layer_map)
        assert loaded.layer_maps[name].dtype == np.float32
    assert loaded.to_dict() == explanation.to_dict()
    assert loaded.degenerate == ("a/b",)
    assert (loaded.order, loaded.in_input_pixels) == ("resize_once", True)


def test_files_without_later_fields_are_read(tmp_path: Path) -> None:
    make().save(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as file:
        arrays = dict(file)
    summary = json.loads(arrays["summary"].item())
    del summary["order"], summary["in_input_pixels"]
    np.savez(tmp_path / "old.npz", **{**arrays, "summary": np.array(json.dumps(summary))})
    loaded = Explanation.load(tmp_path / "old.npz")
    assert (loaded.order, loaded.in_input_pixels) == ("normalize_twice", False)
    assert loaded.class_name == "Scheibe, groß"


def test_npz_round_trip_of_a_plain_method(tmp_path: Path) -> None:
    make(base_method=None, fusion=None, class_name=None, layer_maps={}, degenerate=()).save(tmp_path / "E.NPZ")
    loaded = Explanation.load(tmp_path / "E.NPZ")
    assert (loaded.base_method, loaded.fusion, loaded.class_name, loaded.layer_maps) == (None, None, None, {})


def test_npy_and_png(tmp_path: Path) -> None:
    explanation = make()
    explanation.save(tmp_path / "map.npy")
    assert np.array_equal(np.load(tmp_path / "map.npy"), explanation.saliency_map)
    explanation.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert np.abs(np.asarray(image) / 65535 - explanation.saliency_map).max() < 1e-5


@pytest.mark.parametrize("name", ["map.jpg", "map", ".npz"])
def test_unknown_suffix(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"Choose one of \.npz, \.npy, \.png"):
        make().save(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".png"])
def test_a_folder_that_does_not_exist(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"Cannot write .*Check the folder"):
        make().save(tmp_path / "none" / f"map{suffix}")


def test_load_refuses_other_files(tmp_path: Path) -> None:
    make().save(tmp_path / "e.npz")
    content = (tmp_path / "e.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[200] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "map.npy", np.ones((2, 2)))
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    np.savez(tmp_path / "pickle.npz", summary=np.array({"a": 1}, dtype=object))
    np.savez(tmp_path / "future.npz", summary=np.array(json.dumps({"schema_version": 99})))
    for name in ("short", "flipped", "text", "empty", "other", "pickle", "future", "missing"):
        with pytest.raises(InvalidInputError, match=f"{name}.npz is not a saved explanation"):
            Explanation.load(tmp_path / f"{name}.npz")
    with pytest.raises(InvalidInputError, match=r"map\.npy"):
        Explanation.load(tmp_path / "map.npy")


def test_summary_is_json_without_arrays() -> None:
    summary = json.loads(json.dumps(make().to_dict()))
    assert summary["layers"] == {"layer4": [2, 3], "a/b": [4, 6]}
    assert summary["size"] == [12, 9]
    assert summary["degenerate"] == ["a/b"]
    assert summary["timings"]["run"] == 0.012
    assert summary["class_name"] == "Scheibe, groß"


def test_repr_is_one_short_line() -> None:
    assert repr(make(degenerate=())) == "Explanation(class 3 'Scheibe, groß', p=0.750, refinecam 12x9)"
    assert repr(make(class_name=None)) == "Explanation(class 3, p=0.750, refinecam 12x9, degenerate=('a/b',))"


def test_overlay_takes_paths_bytes_images_and_arrays(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    explanation = make()
    expected = np.asarray(explanation.overlay(pixels, "jet", 0.4))
    assert expected.shape == (20, 30, 3)
    assert not np.array_equal(expected, pixels)
    for image in (tmp_path / "image.png", (tmp_path / "image.png").read_bytes(), Image.fromarray(pixels)):
        assert np.array_equal(np.asarray(explanation.overlay(image, "jet", 0.4)), expected)
    with pytest.raises(ImageError, match="Cannot read"):
        explanation.overlay(tmp_path / "missing.png")
