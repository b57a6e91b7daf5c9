"""Images and arrays of messages, and maps as bytes."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import camrt
from camrt.errors import CamrtError, ImageError, InvalidInputError
from camrt.explainer import sample_image_path
from camrt.explainer.arguments import MAX_OUTPUT_SIDE
from camrt.server.codec import (
    Decoded,
    Output,
    array_tensor,
    background_of,
    check_output_size,
    decode,
    encode_map,
    given_map,
    input_tensor,
    object_mask,
    output_size,
    resolve_output,
    tensor_array,
)
from camrt.v1 import explainer_pb2 as pb
from tests.test_preprocess import png_header

ALL = (pb.DATA_TYPE_UINT8, pb.DATA_TYPE_FLOAT16, pb.DATA_TYPE_FLOAT32)


@cache
def an_explainer() -> camrt.Explainer:
    return camrt.Explainer(threads=1)


@pytest.fixture(scope="module")
def explainer() -> camrt.Explainer:
    return an_explainer()


@pytest.fixture(scope="module")
def sample() -> bytes:
    return sample_image_path().read_bytes()


def tensor(array: np.ndarray) -> pb.Tensor:
    kinds = {"uint8": pb.DATA_TYPE_UINT8, "float16": pb.DATA_TYPE_FLOAT16, "float32": pb.DATA_TYPE_FLOAT32}
    return pb.Tensor(data_type=kinds[array.dtype.name], shape=array.shape, data=array.tobytes())


# arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_arrays_travel_as_they_are(dtype: type) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    got = tensor_array(tensor(array), ALL, "It")
    np.testing.assert_array_equal(got, array)
    assert not got.flags.writeable


def test_elements_are_little_endian() -> None:
    assert array_tensor(np.array([1.0], ">f4")).data == b"\x00\x00\x80\x3f"
    message = pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[1], data=b"\x00\x00\x80\x3f")
    assert tensor_array(message, ALL, "It")[0] == 1


def test_a_tensor_of_a_view(explainer: camrt.Explainer) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(tensor_array(array_tensor(values), ALL, "It"), values)


@given(
    st.sampled_from([0, 1, 2, 3, 4, 99, -5]),
    st.lists(st.integers(-(2**62), 2**62) | st.integers(0, 4), max_size=6),
    st.binary(max_size=64),
)
def test_any_tensor_is_an_array_or_a_typed_error(data_type: int, shape: list[int], data: bytes) -> None:
    message = pb.Tensor(data_type=data_type, shape=shape, data=data)
    try:
        array = tensor_array(message, ALL, "It")
    except InvalidInputError:
        return
    assert array.shape == tuple(shape)
    assert array.nbytes == len(data)


def test_a_shape_of_a_million_axes() -> None:
    with pytest.raises(InvalidInputError) as caught:
        tensor_array(pb.Tensor(data_type=1, shape=[1] * 1_000_000, data=b"x"), ALL, "It")
    assert len(str(caught.value)) < 300


# images


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_typed_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(pb.Image(encoded=data), an_explainer(), 1000)


def test_large_files_are_refused_before_they_are_decoded(explainer: camrt.Explainer) -> None:
    header = png_header(50_000, 40_000)
    with pytest.raises(ImageError, match="50000 x 40000"):
        decode(pb.Image(encoded=header), explainer, 50_000_000)
    with pytest.raises(ImageError, match="at most 100"):
        decode(pb.Image(pixels=tensor(np.zeros((20, 20, 3), np.uint8))), explainer, 100)


def test_what_decoding_returns(explainer: camrt.Explainer, sample: bytes) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    decoded = decode(pb.Image(pixels=tensor(photo)), explainer, 10_000)
    expected, affine = explainer.preprocessing.apply(photo)
    np.testing.assert_array_equal(decoded.tensor, expected)
    np.testing.assert_array_equal(decoded.affine, affine)
    assert decoded.original_size == (60, 90)
    again = decode(pb.Image(input=tensor(decoded.tensor)), explainer, 1)
    np.testing.assert_array_equal(again.tensor, expected)
    assert again.affine is None
    assert again.original_size == explainer.manifest.input_shape[1:]


def test_half_precision_inputs() -> None:
    values = np.linspace(-2, 2, 12).reshape(3, 2, 2).astype(np.float16)
    got = input_tensor(tensor(values), (3, 2, 2))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, values.astype(np.float32))


# maps


def output(encoding: str = "UINT8", space: str = "ORIGINAL", size: tuple[int, int] = (0, 0)) -> Output:
    return Output(
        pb.MapEncoding.Value(f"MAP_ENCODING_{encoding}"),
        pb.OutputSpace.Value(f"OUTPUT_SPACE_{space}"),
        size,
        "turbo",
        0.6,
    )


@pytest.mark.parametrize(
    ("encoding", "dtype", "scale", "error"),
    [("UINT8", "u1", 255, 0.5 / 255), ("FLOAT16", "<f2", 1, 2.5e-4), ("FLOAT32", "<f4", 1, 0)],
)
def test_encodings(encoding: str, dtype: str, scale: float, error: float) -> None:
    values = np.random.default_rng(0).random((7, 5), np.float32)
    message = encode_map(values, output(encoding), None)
    assert (message.height, message.width) == (7, 5)
    got = np.frombuffer(message.data, dtype).reshape(7, 5) / scale
    np.testing.assert_allclose(got, values, rtol=0, atol=error + 1e-7)


def test_png_is_uint8() -> None:
    values = np.random.default_rng(0).random((7, 5), np.float32)
    levels = np.frombuffer(encode_map(values, output(), None).data, np.uint8).reshape(7, 5)
    picture = Image.open(io.BytesIO(encode_map(values, output("PNG"), None).data))
    np.testing.assert_array_equal(np.asarray(picture), levels)


def test_the_background_is_what_the_map_is_of(explainer: camrt.Explainer) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    image = pb.Image(pixels=tensor(photo))
    assert background_of(image, explainer, output(), 10**6) is None
    original = background_of(image, explainer, output("OVERLAY_PNG"), 10**6)
    np.testing.assert_array_equal(np.asarray(original), photo)
    view = background_of(image, explainer, output("OVERLAY_PNG", "INPUT"), 10**6)
    np.testing.assert_array_equal(np.asarray(view), np.asarray(explainer.preprocessing.view(photo)[0]))
    assert background_of(image, explainer, output("OVERLAY_PNG", "GIVEN", (30, 40)), 10**6).size == (40, 30)


def test_defaults(sample: bytes) -> None:
    photo, numbers = pb.Image(encoded=sample), pb.Image(input=pb.Tensor())
    found = resolve_output(pb.OutputOptions(), photo)
    assert (found.encoding, found.space) == (pb.MAP_ENCODING_UINT8, pb.OUTPUT_SPACE_ORIGINAL)
    assert (found.colormap, found.opacity) == ("turbo", 0.6)
    assert resolve_output(pb.OutputOptions(), numbers).space == pb.OUTPUT_SPACE_INPUT
    assert resolve_output(pb.OutputOptions(opacity=0), photo).opacity == 0


def test_sizes() -> None:
    decoded = Decoded(np.zeros((3, 8, 9), np.float32), None, (20, 30))
    assert output_size(output(space="ORIGINAL"), decoded) == (20, 30)
    assert output_size(output(space="INPUT"), decoded) == (8, 9)
    assert output_size(output(space="GIVEN", size=(5, 6)), decoded) == (5, 6)
    check_output_size(output(), decoded, 2, 1200, 1200)
    check_output_size(output("PNG"), decoded, 2, 1200, 1)
    check_output_size(output(), decoded, 2, 1200, 1230, 30)
    for encoding, maps, pixels, most in (
        ("UINT8", 2, 1199, 1200),
        ("UINT8", 2, 1200, 1199),
        ("FLOAT32", 1, 600, 2399),
        ("PNG", 2, 1199, 10**6),
        ("OVERLAY_JPEG", 32, 19_199, 10**6),
    ):
        with pytest.raises(InvalidInputError, match="too large"):
            check_output_size(output(encoding), decoded, maps, pixels, most)
    with pytest.raises(InvalidInputError, match="1230 bytes"):
        check_output_size(output(), decoded, 2, 1200, 1230, 31)


@pytest.mark.parametrize("size", [(1, MAX_OUTPUT_SIDE + 1), (MAX_OUTPUT_SIDE + 1, 1), (2, 24_000_000)])
@pytest.mark.parametrize("encoding", ["UINT8", "PNG", "OVERLAY_JPEG"])
def test_sides(encoding: str, size: tuple[int, int]) -> None:
    given = output(encoding, "GIVEN", size)
    decoded = Decoded(np.zeros((3, 8, 9), np.float32), None, size)
    for wanted in (given, output(encoding, "ORIGINAL")):
        with pytest.raises(InvalidInputError, match="at most 16384 pixels"):
            check_output_size(wanted, decoded, 1, 10**9, 10**9)
    check_output_size(output(encoding, "INPUT"), decoded, 1, 10**9, 10**9)
    check_output_size(output(encoding, "GIVEN", (MAX_OUTPUT_SIDE, 1)), decoded, 1, 10**9, 10**9)


def test_masks_and_maps_of_the_model_input_size() -> None:
    mask = np.array([[0, 1], [255, 0]], np.uint8)
    np.testing.assert_array_equal(object_mask(tensor(mask), (2, 2)), mask != 0)
    values = np.random.default_rng(0).random((2, 2), np.float32)
    np.testing.assert_array_equal(given_map(tensor(values), (2, 2)), values)
    for call in (object_mask, given_map):
        with pytest.raises(CamrtError):
            call(tensor(mask), (2, 3))
        with pytest.raises(CamrtError):
            call(tensor(values), (3, 2))
