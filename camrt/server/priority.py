"""Threads that compute come after the event loop where cores are short."""

from __future__ import annotations

import contextlib
import os
import threading


def lower_priority(niceness: int) -> None:
    """Gives the current thread a niceness, and with it every thread that it starts from now on.

    Linux keeps a niceness a thread; elsewhere, and where it is forbidden, nothing happens. There is no way back for a
    thread without privileges, so this is for threads of a pool of their own.

    Args:
        niceness: 0 is that of others, 19 the lowest priority.
    """
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
