"""The worked example of docs/adding_an_op.md is the code of the package, and does what the page says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from camrt.errors import UnsupportedOpError
from camrt.exporter.vjp import VJP_RULES, activation_variants
from tests.exporter import test_vjp as numeric_check
from tests.exporter import vjp_cases_formats

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_an_op.md").read_text(encoding="utf-8")
RULE, ROWS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def rows() -> list[numeric_check.Case]:
    names = {"row": vjp_cases_formats.row, "RNG": np.random.default_rng(0), "np": np}
    return [numeric_check.Case(**eval(line, names)) for line in ROWS.strip().splitlines()]


def test_the_rule_is_the_one_of_the_package() -> None:
    assert RULE.strip() == inspect.getsource(activation_variants.prelu).strip()


def test_the_rows_are_those_of_the_package() -> None:
    found = [case for case in numeric_check.CASES if case.op == "PRelu"]
    assert [(case.name, case.inputs, case.shape) for case in rows()] == [
        (case.name, case.inputs, case.shape) for case in found
    ]


def test_with_the_rule_of_the_page_its_rows_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(VJP_RULES, "PRelu")
    for case in rows():
        with pytest.raises(UnsupportedOpError, match="PRelu"):
            numeric_check.test_gradient_equals_central_differences(case)
    exec(compile(RULE, "adding_an_op.md", "exec"), dict(vars(activation_variants)))
    for case in rows():
        numeric_check.test_gradient_equals_central_differences(case)
        numeric_check.test_several_cotangents_of_one_image_on_onnx_runtime(case)


def test_every_name_in_the_page_exists() -> None:
    for path in re.findall(r"`((?:camrt|tests|docs)/[\w/]+(?:\.py|/))`", PAGE):
        assert (ROOT / path).exists(), path
    modules = {path.stem for path in (ROOT / "camrt" / "exporter" / "vjp").glob("[a-z]*.py")}
    families = modules - {"registry", "window", "infinities"}
    listed = PAGE[PAGE.index("one module a family") : PAGE.index("The decorator")]
    assert set(re.findall(r"`(\w+)`", listed)) == families
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "exporter").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {name}(" in sources, name
