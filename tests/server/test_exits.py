"""The process ends when its work has, whatever its threads do."""

from __future__ import annotations

import subprocess
import sys
import time

SCRIPT = """
import asyncio, logging, sys, time
from concurrent.futures import ThreadPoolExecutor
from camrt.server.exits import leave_after

async def serve():
    ThreadPoolExecutor(1).submit(time.sleep, 60)
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    await asyncio.sleep(0.1)
    sys.stdout.write("told")
    logging.getLogger().error("logged")
    return CODE

asyncio.run(leave_after(serve()))
"""


def test_threads_that_are_busy_are_not_waited_for() -> None:
    for code in (0, 3):
        started = time.monotonic()
        script = SCRIPT.replace("CODE", str(code))
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
        assert ended.returncode == code
        assert (ended.stdout, "logged" in ended.stderr) == ("told", True)
        assert time.monotonic() - started < 30
