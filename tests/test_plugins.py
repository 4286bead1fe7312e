"""A learner from another package: found by its entry point, trained, recorded, loaded again."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import offdiff
from offdiff.core.registry import names
from offdiff.records import RunRecord, read_record

PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "ridge-cloning"
version = "1.2.3"

[project.entry-points."offdiff.learners"]
ridge = "ridge_cloning:RidgeConfig"

[tool.setuptools]
py-modules = ["ridge_cloning"]
"""

MODULE = '''
"""Behaviour cloning by ridge regression: an example of a learner outside offdiff."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.core.protocols import LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Metrics, Spec


@dataclass(frozen=True, kw_only=True)
class RidgeConfig(LearnerConfig):
    """Linear policies."""

    penalty: float = 1e-3
    """Of squared weights."""

    def build(
        self, spec: Spec, *, random: SeedStreams, updates: int, device: torch.device
    ) -> "Ridge":
        return Ridge(self, spec, len(random), device)

    def network(self, spec: Spec) -> nn.Module:
        return nn.Linear(spec.obs_dim, spec.action_dim, bias=False)


class Ridge:
    """Sums the normal equations over batches; solves them when the policy is asked for."""

    def __init__(self, config: RidgeConfig, spec: Spec, seeds: int, device: torch.device) -> None:
        self.config, self.spec = config, spec
        self.xx = torch.zeros(seeds, spec.obs_dim, spec.obs_dim, device=device)
        self.xy = torch.zeros(seeds, spec.obs_dim, spec.action_dim, device=device)

    def update(self, batch: Batch) -> Metrics:
        self.xx += batch.obs.mT @ batch.obs
        self.xy += batch.obs.mT @ batch.action
        error = batch.obs @ self._weights() - batch.action
        return {"policy_loss": error.square().mean((-2, -1))}

    def policy(self, seed: int) -> nn.Module:
        network = self.config.network(self.spec)
        network.load_state_dict({"weight": self._weights()[seed].T})
        return network

    def state_dict(self) -> dict[str, Tensor]:
        return {"xx": self.xx, "xy": self.xy}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.xx.copy_(state["xx"])
        self.xy.copy_(state["xy"])

    def _weights(self) -> Tensor:
        eye = torch.eye(self.spec.obs_dim, device=self.xx.device)
        return torch.linalg.solve(self.xx + self.config.penalty * eye, self.xy)
'''


def record_below(folder: Path) -> tuple[Path, RunRecord]:
    (path,) = folder.rglob("run.json")
    return path.parent, read_record(path)


def weights_of(policy: offdiff.DeployedPolicy) -> Mapping[str, torch.Tensor]:
    return policy.network.state_dict()


@pytest.fixture(scope="module")
def site(install: Callable[[str, str, str], Path]) -> Path:
    """The outside package, really built and installed into a folder of its own."""
    return install(PYPROJECT, "ridge_cloning", MODULE)


def test_an_installed_learner_has_a_name_and_options(
    site: Path, tmp_path: Path, run_offdiff: Callable[..., str]
) -> None:
    shown = run_offdiff(tmp_path, "run", "--algo", "ridge", "--help", path=str(site))
    assert "rebrac, ridge, td3bc" in shown
    assert "--algo.penalty" in shown
    assert "Of squared weights." in shown


def test_an_installed_learner_runs_and_its_policy_is_found_again(
    site: Path,
    tmp_path: Path,
    toy_file: Path,
    toy_policy: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    run_offdiff: Callable[..., str],
) -> None:
    options = ("--updates", 50, "--seeds", 4, "--algo.penalty", 0.5)
    run_offdiff(tmp_path, "run", "--algo", "ridge", "--dataset", toy_file, *options, path=str(site))
    folder, record = record_below(tmp_path / "results")
    assert record.algo["name"] == "ridge"
    assert record.config["diff_from_default"] == {"penalty": 0.5}
    assert record.seeds["train"] == 4

    with pytest.raises(offdiff.InputError, match="unknown learner 'ridge'"):
        offdiff.load_policy(folder)  # not installed in this process
    monkeypatch.syspath_prepend(site)
    assert "ridge" in names("learners")
    learnt = weights_of(offdiff.load_policy(folder))["weight"]
    # 12,800 draws of noiseless data: what is left is the penalty and a few clipped actions.
    np.testing.assert_allclose(learnt.numpy(), toy_policy.T, atol=0.01)


def test_a_learner_needs_no_installation(
    tmp_path: Path, toy_file: Path, run_offdiff: Callable[..., str]
) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    options = ("--dataset", toy_file, "--updates", 50)
    run_offdiff(tmp_path, "run", "--algo", "mine:RidgeConfig", *options)
    folder, record = record_below(tmp_path / "results")
    assert record.algo["name"] == "mine:RidgeConfig"
    assert folder.parts[-3] == "mine-RidgeConfig"
    code = f"import offdiff, pathlib; print(offdiff.load_policy(pathlib.Path({str(folder)!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Linear(in_features=3, out_features=2" in done.stdout
