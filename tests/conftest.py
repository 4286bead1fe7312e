"""What all tests share: one thread, no deadlines, and GPU tests only where there is a GPU."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Before torch is imported: workers of pytest-xdist that each start a thread per core get slower,
# and sums over several threads are not the same on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests import as they would another package's modules.
sys.path.insert(0, str(Path(__file__).parent / "modules"))

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

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


@pytest.fixture(scope="session")
def toy_policy() -> FloatArray:
    """(O, A): the behaviour in `toy_file` is the observation times this."""
    return np.array([[0.2, -0.1], [0.1, 0.3], [0.0, 0.1]], np.float32)


@pytest.fixture
def toy_file(tmp_path: Path, toy_policy: FloatArray) -> Path:
    """A small D4RL file without simulator: 30 episodes of 10 steps, O = 3, A = 2.

    Actions are a linear function of observations, half of the episodes end in a terminal.
    """
    from offdiff.data.episodes import Episodes
    from offdiff.data.hdf5 import write_hdf5

    n = 300
    random = np.random.default_rng(0)
    obs = random.standard_normal((n, 3)).astype(np.float32)
    last = np.arange(n) % 10 == 9
    terminal = last & (np.arange(n) % 20 == 19)
    episodes = Episodes(
        obs=obs,
        action=np.clip(obs @ toy_policy, -1, 1),
        reward=obs[:, 0],
        next_obs=np.where(last[:, None], obs, np.roll(obs, -1, axis=0)),
        terminal=terminal,
        truncated=last & ~terminal,
        successor_known=~last,
    )
    path = tmp_path / "toy.hdf5"
    write_hdf5(path, episodes, {"behaviour": "a linear policy"})
    return path


@pytest.fixture(autouse=True)
def default_matmul() -> None:
    """Starts every test with torch's own matrix products: a run chooses for its whole process."""
    if "torch" in sys.modules:
        import torch

        torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def run_offdiff() -> Callable[..., str]:
    """(cwd, *arguments, path="") -> output of `offdiff`; path: further folders to import from."""

    def run(cwd: Path, *args: object, path: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "offdiff", *map(str, args)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """(pyproject, module, its text) -> the folder into which the package was really installed."""

    def build(pyproject: str, module: str, text: str) -> Path:
        source = tmp_path_factory.mktemp("source")
        (source / "pyproject.toml").write_text(pyproject)
        (source / f"{module}.py").write_text(text)
        target = tmp_path_factory.mktemp("site")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--target", target, source], check=True, capture_output=True)
        return target

    return build
