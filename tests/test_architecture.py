"""The rules of docs/architecture.md: who imports whom, what is public, how long a module is."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import camrt

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "camrt").rglob("*.py"))
LONGEST_MODULE = 400
# A module that may be left out of an installation, and what may import it.
ENGINES = {
    "torch": {"camrt.exporter.from_torch", "camrt.exporter.source"},  # source: for types only
    "torchvision": set(),
    "grpc": {"camrt.server", "camrt.client"},
    "cupy": {"camrt.kernels.cuda"},
    "numba": {"camrt.kernels.cuda"},
    "tensorrt": {"camrt.runtime"},
    "openvino": {"camrt.runtime.openvino", "camrt.runtime.openvino_precision"},
    "onnxruntime": {"camrt.runtime", "camrt.exporter.calibration"},
    "onnx": {"camrt.exporter", "camrt.runtime.arithmetic", "camrt.runtime.pruning"},
    "onnx_ir": {"camrt.exporter"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a module imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def loaded_by(statement: str) -> set[str]:
    """Names in sys.modules after a statement in a fresh interpreter."""
    code = f"import sys; {statement}; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(output.split())


def test_import_contracts() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [program, "--config", "pyproject.toml", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_are_imported_in_their_place_only(engine: str) -> None:
    homes = ENGINES[engine]
    users = {module_name(path) for path in MODULES if engine in imported(path)}
    strangers = {user for user in users if not any(f"{user}.".startswith(f"{home}.") for home in homes)}
    assert not strangers


def test_importing_camrt_loads_nothing_heavy() -> None:
    loaded = loaded_by("import camrt; camrt.Bundle; camrt.CamrtError")
    heavy = {
        "torch",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "numpy",
        "PIL",
        "camrt.exporter",
        "camrt.runtime",
        "typer",
        "rich",
    }
    assert not heavy & loaded


def test_explaining_loads_neither_torch_nor_the_exporter() -> None:
    loaded = loaded_by("import camrt; camrt.Explainer(threads=1)")
    assert "onnxruntime" in loaded
    assert not {"torch", "onnx_ir", "camrt.exporter", "typer"} & loaded


def test_exporting_loads_no_torch() -> None:
    loaded = loaded_by("import camrt; camrt.export")
    assert "onnx_ir" in loaded
    assert not {"torch", "onnxruntime"} & loaded


def test_public_names_exist_and_are_listed() -> None:
    assert dir(camrt) == sorted(camrt.__all__)
    for name in camrt.__all__:
        assert getattr(camrt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        camrt.nothing  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_keeps_the_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= LONGEST_MODULE
    assert ast.get_docstring(tree), "a module says what it is for"
    if len(tree.body) > 1:
        assert "from __future__ import annotations" in text
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = "everything" if node.type is None else ast.unparse(node.type)
            assert caught not in ("everything", "Exception", "BaseException")


@pytest.mark.parametrize("path", [path for path in MODULES if "__all__" in path.read_text()], ids=module_name)
def test_names_in_all_can_be_imported(path: Path) -> None:
    module = importlib.import_module(module_name(path))
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "camrt" / "py.typed").is_file()
