"""Exit codes of ``camrt serve``."""

from __future__ import annotations

from typing import Final

DRAINED: Final = 0
"""Every request that was accepted was answered."""
STOPPED_AT_ONCE: Final = 1
"""A second signal came."""
CANNOT_START: Final = 2
"""Wrong settings, a port in use, a model that does not load."""
CUT_OFF: Final = 3
"""Accepted requests took longer than drain_timeout, or a worker died with some."""
WORKERS_FAIL: Final = 4
"""Worker processes died again and again while they started."""
