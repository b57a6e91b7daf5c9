"""The garbage collector leaves alone what lived when the server started."""

from __future__ import annotations

import subprocess
import sys


def test_what_lives_is_left_out_and_still_freed_when_it_is_not_used() -> None:
    code = (
        "import gc, weakref\n"
        "import camrt.server.app\n"
        "from camrt.server.collector import settle\n"
        "class Node: pass\n"
        "old, cycle = Node(), Node(); cycle.self = cycle; lost = weakref.ref(cycle); del cycle\n"
        "settle()\n"
        "assert lost() is None, 'garbage of the start is kept'\n"
        "assert gc.get_freeze_count() > 10_000 and len(gc.get_objects()) < 1000\n"
        "gone = weakref.ref(old); del old\n"
        "assert gone() is None\n"
        "young = Node(); young.self = young; gone = weakref.ref(young); del young; gc.collect()\n"
        "assert gone() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
