from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from camrt import errors
from camrt.errors import (
    CamrtError,
    ClassIndexError,
    ImageError,
    InvalidInputError,
    InvalidModelError,
    LayerNotFoundError,
    MethodNotFoundError,
    ModelError,
    UnsupportedModelError,
    UnsupportedOpError,
)

PACKAGE = Path(__file__).parents[1] / "camrt"
CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, CamrtError)]


@pytest.mark.parametrize("error", [item for item in CLASSES if item is not UnsupportedOpError])
def test_the_text_is_the_message_and_the_next_step(error: type[CamrtError]) -> None:
    caught = error("The file is empty.", "Export it again.")
    assert str(caught) == "The file is empty. Export it again."
    assert (caught.message, caught.next_step) == ("The file is empty.", "Export it again.")
    assert str(error("Alone.")) == "Alone."


def test_the_tree() -> None:
    assert issubclass(InvalidModelError, ModelError)
    assert issubclass(UnsupportedOpError, UnsupportedModelError)
    assert issubclass(UnsupportedModelError, ModelError)
    assert issubclass(ClassIndexError, InvalidInputError)
    assert issubclass(ImageError, InvalidInputError)
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(LayerNotFoundError, LookupError)
    assert issubclass(MethodNotFoundError, LookupError)
    assert not issubclass(ModelError, ValueError)


def test_an_operator_without_rule() -> None:
    error = UnsupportedOpError("Ceil", "layer3/ceil", ("layer4", "layer3"))
    assert str(error) == (
        "No gradient rule for operator Ceil (node 'layer3/ceil'). These target layers work without it: layer4, layer3."
    )
    assert (error.op_type, error.node_name, error.working_layers, error.reason) == (
        "Ceil",
        "layer3/ceil",
        ("layer4", "layer3"),
        "",
    )


def test_an_operator_that_its_rule_refuses() -> None:
    error = UnsupportedOpError("MaxPool", "pool", reason="a dilated window")
    assert str(error) == (
        "No gradient rule for operator MaxPool (node 'pool'): a dilated window. None of the target layers asked for works "
        "without it. Name layers between it and the logits: camrt layers MODEL lists them; or write a rule: "
        "docs/adding_an_op.md."
    )


def raised_calls() -> list[tuple[str, ast.Call]]:
    """Every ``raise SomeCamrtError(...)`` of the package."""
    names = {item.__name__ for item in CLASSES}
    calls = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                function = node.exc.func
                if isinstance(function, ast.Name) and function.id in names:
                    calls.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", node.exc))
    return calls


def test_every_error_of_the_package_tells_the_next_step() -> None:
    """In an argument of its own, or by what the message says was expected."""
    calls = raised_calls()
    assert len(calls) > 50
    alone = [(place, call) for place, call in calls if len(call.args) + len(call.keywords) < 2]
    assert [place for place, call in alone if "expected" not in ast.unparse(call)] == []
