"""What clients may read of a text that was written for the operator."""

from __future__ import annotations

import re
from pathlib import Path

_FOLDERS = re.compile(r"(?<![\w./])/([^\s/:'\"]+)/(?:[^\s/:'\"]+/)*(?=[^\s/:'\"])")


def without_folders(text: str) -> str:
    """A text whose absolute paths have lost their folders: where files are on this machine is nobody's business.

    Names of layers look like paths, too; so only what begins with a folder of this machine is one.
    """
    return _FOLDERS.sub(lambda match: "" if Path("/", match[1]).is_dir() else match[0], text)
