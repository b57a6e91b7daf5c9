"""Maps of replies to bytes, in the pool: in pieces, so that a caller that has gone stops it; large ones in turns."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from PIL import Image

from camrt.cam import Plan
from camrt.errors import InvalidInputError
from camrt.explainer import Explainer
from camrt.explanation import Explanation
from camrt.server.codec import Decoded, Output, background_of, output_size
from camrt.server.engine import Engine
from camrt.server.errors import DeadlineError
from camrt.server.replies import explanation_message, in_output_pixels
from camrt.server.settings import ServerSettings
from camrt.v1 import explainer_pb2 as pb

T = TypeVar("T")

PIECE_PIXELS: Final = 1 << 20
"""Pixels that are encoded in one go, and up to which a request waits for nobody: about 0.1 s of one thread."""


@dataclass(slots=True, eq=False)
class ReplyMaps:
    """The maps of one reply. Its pieces run one after the other.

    Attributes:
        request: what was asked for.
        explainer: of the model.
        plan: how the maps were made.
        decoded: the image.
        output: how the maps are sent.
        settings: the limits.
    """

    request: pb.ExplainRequest
    explainer: Explainer
    plan: Plan
    decoded: Decoded
    output: Output
    settings: ServerSettings
    _background: Image.Image | None = None
    _bytes: int = 0

    @property
    def pixels(self) -> int:
        """How many are held at a time: of one map, and of the image where the map lies on it."""
        height, width = output_size(self.output, self.decoded)
        original = self.decoded.original_size[0] * self.decoded.original_size[1] if self.output.is_overlay else 0
        return height * width + original

    def pieces(self, explanations: Sequence[Explanation]) -> Iterator[Callable[[], list[pb.Explanation]]]:
        """Calls that encode some of the maps each, at least one.

        They raise InvalidInputError as soon as the bytes are more than a message may have.
        """
        height, width = output_size(self.output, self.decoded)
        count = max(1, PIECE_PIXELS // (height * width))
        for start in range(0, len(explanations), count):
            yield partial(self._encode, explanations[start : start + count])

    def _encode(self, explanations: Sequence[Explanation]) -> list[pb.Explanation]:
        image, explainer, output = self.request.image, self.explainer, self.output
        if self._background is None:
            self._background = background_of(image, explainer, output, self.settings.image_pixels)
        messages = []
        for explanation in explanations:
            moved = in_output_pixels(explainer, explanation, self.plan, self.decoded, output)
            layers = self.request.return_layer_maps
            messages.append(explanation_message(explainer.manifest, moved, output, self._background, layers))
            self._bytes += messages[-1].ByteSize()
            if self._bytes > self.settings.message_bytes:
                raise InvalidInputError(
                    f"The maps of the reply have more than {self.settings.message_bytes} bytes.",
                    "Ask for fewer classes, a smaller size, or overlays as JPEG.",
                )
        return messages


class Encoder:
    """Runs pieces of encoding in the pool of an engine. Made and used on its event loop.

    Requests that hold more than PIECE_PIXELS pixels take turns: together they hold at most ``pixels``, so that neither
    memory nor the threads of the pool are theirs alone.

    Args:
        engine: its pool.
        pixels: the most; a request that holds more has its turn alone.
    """

    def __init__(self, engine: Engine, pixels: int) -> None:
        self._engine, self._most, self._free = engine, pixels, pixels
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(self, pieces: Iterable[Callable[[], T]], pixels: int, deadline: float | None) -> list[T]:
        """What the pieces return, one after the other. A caller that is cancelled stops them after the one that runs.

        Args:
            pieces: release the GIL where they are slow.
            pixels: held at a time.
            deadline: time.monotonic() seconds, or None.

        Raises:
            DeadlineError: the deadline passed.
        """
        taken = 0 if pixels <= PIECE_PIXELS else min(pixels, self._most)
        await self._take(taken, deadline)
        gone, running = threading.Event(), None
        try:
            results = []
            for piece in pieces:
                call = partial(_unless_too_late, gone, deadline, piece)
                running = asyncio.ensure_future(self._engine.offload(call, "encode"))
                # Shielded: the thread ends its piece in any case, and only then its pixels are free.
                results.append(await asyncio.shield(running))
            return results
        finally:
            gone.set()
            if running is None:
                self._give(taken)
            else:
                running.add_done_callback(partial(self._ended, taken))

    async def _take(self, pixels: int, deadline: float | None) -> None:
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                while self._free < pixels:
                    turn = asyncio.get_running_loop().create_future()
                    self._waiting.append(turn)
                    try:
                        await turn
                    finally:
                        self._waiting.remove(turn)
        except TimeoutError as error:
            raise _too_late() from error
        self._free -= pixels

    def _ended(self, pixels: int, piece: asyncio.Future[T]) -> None:
        if not piece.cancelled():
            piece.exception()  # where the caller has gone nobody else asks for it
        self._give(pixels)

    def _give(self, pixels: int) -> None:
        self._free += pixels
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)


def _unless_too_late(gone: threading.Event, deadline: float | None, piece: Callable[[], T]) -> T:
    """Runs in the pool, perhaps long after it was asked for."""
    if gone.is_set() or (deadline is not None and time.monotonic() >= deadline):
        raise _too_late()
    return piece()


def _too_late() -> DeadlineError:
    return DeadlineError("The deadline passed before the maps were encoded.", "Allow more time, or ask for less.")
