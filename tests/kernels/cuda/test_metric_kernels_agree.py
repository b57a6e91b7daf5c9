"""The kernels that metrics need, on an emulated GPU: the tests of the other backends, with this one."""

from __future__ import annotations

import pytest

from tests.kernels.test_imputation import *  # noqa: F403
from tests.kernels.test_perturbation import *  # noqa: F403

# Compiled for one thread, which takes long. The default run has the simulator, where threads are real and images small.
pytestmark = pytest.mark.slow
