"""A process that stands in for camrt.server.worker: quick to start, and it does what STUB_WORKER says.

serves: says that it serves, drains at SIGTERM; ``serves:N`` then exits with code N.
dies: ends at once. error: says that it cannot start. stubborn: serves, and SIGTERM does nothing.
Every one notes in the file STUB_NOTES what happens to it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType


def note(text: str) -> None:
    with Path(os.environ["STUB_NOTES"]).open("a") as notes:
        notes.write(f"{text}\n")


def say(error: str) -> None:
    sys.stdout.write(json.dumps({"error": error}) + "\n")
    sys.stdout.flush()


def main() -> None:
    behaviour, _, code = os.environ["STUB_WORKER"].partition(":")
    task = json.loads(sys.stdin.readline())
    note(f"start {task['number']} {os.getpid()} {task['settings']['port']}")
    if behaviour == "dies":
        sys.exit(7)
    if behaviour == "error":
        say("The model is damaged.")
        sys.exit(2)

    def stop(number: int, frame: FrameType | None) -> None:
        note(f"stop {task['number']}")
        if behaviour != "stubborn":
            os._exit(int(code or 0))

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, lambda *_: note(f"reload {task['number']}"))
    say("")
    while True:
        signal.pause()


main()
