"""The folder of a run: measurements in Parquet files that appear whole or not at all, and what the run is.

``run.json`` says what is measured. ``parts/part-NNNNNN.parquet`` holds the rows of chunk N of the items, and the
problems of its items in the file's metadata. ``measurements.parquet`` is all of them, in the order of items, explainers
and metrics; once it is there the parts are gone. A chunk is measured whole, so the table does not depend on
interruptions.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from camrt.datasets import Problem
from camrt.errors import CamrtError
from camrt.evaluation.optional import require

TABLE_NAME, RUN_NAME = "measurements.parquet", "run.json"
COLUMNS = {
    "item": "string",
    "group": "string",
    "method": "string",
    "base_method": "string",
    "fusion": "string",
    "layers": "string",
    "metric": "string",
    "score": "float64",
    "class_index": "int32",
    "predicted": "int32",
    "probability": "float32",
    "correct": "bool_",
    "degenerate": "bool_",
    "seed": "int64",
    "bundle": "string",
}
"""Columns and types. base_method and fusion are null but with refinecam, layers null for a baseline, correct null where
the true class is unknown; a score is NaN where the metric is undefined. bundle is the SHA-256 of the bundle's file."""

_LOCK_NAME, _PARTS_NAME = ".lock", "parts"
_PART_PATTERN, _PARTIAL_SUFFIX = "part-[0-9]*.parquet", ".partial"
_PROBLEMS_KEY = b"camrt.problems"


class RunFolderError(CamrtError):
    """The folder of a run is of another run, in use, or damaged."""


class RunFolder:
    """The folder of one run; use it as ``with RunFolder.open(...) as folder``.

    Attributes:
        path: the folder.
        chunks: number of chunks of a complete run.
    """

    def __init__(self, path: Path, chunks: int) -> None:
        self.path, self.chunks = path, chunks
        self._parquet = require("pyarrow.parquet")
        self._arrow = require("pyarrow")
        types = {name: getattr(self._arrow, kind)() for name, kind in COLUMNS.items()}
        self._schema = self._arrow.schema(list(types.items()))

    @classmethod
    @contextmanager
    def open(cls, path: Path, identity: Mapping[str, Any], chunks: int, fresh: bool = False) -> Iterator[RunFolder]:
        """Makes the folder, or takes one up where its run was left.

        Args:
            path: the folder.
            identity: what the measurements depend on, of types that JSON has.
            chunks: number of chunks.
            fresh: throw away what an earlier run has measured.

        Raises:
            RunFolderError: the folder belongs to another run (the message names the difference) or holds files of
                something else, another process writes to it, or it cannot be made.
        """
        folder = cls(path, chunks)
        try:
            (path / _PARTS_NAME).mkdir(parents=True, exist_ok=True)
            lock = _open_lock(path / _LOCK_NAME)
        except OSError as error:
            raise RunFolderError(f"Cannot make the folder {path}: {error.strerror}.", "Give another --out.") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(f"Another run writes to {path}.", "Wait for it, or give another --out.") from error
            folder._take_up(json.loads(json.dumps(identity)), fresh)
            yield folder

    def done(self) -> set[int]:
        """Numbers of the chunks that are measured; a part that cannot be read is not, and is measured again."""
        if self.table_path.exists():
            return set(range(self.chunks))
        return {number for number in range(self.chunks) if self._is_whole(number)}

    def write(self, chunk: int, columns: Mapping[str, Sequence[Any]], problems: Sequence[Problem]) -> None:
        """Stores the rows and problems of a chunk, durably and at once."""
        table = self._arrow.table(dict(columns), schema=self._with_problems(problems))
        with replaced(self._part(chunk)) as temporary, temporary.open("wb") as stream:
            self._parquet.write_table(table, stream, row_group_size=max(1, table.num_rows))

    def finish(self) -> Path:
        """Joins the parts to the table; does nothing where it is there already.

        Raises:
            RunFolderError: a part is missing or damaged.
        """
        if not self.table_path.exists():
            problems = self.problems()
            schema = self._with_problems(problems)
            with (
                replaced(self.table_path) as temporary,
                temporary.open("wb") as stream,
                self._parquet.ParquetWriter(stream, schema, compression="zstd") as writer,
            ):
                for number in range(self.chunks):
                    table = self._read_part(number).replace_schema_metadata(schema.metadata)
                    writer.write_table(table, row_group_size=max(1, table.num_rows))
        for part in self._parts():
            part.unlink()
        return self.table_path

    @property
    def table_path(self) -> Path:
        """Where the complete table is, or will be."""
        return self.path / TABLE_NAME

    def problems(self) -> list[Problem]:
        """The problems of all measured items, in their order."""
        parts = (self._part(number) for number in range(self.chunks))
        paths = [self.table_path] if self.table_path.exists() else [path for path in parts if path.exists()]
        found: list[Problem] = []
        for path in paths:
            metadata = self._read(self._parquet.read_schema, path).metadata or {}
            found += [Problem(**fields) for fields in json.loads(metadata.get(_PROBLEMS_KEY, b"[]"))]
        return found

    def _take_up(self, identity: dict[str, Any], fresh: bool) -> None:
        path = self.path / RUN_NAME
        if path.exists() and not fresh:
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RunFolderError(f"{path} is damaged ({error}).", "Start over with --fresh.") from error
            differences = list(_differences(known, identity))
            if differences:
                raise RunFolderError(
                    f"{self.path} holds another run: {'; '.join(differences)}.",
                    "Give another --out, or start over with --fresh.",
                )
        else:
            if not path.exists() and not fresh:
                self._check_unused()
            self._clear()
            with replaced(path) as temporary:
                temporary.write_text(json.dumps(identity, indent=2, ensure_ascii=False), encoding="utf-8")
        for target in (path, self.table_path):
            _remove_file(_partial(target))
        for leftover in (self.path / _PARTS_NAME).glob(_PART_PATTERN + _PARTIAL_SUFFIX):
            _remove_file(leftover)

    def _check_unused(self) -> None:
        """Without a description of a run, files of our names are not ours to delete."""
        foreign = [path for path in (self.table_path, *self._parts()) if os.path.lexists(path)]
        if foreign:
            raise RunFolderError(
                f"{self.path} holds files of something else: {foreign[0].relative_to(self.path)}, but no {RUN_NAME}.",
                "Give another --out, or replace them with --fresh.",
            )

    def _clear(self) -> None:
        for path in (self.table_path, *self._parts()):
            _remove_file(path)

    def _parts(self) -> list[Path]:
        return sorted((self.path / _PARTS_NAME).glob(_PART_PATTERN))

    def _part(self, number: int) -> Path:
        return self.path / _PARTS_NAME / f"part-{number:06d}.parquet"

    def _is_whole(self, number: int) -> bool:
        if not self._part(number).exists():
            return False
        try:
            table = self._read_part(number)
        except RunFolderError:
            return False
        return bool(table.schema.equals(self._schema))

    def _read_part(self, number: int) -> Any:
        return self._read(self._parquet.read_table, self._part(number))

    def _read(self, read: Any, path: Path) -> Any:
        try:
            with path.open("rb") as stream:  # pyarrow takes no path that is not UTF-8
                return read(stream)
        except (OSError, self._arrow.ArrowException) as error:
            raise RunFolderError(f"{path} is missing or damaged ({error}).", "Delete it and run again.") from error

    def _with_problems(self, problems: Sequence[Problem]) -> Any:
        text = json.dumps([asdict(problem) for problem in problems], ensure_ascii=False)
        return self._schema.with_metadata({_PROBLEMS_KEY: text.encode()})


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well: whole, or not at all, also after a crash.

    A link at ``path`` is replaced itself; the file that it names is left alone.
    """
    temporary = _partial(path)
    _remove_file(temporary)
    yield temporary
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + _PARTIAL_SUFFIX)


def _remove_file(path: Path) -> None:
    """Deletes a file or a link; what else may have the name is left alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()


def _open_lock(path: Path) -> IO[bytes]:
    """Opens the file of the lock as it is: it may be another's, so no link is followed and nothing is cut off."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b", buffering=0)


def _differences(known: object, wanted: object, name: str = "") -> Iterator[str]:
    """What differs between two trees of JSON values, one text a leaf."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys((*known, *wanted)):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(known.get(key), wanted.get(key), inner)
    elif isinstance(known, list) and isinstance(wanted, list):
        gone = [item for item in known if item not in wanted]
        new = [item for item in wanted if item not in known]
        if gone:
            yield f"{name} had {_listed(gone)}"
        if new:
            yield f"{name} has {_listed(new)} now"
        if known != wanted and not gone and not new:
            yield f"{name} has another order"
    elif known != wanted:
        yield f"{name} was {known!r}, is {wanted!r} now"


def _listed(items: Sequence[object]) -> str:
    shown = ", ".join(" ".join(map(str, item)) if isinstance(item, list) else str(item) for item in items[:5])
    return shown + (f" and {len(items) - 5} more" if len(items) > 5 else "")
