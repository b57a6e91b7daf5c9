"""Packages that only an evaluation needs, imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from camrt.errors import CamrtError

_PACKAGES = {"yaml": "pyyaml"}


class MissingPackageError(CamrtError, ImportError):
    """A package of the [evaluation] extra is not installed."""


def require(module: str) -> Any:
    """The module called ``module``, imported.

    Raises:
        MissingPackageError: its package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        package = _PACKAGES.get(top, top)
        raise MissingPackageError(
            f"An evaluation needs {package}, which is not installed.", "Run: pip install 'camrt[evaluation]'"
        ) from error
