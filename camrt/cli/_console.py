"""What the commands print: text and tables on stdout, errors and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.errors import InvalidInputError
from camrt.json_values import storable, strict_json

if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of text.")]

# Wider than any line, so that nothing is wrapped or cut where a program or a file reads the output.
_UNLIMITED_WIDTH = 100_000


def console(stderr: bool = False) -> Console:
    """A console that wraps at the terminal's width, and nowhere when the stream is not a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNLIMITED_WIDTH
    return Console(stderr=stderr, width=width, soft_wrap=True, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on stdout; NaN and infinity, which JSON does not have, become null.

    What a file's name has that is no UTF-8 is escaped.
    """
    text = json.dumps(strict_json(document), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(storable(text) + "\n")


def print_error(error: BaseException) -> None:
    """One message on stderr."""
    from rich.text import Text

    console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error) or type(error).__name__))


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Lines of a name and a value, the values under each other."""
    from rich.text import Text

    fields = list(fields)
    width = max(len(name) for name, _ in fields)
    out = console()
    for name, value in fields:
        out.print(Text.assemble((name.ljust(width), "bold"), "  ", value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table without lines; long cells are folded at a terminal, and left whole elsewhere."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table, soft_wrap=False)


def given_path(text: str) -> Path:
    """The path of an argument. An empty one is refused: it would be the current folder.

    Raises:
        typer.BadParameter: it is empty.
    """
    if not text:
        raise typer.BadParameter("The path is empty; the current folder is a dot.")
    return Path(text)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``224`` or ``224x320`` (height x width) as (H, W).

    Raises:
        InvalidInputError: another text.
    """
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise InvalidInputError(f"{text!r} is no size.", "Give one side, 224, or height x width, 224x320.")
    return int(sides[0]), int(sides[-1])


def parse_names(text: str | None) -> list[str] | None:
    """Names separated by commas; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
