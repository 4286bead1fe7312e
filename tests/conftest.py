"""What all tests share: one thread, no deadlines, and GPU tests only where there is a GPU."""

import os

# Before torch is imported: workers of pytest-xdist that each start a thread per core get slower,
# and sums over several threads are not the same on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# The time of an example says more about the machine's load than about the code.
settings.register_profile("offdiff", deadline=None)
settings.load_profile("offdiff")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` on machines without CUDA."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
