"""Errors that hold on to nothing."""

from __future__ import annotations


def drop_tracebacks(error: BaseException | None) -> None:
    """Takes the tracebacks off an error that has been told and logged, and off those that led to it.

    A traceback holds the variables of every function it passed, and one of those usually holds the error: a circle that
    keeps the request, its arrays and its model until Python's collector comes by.
    """
    open_errors, seen = [error], set[int]()
    while open_errors:
        one = open_errors.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            open_errors += [one.__cause__, one.__context__]
