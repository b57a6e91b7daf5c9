"""What the axes of a value mean: which one holds the batch, the rows, the columns, the channels, the tokens.

Each axis is a list of atoms, outermost first. A Reshape only regroups them: (N, C, h, w) becomes (N, C, h w); windows
of 7 x 7 split rows into (8, 7) and columns likewise, and move them; the inverse puts them together again. So the
meaning survives what exporters make of window attention, patch merging and channel shuffles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from camrt.exporter.shapes import BATCH

Symbol: TypeAlias = Literal["N", "C", "H", "W", "T", "?"]


@dataclass(frozen=True, slots=True)
class Atom:
    """One factor of an axis.

    Attributes:
        symbol: batch, channels, rows, columns, tokens with others (a class token) in front of them, or unknown.
        size: how many; BATCH for N.
        stride: rows or columns that one step of it takes.
        grid: of tokens, (h, w).
        shift: of rows or columns, how many were put in front of the first one, or less than zero: taken away.
    """

    symbol: Symbol
    size: int
    stride: int = 1
    grid: tuple[int, int] = (0, 0)
    shift: int = 0

    @property
    def is_clear(self) -> bool:
        """Whether the meaning is known, and positions are where they seem to be."""
        return self.symbol != "?" and self.shift == 0

    @property
    def prefix(self) -> int:
        """Tokens in front of those that have positions."""
        return self.size - self.grid[0] * self.grid[1]


Axis: TypeAlias = tuple[Atom, ...]
Axes: TypeAlias = tuple[Axis, ...]


def named_axes(shape: Sequence[int], letters: str) -> Axes:
    """One atom an axis, after ``letters``: NCHW, NHWC."""
    symbols: dict[str, Symbol] = {"N": "N", "C": "C", "H": "H", "W": "W"}
    return tuple((Atom(symbols[letter], size),) for letter, size in zip(letters, shape, strict=True))


def fits(axes: Axes, shape: Sequence[int]) -> bool:
    """Whether the atoms multiply to ``shape``, and the batch is in its batch axis."""
    return len(axes) == len(shape) and all(
        any(atom.symbol == "N" for atom in axis) if size == BATCH else axis_size(axis) == size
        for axis, size in zip(axes, shape, strict=True)
    )


def axis_size(axis: Axis) -> int:
    """The length of an axis without the batch."""
    return math.prod(atom.size for atom in axis)


def merged(axis: Axis) -> Axis:
    """Neighbouring atoms that are parts of one put together."""
    merged: list[Atom] = []
    for atom in axis:
        last = merged[-1] if merged else None
        if last is not None and last.symbol == atom.symbol and (atom.symbol == "C" or atom.symbol == "?"):
            merged[-1] = replace(last, size=last.size * atom.size)
        elif (
            last is not None
            and last.symbol == atom.symbol
            and atom.symbol in ("H", "W")
            and last.stride == atom.size * atom.stride
            and last.shift == atom.shift == 0
        ):
            merged[-1] = replace(last, size=last.size * atom.size, stride=atom.stride)
        elif atom.size != 1 or atom.symbol in ("H", "W", "C"):
            merged.append(atom)
    return tuple(merged)


def regrouped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The atoms of ``axes`` dealt out anew to axes of ``shape``; None where an atom would have to break unevenly."""
    atoms = list(merged(tuple(atom for axis in axes for atom in axis if atom.size != 1)))
    batch = shape.index(BATCH) if BATCH in shape else len(shape)
    front = _dealt(atoms, shape[:batch])
    if front is None:
        return None
    if batch == len(shape):
        return tuple(front)
    back = _dealt(atoms, shape[batch + 1 :], from_the_end=True)
    return None if back is None else (*front, tuple(atoms), *back)


def _dealt(atoms: list[Atom], sizes: Sequence[int], *, from_the_end: bool = False) -> list[Axis] | None:
    """Takes the atoms for axes of ``sizes`` off one end of ``atoms``."""
    axes: list[Axis] = []
    for size in reversed(sizes) if from_the_end else sizes:
        taken: list[Atom] = []
        while size > 1:
            if not atoms:
                return None
            atom = atoms.pop() if from_the_end else atoms.pop(0)
            if atom.size > 0 and size % atom.size == 0:
                part = atom
            elif atom.size > size and atom.size % size == 0 and atom.symbol not in ("N", "T"):
                rest = atom.size // size
                if from_the_end:
                    part = replace(atom, size=size)
                    atoms.append(replace(atom, size=rest, stride=atom.stride * size))
                else:
                    part = replace(atom, size=size, stride=atom.stride * rest)
                    atoms.insert(0, replace(atom, size=rest))
            else:
                return None
            taken.insert(0, part) if from_the_end else taken.append(part)
            size //= part.size
        axes.append(tuple(taken))
    return axes[::-1] if from_the_end else axes


def resized(axes: Axes, shape: Sequence[int]) -> Axes:
    """Axes of another length: channels stay channels, of anything else the meaning is lost."""
    return tuple(
        axis if size == BATCH or axis_size(axis) == size else (Atom("C" if is_channels(axis) else "?", size),)
        for axis, size in zip(axes, shape, strict=True)
    )


def swept(axis: Axis, size: int, window: int) -> Axis:
    """The axis of ``size`` places at which windows of ``window`` elements lie, in the order of ``axis``.

    Rows and columns stay what they are. A window that is longer than a shift makes up for it: a padding in front and a
    convolution that reads it are a convolution with padding.
    """
    if len(axis) == 1 and axis[0].symbol in ("H", "W"):
        return (replace(axis[0], size=size, shift=0 if abs(axis[0].shift) < window else axis[0].shift),)
    if axis_size(axis) == size:
        return axis
    return (Atom("C" if is_channels(axis) and axis else "?", size),)


def is_channels(axis: Axis) -> bool:
    """Whether an axis holds channels only; one of length 1 without atoms does."""
    return all(atom.symbol == "C" for atom in axis)


def token_grid(axis: Axis) -> tuple[int, int] | None:
    """(h, w) of an axis that runs over rows and, inside them, over columns."""
    if not all(atom.is_clear for atom in axis):
        return None
    if [atom.symbol for atom in axis] == ["H", "W"]:
        return axis[0].size, axis[1].size
    return axis[0].grid if len(axis) == 1 and axis[0].symbol == "T" else None
