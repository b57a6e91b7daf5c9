"""What a supervisor and its workers tell each other, a line of JSON each way."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What a worker has to do.

    Attributes:
        number: of the worker, from 0.
        settings: of ServerSettings, every one, as JSON; the port is not 0.
        shares_metrics: whether it counts in the files of camrt.server.shared_metrics.
    """

    number: int
    settings: dict[str, Any]
    shares_metrics: bool

    def line(self) -> str:
        """The task as a line of text."""
        return _line(asdict(self))

    @classmethod
    def read(cls, line: str) -> Self:
        """The task that a line holds."""
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker says once: that it serves, or why it cannot.

    Attributes:
        error: empty where it serves.
    """

    error: str = ""

    def line(self) -> str:
        """The report as a line of text."""
        return _line(asdict(self))

    @classmethod
    def read(cls, line: str) -> Self:
        """The report that a line holds."""
        return cls(**json.loads(line))


def _line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=True) + "\n"
