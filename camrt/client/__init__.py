"""Clients of a camrt server, for threads and for asyncio.

>>> with ExplainerClient("localhost:50051") as client:
...     explanation = client.explain("photo.jpg")[0]
"""

from __future__ import annotations

from camrt.client.aio import AsyncExplainerClient
from camrt.client.connection import TlsOptions
from camrt.client.errors import RemoteError
from camrt.client.replies import Prediction, Reply, StreamReply
from camrt.client.sync import ExplainerClient

__all__ = [
    "AsyncExplainerClient",
    "ExplainerClient",
    "Prediction",
    "RemoteError",
    "Reply",
    "StreamReply",
    "TlsOptions",
]
