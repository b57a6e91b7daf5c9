"""Settings for every test."""

from __future__ import annotations

from hypothesis import settings

# Shared machines stall at times: a slow example is no failure. The same examples every run.
settings.register_profile("camrt", deadline=None, derandomize=True)
settings.load_profile("camrt")
