"""Follows a model repository without signals: looks at its files every few seconds."""

from __future__ import annotations

import asyncio
import logging

from camrt.errors import CamrtError
from camrt.server.model_files import Fingerprints
from camrt.server.models import ModelRepository

logger = logging.getLogger(__name__)


class Poller:
    """Reloads the models whose files have changed since they were last loaded.

    A change counts once two looks in a row agree on it: a file that is still being copied is left alone. A version that
    cannot be loaded is tried again when its file changes, not at every look.

    Args:
        repository: what is followed.
        seconds: between two looks.
    """

    def __init__(self, repository: ModelRepository, seconds: float) -> None:
        self._repository, self._seconds = repository, seconds
        self._loaded: Fingerprints = {}
        self._seen: Fingerprints = {}

    async def begin(self) -> None:
        """Takes the files as they are for loaded; called before they are.

        Raises:
            ModelError: the folder cannot be read.
        """
        self._loaded = self._seen = await asyncio.to_thread(self._repository.fingerprints)

    async def run(self) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except CamrtError as error:
                logger.error("The models were not looked at: %s", error)

    async def look(self) -> list[str]:
        """One look; returns the names that were reloaded.

        Raises:
            ModelError: the folder cannot be read.
        """
        before, self._seen = self._seen, await asyncio.to_thread(self._repository.fingerprints)
        now = self._seen
        if now != before:
            return []
        changed = sorted(name for name in {*now, *self._loaded} if now.get(name) != self._loaded.get(name))
        if changed:
            self._loaded = now
            await self._repository.reload(changed)
        return changed
