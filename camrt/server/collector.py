"""Python's garbage collector, kept from stopping a server for long."""

from __future__ import annotations

import gc


def settle() -> None:
    """Leaves everything that lives now out of later collections; call it when the server has started.

    A collection of all objects, modules and models among them, holds every thread for tens of milliseconds, and comes
    again and again under load. What is left out and no longer used is still freed, unless it is part of a cycle.
    """
    gc.collect()
    gc.freeze()
