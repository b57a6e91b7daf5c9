"""When a call that failed is tried again: never after its time is up, and when the server says so."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import grpc

from camrt.client.errors import PUSHBACK_KEY, pushback_of, trailers_of

_FIRST_SECONDS = 0.1
_LONGEST_SECONDS = 5.0


class Attempts:
    """The attempts of one call.

    Tried again are UNAVAILABLE, after 0.1, 0.2, 0.4, ... s (at most 5, each times 0.8 to 1.2), and whatever comes with
    ``grpc-retry-pushback-ms``, after that time; a negative or unreadable one says: never. All attempts together have
    one timeout.

    Args:
        timeout: seconds for all attempts.
        retries: most attempts after the first.
        clock: seconds, growing.
    """

    def __init__(self, timeout: float, retries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._until, self._left = clock, clock() + timeout, retries
        self._backoff = _FIRST_SECONDS

    def remaining(self) -> float:
        """Seconds that the next attempt has."""
        return max(0.0, self._until - self._clock())

    def pause(self, error: grpc.RpcError | grpc.aio.AioRpcError) -> float | None:
        """Seconds to wait before the next attempt, or None where there is none."""
        wait = self._wait(error)
        if wait is None or self._left <= 0 or wait >= self.remaining():
            return None
        self._left -= 1
        return wait

    def _wait(self, error: grpc.RpcError | grpc.aio.AioRpcError) -> float | None:
        trailers = trailers_of(error)
        if PUSHBACK_KEY in trailers:
            pushback = pushback_of(trailers)
            return None if pushback is None else pushback / 1000
        assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return None
        wait = self._backoff * random.uniform(0.8, 1.2)
        self._backoff = min(2 * self._backoff, _LONGEST_SECONDS)
        return wait
