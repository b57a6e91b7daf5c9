"""Every kernel against the reference, on an emulated GPU: the tests of the other backends, with this one."""

from __future__ import annotations

from tests.kernels.test_backends_agree import *  # noqa: F403
