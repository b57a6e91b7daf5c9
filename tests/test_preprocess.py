from __future__ import annotations

import contextlib
import importlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from camrt.errors import ImageError, InvalidInputError
from camrt.preprocess import PRESETS, Preprocessing, load_image
from tests.models import import_torchvision


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


def png_header(width: int, height: int) -> bytes:
    """A well-formed PNG of that size with no pixel data at all: it cannot be decoded, only refused."""

    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


class TestLoadImage:
    @pytest.mark.parametrize("form", ["PNG", "WEBP"])
    def test_lossless_files_keep_their_pixels(self, form: str, tmp_path: Path) -> None:
        image = noise(7, 5)
        path = tmp_path / "image"
        path.write_bytes(encode(image, form, lossless=True))
        assert np.array_equal(np.asarray(load_image(path)), np.asarray(image))
        assert np.array_equal(np.asarray(load_image(path.read_bytes())), np.asarray(image))

    def test_arrays_and_pil_images(self) -> None:
        pixels = np.asarray(noise(7, 5))
        assert np.array_equal(np.asarray(load_image(pixels)), pixels)
        assert np.array_equal(np.asarray(load_image(pixels[:, ::-1])), pixels[:, ::-1])
        assert np.array_equal(np.asarray(load_image(pixels[..., 0]))[..., 2], pixels[..., 0])
        assert np.array_equal(np.asarray(load_image(Image.fromarray(pixels))), pixels)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied_once(self, orientation: int) -> None:
        upright = np.zeros((16, 32, 3), np.uint8)
        upright[:, :8] = 255
        inverse = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, 1),
            7: lambda a: np.rot90(a[::-1, ::-1].transpose(1, 0, 2), 0),
            8: lambda a: np.rot90(a, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = encode(Image.fromarray(np.ascontiguousarray(inverse(upright))), "JPEG", quality=100, exif=exif)
        image = load_image(stored)
        assert image.size == (32, 16)
        assert np.abs(np.asarray(image).astype(int) - upright).max() < 8
        assert np.array_equal(np.asarray(load_image(image)), np.asarray(image))

    def test_transparency_is_composited_over_white(self) -> None:
        rgba = np.zeros((2, 3, 4), np.uint8)
        rgba[0] = (200, 0, 0, 255)
        rgba[1, 0] = (0, 0, 0, 128)
        loaded = np.asarray(load_image(encode(Image.fromarray(rgba))))
        assert (loaded[0] == (200, 0, 0)).all()
        assert (loaded[1, 1:] == 255).all()
        assert np.abs(loaded[1, 0].astype(int) - 127).max() <= 1

    def test_palette_with_transparent_entry(self) -> None:
        palette = Image.new("P", (4, 2), 1)
        palette.putpalette([9, 9, 9, 10, 20, 30])
        palette.putpixel((0, 0), 0)
        loaded = np.asarray(load_image(encode(palette, transparency=0)))
        assert tuple(loaded[0, 0]) == (255, 255, 255)
        assert tuple(loaded[1, 1]) == (10, 20, 30)

    def test_sixteen_bit_grayscale_keeps_the_upper_byte(self) -> None:
        samples = np.array([[0, 255, 256], [0x1234, 0x80FF, 0xFFFF]], np.uint16)
        loaded = np.asarray(load_image(encode(Image.fromarray(samples))))
        assert np.array_equal(loaded[..., 1], [[0, 0, 1], [0x12, 0x80, 0xFF]])

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
    def test_other_modes_become_rgb(self, mode: str) -> None:
        form = "JPEG" if mode == "CMYK" else "PNG"
        loaded = load_image(encode(Image.new("RGB", (6, 4), "white").convert(mode), form))
        assert (loaded.mode, loaded.size) == ("RGB", (6, 4))
        assert np.asarray(loaded).min() >= 254

    def test_metadata_is_dropped(self) -> None:
        assert load_image(encode(noise(4, 4), "JPEG", dpi=(72, 72), comment=b"x")).info == {}

    def test_a_huge_png_is_refused_before_decoding(self, tmp_path: Path) -> None:
        path = tmp_path / "huge.png"
        path.write_bytes(png_header(20000, 20000))
        with pytest.raises(ImageError, match=r"huge\.png has 20000 x 20000 = 400000000 pixels"):
            load_image(path)

    def test_the_pixel_limit_is_ours_alone(self) -> None:
        # 95 million pixels: above the size from which Pillow warns, below ours, so it gets as far as the decoder.
        with pytest.raises(ImageError, match="damaged or truncated"):
            load_image(png_header(9500, 10000))
        with pytest.raises(ImageError, match="at most 24 are allowed"):
            load_image(noise(5, 5), max_pixels=24)
        assert load_image(noise(5, 5), max_pixels=25).size == (5, 5)

    @pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
    @pytest.mark.parametrize("keep", [3, 13, 30, 0.5, 0.98])
    def test_truncated_files(self, form: str, keep: float, tmp_path: Path) -> None:
        data = encode(noise(64, 48), form)
        path = tmp_path / "broken.img"
        path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
        with pytest.raises(ImageError, match=r"broken\.img"):
            load_image(path)

    def test_other_files(self, tmp_path: Path) -> None:
        text = tmp_path / "notes.png"
        text.write_text("not an image")
        with pytest.raises(ImageError, match=r"notes\.png is not a JPEG, PNG or WebP image\. Convert"):
            load_image(text)
        with pytest.raises(ImageError, match="not a JPEG"):
            load_image(b"")
        with pytest.raises(ImageError, match="not a JPEG"):
            load_image(encode(noise(4, 4), "GIF"))
        with pytest.raises(ImageError, match=r"Cannot read .*missing\.png"):
            load_image(tmp_path / "missing.png")
        with pytest.raises(ImageError, match="Cannot read"):
            load_image(tmp_path)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
    def test_an_image_without_positions(self, size: tuple[int, int]) -> None:
        with pytest.raises(ImageError, match="no position to explain"):
            load_image(encode(noise(*size)))

    @pytest.mark.parametrize(
        "array",
        [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)],
    )
    def test_arrays_of_another_kind(self, array: np.ndarray) -> None:
        with pytest.raises(ImageError, match="array of shape"):
            load_image(array)

    def test_empty_array(self) -> None:
        with pytest.raises(ImageError, match="no position"):
            load_image(np.zeros((0, 4, 3), np.uint8))

    def test_float_images(self) -> None:
        with pytest.raises(ImageError, match="floating-point"):
            load_image(Image.new("F", (4, 4)))

    @pytest.mark.parametrize("values", [[1, 255], [0, 200], [7, 7]])
    def test_mode_i_that_would_come_out_black_is_refused(self, values: list[int]) -> None:
        image = Image.fromarray(np.array([values] * 2, np.int32))
        assert image.mode == "I"
        with pytest.raises(ImageError, match=r'values in 0\.\.\d+.*convert\("L"\).*convert\("I;16"\)'):
            load_image(image)
        as_bytes = np.asarray(load_image(image.convert("L")))
        assert np.array_equal(as_bytes[..., 0], [values] * 2)
        assert not np.asarray(load_image(image.convert("I;16"))).any()

    def test_mode_i_of_16_bit_samples(self) -> None:
        samples = np.array([[0, 255, 256], [0x1234, 0x80FF, 0xFFFF]], np.int32)
        loaded = np.asarray(load_image(Image.fromarray(samples)))
        assert np.array_equal(loaded[..., 1], [[0, 0, 1], [0x12, 0x80, 0xFF]])
        assert not np.asarray(load_image(Image.new("I", (4, 4)))).any()
        dark = Image.fromarray(samples[[0, 0], :2])
        dark.format = "PNG"  # as older Pillow opens a 16-bit PNG file
        assert not np.asarray(load_image(dark)).any()
        for odd in ([[-1, 5]] * 2, [[0, 65536]] * 2):
            with pytest.raises(ImageError, match=r"outside 0\.\.65535"):
                load_image(Image.fromarray(np.array(odd, np.int32)))

    def test_every_mode_of_pillow_is_converted_or_refused(self) -> None:
        for mode in Image.MODES:
            image = Image.new(mode, (4, 4))
            if mode in ("F", "La"):
                with pytest.raises(ImageError, match="Convert it to 8-bit RGB first"):
                    load_image(image)
            else:
                assert load_image(image).mode == "RGB"

    def test_bytes_of_every_kind(self) -> None:
        data = encode(noise(7, 5))
        expected = np.asarray(load_image(data))
        for given_bytes in (bytearray(data), memoryview(data), memoryview(bytearray(data))):
            assert np.array_equal(np.asarray(load_image(given_bytes)), expected)

    @pytest.mark.parametrize("thing", [3, None, 1.5, ["a.png"], {}])
    def test_things_that_are_no_images(self, thing: object) -> None:
        with pytest.raises(ImageError, match=f"An image is a {type(thing).__name__}"):
            load_image(thing)

    def test_a_name_that_no_file_can_have(self) -> None:
        with pytest.raises(ImageError, match="Cannot read"):
            load_image("a\0b.png")

    @given(form=st.sampled_from(["PNG", "JPEG", "WEBP"]), data=st.data())
    def test_damaged_bytes_decode_or_raise_the_typed_error(self, form: str, data: st.DataObject) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        content = bytearray(encode(noise(16, 12), form, exif=exif))
        for _ in range(data.draw(st.integers(1, 8))):
            position = data.draw(st.integers(0, len(content) - 1))
            content[position] = data.draw(st.integers(0, 255))
        with contextlib.suppress(ImageError):
            assert load_image(bytes(content), max_pixels=1_000_000).mode == "RGB"


class TestPreprocessing:
    @pytest.mark.parametrize("name", sorted(PRESETS))
    def test_presets_survive_json(self, name: str) -> None:
        preset = Preprocessing.preset(name, (192, 224))
        assert preset.size == (192, 224)
        assert Preprocessing.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset

    def test_defaults_may_be_left_out(self) -> None:
        assert Preprocessing.from_dict({"size": [8, 9]}) == Preprocessing((8, 9))

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"size": [8]},
            {"size": [8, 0]},
            {"size": [8, 8.5]},
            {"size": [8, True]},
            {"size": "88"},
            {"size": [8, 1 << 20]},
            {"size": [8, 8], "resize": "stretch"},
            {"size": [8, 8], "resize": ["crop"]},
            {"size": [8, 8], "resize": "crop"},
            {"size": [8, 8], "resize": "crop", "resize_to": 7},
            {"size": [8, 8], "resize_to": 9},
            {"size": [8, 8], "interpolation": "nearest"},
            {"size": [8, 8], "channel_order": "GBR"},
            {"size": [8, 8], "mean": [0, 0]},
            {"size": [8, 8], "mean": [0, 0, "0"]},
            {"size": [8, 8], "std": [1, 1, 0]},
            {"size": [8, 8], "std": [1, 1, float("nan")]},
            {"size": [8, 8], "scale": float("inf")},
            {"size": [8, 8], "scale": None},
            {"size": [8, 8], "pad_value": 256},
            {"size": [8, 8], "pad_value": 1.5},
            {"size": [8, 8], "crop": True},
        ],
    )
    def test_wrong_fields_are_refused(self, fields: dict[str, object]) -> None:
        with pytest.raises(InvalidInputError, match="Preprocessing: ") as caught:
            Preprocessing.from_dict(fields)
        assert caught.value.next_step

    def test_unknown_preset_lists_the_presets(self) -> None:
        with pytest.raises(InvalidInputError, match="imagenet"):
            Preprocessing.preset("image-net")

    @pytest.mark.parametrize("size", [(640, 427), (300, 501), (224, 224), (97, 31)])
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_imagenet_equals_torchvision(self, size: tuple[int, int], interpolation: str) -> None:
        import_torchvision()
        transforms = importlib.import_module("torchvision.transforms")
        image = noise(*size)
        mode = getattr(transforms.InterpolationMode, interpolation.upper())
        oracle = transforms.Compose(
            [
                transforms.Resize(256, mode),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )
        preset = Preprocessing.preset("imagenet")
        tensor, _ = Preprocessing.from_dict({**preset.to_dict(), "interpolation": interpolation}).apply(image)
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor, oracle(image).numpy(), atol=1e-6)

    def test_values(self) -> None:
        pixels = np.array([[[0, 51, 255], [10, 20, 30]]] * 2, np.uint8)
        chw = pixels.transpose(2, 0, 1)
        size = (2, 2)
        assert np.array_equal(Preprocessing.preset("raw", size).apply(pixels)[0], chw)
        np.testing.assert_allclose(Preprocessing.preset("unit", size).apply(pixels)[0], chw / 255, rtol=1e-7)
        np.testing.assert_allclose(
            Preprocessing.preset("symmetric", size).apply(pixels)[0], chw / 127.5 - 1, rtol=1e-6, atol=1e-7
        )
        bgr = Preprocessing(size, channel_order="BGR", scale=1.0, mean=(1.0, 2.0, 3.0)).apply(pixels)[0]
        assert np.array_equal(bgr, chw[::-1] - np.array([1, 2, 3]).reshape(3, 1, 1))

    def test_letterbox_bars(self) -> None:
        tensor, affine = Preprocessing((10, 20), "letterbox", scale=1.0, pad_value=7).apply(
            np.full((30, 30, 3), 200, np.uint8)
        )
        assert (tensor[:, :, 5:15] == 200).all()
        assert (tensor[:, :, :5] == 7).all()
        assert (tensor[:, :, 15:] == 7).all()
        np.testing.assert_allclose(affine, [[1 / 3, 0, 5], [0, 1 / 3, 0]], rtol=1e-6)

    def test_an_elongated_image(self) -> None:
        image = np.zeros((2, 20000, 3), np.uint8)
        with pytest.raises(ImageError, match="too elongated"):
            Preprocessing.preset("imagenet").apply(image)
        assert Preprocessing((32, 32), "letterbox").apply(image)[0].shape == (3, 32, 32)

    @pytest.mark.parametrize("mode", ["squash", "crop", "letterbox"])
    @pytest.mark.parametrize("original", [(37, 53), (53, 37), (101, 41), (200, 303), (15, 9)])
    @pytest.mark.parametrize("size", [(31, 31), (33, 48), (20, 17)])
    def test_the_affine_says_where_an_impulse_went(
        self, mode: str, original: tuple[int, int], size: tuple[int, int]
    ) -> None:
        preprocessing = Preprocessing(size, mode, 55 if mode == "crop" else None, scale=1.0, pad_value=0)
        height, width = original
        patch = 1 + max(height, width) // 40
        _, affine = preprocessing.apply(np.zeros((height, width, 3), np.uint8))
        for x, y in ((0.5, 0.5), (0.4, 0.6), (0.55, 0.42)):
            column, row = (np.array([x * size[1], y * size[0]]) - affine[:, 2]) // np.diag(affine) - patch // 2
            row, column = int(row), int(column)
            image = np.zeros((height, width, 3), np.uint8)
            image[row : row + patch, column : column + patch] = 255
            tensor, _ = preprocessing.apply(image)
            assert tensor.max() > 0
            weights = tensor[0] / tensor[0].sum()
            centre = np.array(
                [
                    (weights.sum(0) * (np.arange(size[1]) + 0.5)).sum(),
                    (weights.sum(1) * (np.arange(size[0]) + 0.5)).sum(),
                ]
            )
            expected = affine @ np.array([column + patch / 2, row + patch / 2, 1])
            # Half a pixel of the coarser grid would show at once; 8-bit rounding of the filter's tails does not.
            np.testing.assert_allclose(centre, expected, atol=0.2)

    @pytest.mark.parametrize("mode", ["squash", "crop", "letterbox"])
    @pytest.mark.parametrize("original", [(37, 53), (53, 37), (101, 40)])
    def test_the_map_comes_back_to_the_original_pixels(self, mode: str, original: tuple[int, int]) -> None:
        """Bilinear sampling at the affine, as warp_affine does it, of a ramp over the original's columns and rows."""
        preprocessing = Preprocessing((31, 29), mode, 40 if mode == "crop" else None, scale=1.0)
        height, width = original
        for axis in (0, 1):
            ramp = np.arange(original[axis], dtype=np.uint8) * 2
            image = np.broadcast_to(ramp[:, None] if axis == 0 else ramp, original)
            tensor, affine = preprocessing.apply(np.repeat(image[..., None], 3, 2))
            rows, columns = np.mgrid[:height, :width] + 0.5
            points = np.einsum("ij,jhw->ihw", affine, np.stack([columns, rows, np.ones_like(rows)]))
            inside = ((points > 3) & (points < np.array([29, 31]).reshape(2, 1, 1) - 3)).all(0)
            inside &= (rows > 4) & (rows < height - 4) & (columns > 4) & (columns < width - 4)
            grid = 2 * points / np.array([29, 31]).reshape(2, 1, 1) - 1
            sampled = torch.nn.functional.grid_sample(
                torch.from_numpy(tensor[None, :1]),
                torch.from_numpy(grid.transpose(1, 2, 0)[None]).float(),
                align_corners=False,
            )[0, 0].numpy()
            assert inside.sum() > 50
            assert np.abs(sampled - image)[inside].max() < 1.1
