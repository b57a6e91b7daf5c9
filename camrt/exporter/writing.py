"""Writes bundles to disk, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from camrt.errors import InvalidInputError


def write_model(model: ir.Model, destination: Path) -> None:
    """Writes to a file beside ``destination`` and renames it: an interrupted export leaves no half bundle."""
    temporary = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=destination.parent, prefix=destination.name, suffix=".part")
        os.close(handle)
        temporary = Path(name)
        ir.save(model, temporary)
        temporary.chmod(0o644)
        temporary.replace(destination)
    except OSError as error:
        raise InvalidInputError(f"Cannot write {destination}: {error.strerror or error}.", "Check the path.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
