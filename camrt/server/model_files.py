"""Which bundles there are: a folder of them, one file, or the one that ships with camrt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from camrt.bundle import file_sha256
from camrt.errors import InvalidModelError
from camrt.explainer import embedded_bundle_path
from camrt.server.errors import ModelNotFoundError, SettingsError
from camrt.server.public_text import without_folders
from camrt.server.settings import ServerSettings

BUNDLE_FILE = "bundle.onnx"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")

Fingerprints: TypeAlias = dict[str, dict[int, tuple[int, int, int]]]
"""By name and version of a model: time of change (ns), size and inode of its file."""


class ModelFiles:
    """Finds bundles. What is not named as it should be is not seen, so a name never leads out of the folder.

    A folder holds ``NAME/VERSION/bundle.onnx``, VERSION a number, or ``NAME.onnx``, which is version 1.

    Args:
        settings: bundle, or model_repository, or neither.

    Raises:
        SettingsError: the folder does not exist.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._folder = settings.model_repository
        self._file = embedded_bundle_path() if settings.bundle is None else settings.bundle
        if self._folder is not None and not self._folder.is_dir():
            raise SettingsError(f"There is no folder {self._folder}.", "Check --model-repository.")

    @property
    def is_folder(self) -> bool:
        """Whether models may come and go."""
        return self._folder is not None

    def names(self) -> list[str]:
        """Every model there is.

        Raises:
            InvalidModelError: the folder cannot be read.
        """
        if self._folder is None:
            return [_name_of(self._file)]
        with _readable(self._folder):
            candidates = {path.stem if path.is_file() else path.name for path in self._folder.iterdir()}
            return sorted(name for name in candidates if self._versions(name))

    def versions(self, name: str) -> Mapping[int, Path]:
        """Version to file, the newest first.

        Raises:
            ModelNotFoundError: there is no such model.
            InvalidModelError: the folder cannot be read.
        """
        with _readable(self._folder or self._file):
            found = self._versions(name)
        if not found:
            raise ModelNotFoundError(
                f"There is no model {name[:128]!r} to load.", "See RepositoryIndex, or the folder."
            )
        return dict(sorted(found.items(), reverse=True))

    def fingerprints(self) -> Fingerprints:
        """What changes when a file does, without reading it. Raises as names."""
        with _readable(self._folder or self._file):
            return {name: _stamps(self._versions(name)) for name in self.names()}

    def public(self, text: str) -> str:
        """A text as clients may read it: paths of bundles begin at the repository, others have lost their folders."""
        root = self._folder or self._file.parent
        for place in {root, root.absolute(), root.resolve()}:
            text = text.replace(f"{place}/", "")
        return without_folders(text)

    def _versions(self, name: str) -> dict[int, Path]:
        if _NAME.fullmatch(name) is None:
            return {}
        if self._folder is None:
            return {1: self._file} if name == _name_of(self._file) else {}
        plain, home = self._folder / f"{name}.onnx", self._folder / name
        found = {1: plain} if plain.is_file() else {}
        for path in home.iterdir() if home.is_dir() else ():
            if _VERSION.fullmatch(path.name) and (path / BUNDLE_FILE).is_file():
                found[int(path.name)] = path / BUNDLE_FILE
        return found


def _stamps(versions: Mapping[int, Path]) -> dict[int, tuple[int, int, int]]:
    stamps = {}
    for number, path in versions.items():
        stat = path.stat()
        stamps[number] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return stamps


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidModelError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from error


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex.

    Raises:
        InvalidModelError: it cannot be read.
    """
    with _readable(path):
        return file_sha256(path)


def _name_of(path: Path) -> str:
    """The name of a model that is one file: the file's, without its suffixes."""
    stem = path.name.removesuffix(".onnx").removesuffix(".bundle")
    return stem if _NAME.fullmatch(stem) else "model"
