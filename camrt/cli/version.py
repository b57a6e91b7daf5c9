"""``camrt version`` and ``camrt --version``."""

from __future__ import annotations

import sys

import typer

from camrt.cli._console import JsonOption, print_json


def version(as_json: JsonOption = False) -> None:
    """Print the version."""
    from camrt import __version__

    if as_json:
        print_json({"version": __version__})
    else:
        sys.stdout.write(f"camrt {__version__}\n")


def print_and_exit(requested: bool) -> None:
    """The callback of ``--version``."""
    if requested:
        version()
        raise typer.Exit
