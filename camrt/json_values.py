"""Values that every document can hold."""

from __future__ import annotations

import math
from typing import Any


def strict_json(document: Any) -> Any:
    """Dicts and lists with None in place of numbers that JSON does not have, NaN and infinity."""
    if isinstance(document, dict):
        return {key: strict_json(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [strict_json(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def storable(text: str) -> str:
    """Text that every file and terminal can hold: bytes of a path that are no UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
