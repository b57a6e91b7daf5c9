"""The models of a server: loaded, swapped and unloaded while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Collection
from pathlib import Path

from camrt.errors import (
    BackendUnavailableError,
    BundleError,
    CamrtError,
    InvalidInputError,
    InvalidModelError,
    ModelError,
)
from camrt.explainer import Explainer
from camrt.server.errors import ModelNotFoundError, ModelNotReadyError, SeveralWorkersError
from camrt.server.model_check import warm_up
from camrt.server.model_files import Fingerprints, ModelFiles, digest_of
from camrt.server.model_status import LoadedModel, ModelStatus
from camrt.server.settings import ServerSettings
from camrt.server.telemetry import note_model

__all__ = ["LoadedModel", "ModelRepository", "ModelStatus"]

_LONGEST_NAME = 128
_LOAD_ERRORS = (BundleError, BackendUnavailableError, InvalidModelError)
logger = logging.getLogger(__name__)


class ModelRepository:
    """The models of one server. get() and statuses() are immediate; load() and unload() work in a thread.

    A request keeps the model that it got: a reload or unload takes it away from new requests only, and its memory is
    free when the last one is done.

    Args:
        settings: where the bundles are, how they run, and which batch sizes are warmed up.
        changed: called on the event loop whenever a status has changed.

    Raises:
        SettingsError: the folder does not exist.
    """

    def __init__(self, settings: ServerSettings, changed: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._files = ModelFiles(settings)
        self._changed = changed
        self._ready: dict[str, dict[int, LoadedModel]] = {}
        self._others: dict[tuple[str, int], ModelStatus] = {}
        self._leaving: list[tuple[weakref.ref[LoadedModel], ModelStatus]] = []
        self._locks: dict[str, asyncio.Lock] = {}

    def get(self, name: str = "", version: str = "") -> LoadedModel:
        """A ready model. An empty name is the only model, an empty version the newest.

        Raises:
            ModelNotFoundError: no such name or version.
            ModelNotReadyError: it is loading, unloading, or has failed to load.
            InvalidInputError: the name is empty and there are several models.
        """
        if not name:
            name = self._only_name()
        versions = self._ready.get(name, {})
        if versions and not version:
            note_model(name)
            return versions[max(versions)]
        number = int(version) if version.isascii() and version.isdecimal() and len(version) < 19 else 0
        if number in versions:
            note_model(name)
            return versions[number]
        raise self._missing(name, version, number)

    def statuses(self) -> list[ModelStatus]:
        """Every version that is loaded, was tried, or is still used by requests, by name and version.

        A version that serves while its file on disk could not be taken is ready, and its reason says so.
        """
        rows: dict[tuple[str, int], ModelStatus] = {}
        for name, versions in self._ready.items():
            for number, model in versions.items():
                other = self._others.get((name, number))
                reason = other.reason if other is not None else ""
                rows[name, number] = ModelStatus(name, model.version, "ready", reason, model.digest)
        for key, status in self._others.items():
            rows.setdefault(key, status)
        for ref, status in self._leaving:
            if ref() is not None:
                rows.setdefault((status.name, int(status.version)), status)
        return [rows[key] for key in sorted(rows)]

    def available(self) -> list[str]:
        """Names that load() would find, loaded or not."""
        return self._files.names()

    def fingerprints(self) -> Fingerprints:
        """What there is on disk, see ModelFiles."""
        return self._files.fingerprints()

    async def start(self) -> None:
        """Loads what the settings name.

        Raises:
            ModelError, BundleError: the one bundle, or a model that the settings name, cannot be used. A broken model
                that was merely found in the folder is logged, and its status says why.
        """
        named = self._settings.models
        for name in list(named) or await asyncio.to_thread(self._files.names):
            try:
                await self._load(name)
            except CamrtError as error:
                if named or not self._files.is_folder:
                    raise
                logger.error("Model %s is not served: %s", name, error)
        if not self._ready:
            logger.warning("There is no model to serve.")

    async def load(self, name: str) -> None:
        """Loads the newest versions of a model from disk; what is loaded already and did not change stays.

        The old ones serve until the new one is ready, and go on if it is broken; where none was loaded, the newest one
        that works is.

        Raises:
            SeveralWorkersError: there are other processes, which would not load it.
            ModelNotFoundError: there is no such model.
            ModelError, BundleError, BackendUnavailableError: the newest cannot be used; statuses() says why. The text
                is for clients: where files are on this machine is in the log only.
        """
        self._check_one_worker()
        try:
            await self._load(name)
        except ModelNotFoundError:
            raise
        except CamrtError as error:
            logger.error("Model %s was not loaded: %s", name, error)
            kind = next((kind for kind in _LOAD_ERRORS if isinstance(error, kind)), ModelError)
            raise kind(self._files.public(str(error))) from error

    async def unload(self, name: str) -> None:
        """Takes every version of a model out of service; requests that have it finish.

        Raises:
            SeveralWorkersError: there are other processes, which would not unload it.
            ModelNotFoundError: it is not loaded, and was not tried.
        """
        self._check_one_worker()
        await self._unload(name)

    async def _load(self, name: str) -> None:
        versions = await asyncio.to_thread(self._files.versions, name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            serving: list[int] = []
            failure: CamrtError | None = None
            for number, path in versions.items():
                if len(serving) == self._settings.keep_versions:
                    break
                try:
                    await self._load_version(name, number, path)
                except CamrtError as error:
                    failure = failure or error
                if number in self._ready.get(name, {}):
                    serving.append(number)
            if serving:
                for number in [number for number in self._ready[name] if number not in serving]:
                    self._retire(self._ready[name].pop(number))
            self._forget(name, set(versions))
            self._changed()
            if failure is not None:
                raise failure

    async def _unload(self, name: str) -> None:
        if name not in self._locks:
            raise ModelNotFoundError(f"There is no model {name[:_LONGEST_NAME]!r}.", "See ListModels.")
        async with self._locks[name]:
            for model in self._ready.pop(name, {}).values():
                self._retire(model)
            self._forget(name, set())
            self._changed()
            logger.info("Model %s was unloaded.", name)

    async def reload(self, only: Collection[str] | None = None) -> None:
        """Loads what is new or changed in the folder, and unloads what is gone; errors are logged.

        Where the settings name models, others are left out, unless they were loaded since.

        Args:
            only: names to look at; None is all.
        """
        try:
            found = await asyncio.to_thread(self._files.names)
        except CamrtError as error:
            logger.error("The models were not loaded again: %s", error)
            return
        known = {*self._ready, *(name for name, _ in self._others)}
        for name in sorted(known - set(found)):
            if only is None or name in only:
                await self._unload(name)
        for name in found:
            named = not self._settings.models or name in self._settings.models or name in known
            if named and (only is None or name in only):
                await self._load_again(name)

    async def _load_again(self, name: str) -> None:
        try:
            await self._load(name)
        except CamrtError as error:
            logger.error("Model %s was not loaded again: %s", name, error)

    def _check_one_worker(self) -> None:
        workers = self._settings.workers
        if workers > 1:
            raise SeveralWorkersError(
                f"A call reaches one of {workers} processes, and would change the models of that one only.",
                "Change the files, and send the server SIGHUP or let it poll them (poll_seconds).",
            )

    async def _load_version(self, name: str, number: int, path: Path) -> None:
        key, current = (name, number), self._ready.get(name, {}).get(number)
        self._others[key] = ModelStatus(name, str(number), "loading")
        self._changed()
        try:
            model = await asyncio.to_thread(self._open, name, number, path, current)
        except CamrtError as error:
            self._others[key] = ModelStatus(name, str(number), "failed", self._files.public(str(error)))
            self._changed()
            raise
        finally:
            if self._others[key].state == "loading":
                del self._others[key]
        if model is current:
            return
        self._ready.setdefault(name, {})[number] = model
        if current is not None:
            self._retire(current)
        logger.info("Model %s version %d is ready.", name, number, extra={"digest": model.digest})

    def _open(self, name: str, number: int, path: Path, current: LoadedModel | None) -> LoadedModel:
        """Opens, warms up and checks a bundle; ``current`` itself where the file is the one that it came from."""
        settings = self._settings
        digest = digest_of(path)
        if current is not None and current.digest == digest:
            return current
        explainer = Explainer(path, settings.provider, settings.run_threads, settings.backend)
        warm_up(explainer, settings.max_batch, path, settings.provider)
        if digest_of(path) != digest:
            raise InvalidModelError(f"{path} changed while it was read.", "Move a complete file to its place.")
        return LoadedModel(name, str(number), explainer, digest, settings.provider)

    def _retire(self, model: LoadedModel) -> None:
        status = ModelStatus(model.name, model.version, "unloading", "", model.digest)
        self._leaving = [row for row in self._leaving if row[0]() is not None]
        loop = asyncio.get_running_loop()

        def left(_: weakref.ref[LoadedModel]) -> None:
            """Called in the thread that lets go of the model, whichever that is."""
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody asks any more
                loop.call_soon_threadsafe(self._changed)

        self._leaving.append((weakref.ref(model, left), status))

    def _forget(self, name: str, kept: set[int]) -> None:
        for key in [key for key in self._others if key[0] == name and key[1] not in kept]:
            del self._others[key]

    def _only_name(self) -> str:
        waiting = {name for (name, _), status in self._others.items() if status.state != "failed"}
        names = {*self._ready, *waiting} or {name for name, _ in self._others}
        if not names:
            raise ModelNotFoundError("The server has no model.", "Load one.")
        if len(names) > 1:
            raise InvalidInputError(f"There are {len(names)} models.", f"Name one of {', '.join(sorted(names)[:20])}.")
        return names.pop()

    def _missing(self, name: str, version: str, number: int) -> ModelNotFoundError | ModelNotReadyError:
        for status in self.statuses():
            wanted = not version or status.version == str(number)
            if status.name == name and wanted and status.state != "ready":
                reason = f": {status.reason}" if status.reason else ""
                return ModelNotReadyError(
                    f"Model {name!r} version {status.version} is {status.state}{reason}", "Try again later."
                )
        told = f"model {name[:_LONGEST_NAME]!r}" + (f" version {version[:20]!r}" if version else "")
        return ModelNotFoundError(f"The server has no {told}.", "See ListModels.")
