"""How ``camrt serve`` ends: its exit codes, and the way out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable
from typing import Final, NoReturn

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


async def leave_after(serving: Awaitable[int]) -> NoReturn:
    """Leaves with the code that ``serving`` returns; what it raises passes. asyncio, too, would wait for threads."""
    leave(await serving)


def leave(code: int) -> NoReturn:
    """Ends the process without waiting for threads that are in the middle of a run, or of loading a model."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
