"""JSON logs: one object a line, everything escaped."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

from camrt.server.telemetry import current_request_id

_LONGEST = 4096
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A line a record: time (UTC), level, logger, message, worker, request_id, what ``extra`` names, exception.

    JSON strings in ASCII have no line breaks and no control characters, so nothing that a client sends can forge a
    line or move a cursor. A text is cut after 4096 characters.

    Args:
        worker: number of this process, where there are several.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        if self._worker is not None:
            fields["worker"] = self._worker
        request_id = current_request_id()
        if request_id:
            fields["request_id"] = request_id
        fields.update({name: value for name, value in vars(record).items() if name not in _KNOWN})
        if record.exc_info:
            fields["exception"] = _cut(self.formatException(record.exc_info))
        return json.dumps({name: _cut(value) for name, value in fields.items()}, ensure_ascii=True, default=_text)


class _CallersThatLeft(logging.Filter):
    """Makes a line of level info, without a trace, of the error that gRPC logs where a caller left before its reply.

    gRPC ignores the failed sending where it knows that the call was cancelled, and logs an error where the sending
    fails first. Nobody can do anything about it, and callers with short deadlines would fill the log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        kind = record.exc_info[0] if record.exc_info else None
        if kind is None or kind.__name__ != "ExecuteBatchError":
            return True
        root = logging.getLogger()
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        record.msg, record.args = f"{record.getMessage()}: the reply could not be sent, as where the caller left", ()
        if not root.isEnabledFor(logging.DEBUG):
            record.exc_info = record.exc_text = None
        return root.isEnabledFor(logging.INFO)


_CALLERS_THAT_LEFT = _CallersThatLeft()


def set_up_logs(level: str, stream: TextIO | None = None, worker: int | None = None) -> None:
    """Sends the logs of this process, those of its libraries too, to ``stream`` (default stderr) as JSON.

    Args:
        level: the least that is logged.
        stream: where to.
        worker: number of this process, where there are several; every line has it.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_CALLERS_THAT_LEFT)


def _cut(value: Any) -> Any:
    """A text that is too long without its middle: the end of a trace says most."""
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{value[: _LONGEST // 2]} ... {value[-_LONGEST // 2 :]}"
    return value


def _text(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST]
