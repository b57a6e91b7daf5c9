from __future__ import annotations

from typing import Any

import pytest

from camrt.bundle import Manifest, TargetLayer
from camrt.cam import Plan, make_plan
from camrt.cam.refine import check_fusion, choose_layers
from camrt.errors import InvalidInputError, LayerNotFoundError, MethodNotFoundError


def manifest(*names: str) -> Manifest:
    return Manifest(
        camrt_version="0",
        source_name="net.onnx",
        source_sha256="0",
        input_name="image",
        input_shape=(3, 8, 8),
        logits="logits",
        head="logits",
        num_classes=2,
        outputs=("logits",),
        target_layers=tuple(
            TargetLayer(name, name, (1, 2, 2), "NCHW", f"activations/{name}", f"gradients/{name}") for name in names
        ),
    )


def plan(names: tuple[str, ...] = ("a", "b", "c"), **changes: Any) -> Plan:
    arguments: dict[str, Any] = {
        "method": "refinecam",
        "base_method": "gradcam++",
        "fusion": "product",
        "target_layers": None,
        "order": "normalize_twice",
    }
    return make_plan(manifest(*names), **{**arguments, **changes})


@pytest.mark.parametrize(
    ("choice", "names", "expected"),
    [
        ("all", "abcd", "abcd"),
        ("top", "abcd", "ad"),
        ("above", "abcd", "cd"),
        ("all", "a", "a"),
        ("top", "a", "a"),
        ("above", "a", "a"),
        ("top", "ab", "ab"),
    ],
)
def test_choices(choice: str, names: str, expected: str) -> None:
    assert choose_layers(choice, tuple(names)) == tuple(expected)


def test_defaults() -> None:
    refined, plain = plan(), plan(method="layercam")
    assert (refined.refines, refined.base.name, refined.layers) == (True, "gradcam++", ("a", "b", "c"))
    assert (plain.refines, plain.base.name, plain.layers) == (False, "layercam", ("a",))


def test_layers_come_in_the_order_of_the_manifest() -> None:
    assert plan(target_layers=["c", "a", "c"]).layers == ("a", "c")


def test_the_base_method_of_a_plain_method_does_not_matter() -> None:
    assert plan(method="gradcam", base_method="whatever").base.name == "gradcam"


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"method": "x"}, MethodNotFoundError, "refinecam, gradcam"),
        ({"base_method": "x"}, MethodNotFoundError, "gradcam"),
        ({"fusion": "x"}, MethodNotFoundError, "log_exp"),
        ({"order": "x"}, MethodNotFoundError, "resize_once"),
        ({"target_layers": "x"}, LayerNotFoundError, "it has a, b, c"),
        ({"target_layers": ()}, InvalidInputError, "Name some of a, b, c"),
        ({"method": "gradcam", "target_layers": "all"}, InvalidInputError, "one layer, not 3"),
    ],
)
def test_refusals_name_what_there_is(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        plan(**changes)


def test_check_fusion_gives_both_names_back() -> None:
    assert check_fusion("mean", "resize_once") == ("mean", "resize_once")
