"""``python -m camrt``."""

from __future__ import annotations

from camrt.cli import main

main()
