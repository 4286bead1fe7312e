"""Exported files act as the policy does, or are not there."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offdiff import export
from offdiff.core.errors import InputError, MissingExtraError
from offdiff.export import export_policy
from offdiff.policy import DeployedPolicy

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for p in ("onnx", "onnxruntime", "onnxscript")),
    reason="needs the extra export",
)
FORMATS = [pytest.param("onnx", marks=needs_onnx), "torchscript"]
OBS, ACTION = 5, 3


class TanhHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(OBS, width),
            nn.ReLU(),
            nn.LayerNorm(width),
            nn.Dropout(0.5),
            nn.Linear(width, 4),
        )

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.trunk(obs)[..., :ACTION])


@pytest.fixture
def policy() -> DeployedPolicy:
    torch.manual_seed(0)
    return DeployedPolicy(
        TanhHead(64),
        obs_mean=torch.linspace(-5, 5, OBS),
        obs_std=torch.linspace(0.1, 3, OBS),
        action_low=torch.tensor([-1.0, 0.0, -0.4]),
        action_high=torch.tensor([1.0, 2.0, 0.4]),
    )


def run_file(path: Path, obs: Tensor) -> Any:
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {"obs": obs.numpy()})[0]
    return torch.jit.load(str(path))(obs).numpy()


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_acts_as_the_policy_at_any_batch_size(
    policy: DeployedPolicy, tmp_path: Path, format: export.Format
) -> None:
    path = tmp_path / "out" / f"policy.{format}"
    check = export_policy(policy, path, format)
    assert check.max_abs_difference <= export.TOLERANCE
    assert (check.path, check.format) == (path, format)
    for size in (1, 2, 33):
        obs = 4 * torch.randn(size, OBS, generator=torch.Generator().manual_seed(size))
        action = run_file(path, obs)
        np.testing.assert_allclose(action, policy.predict(obs.numpy())[0], atol=1e-5)
        assert (action >= policy.action_low.numpy() - 1e-6).all()
        assert (action <= policy.action_high.numpy() + 1e-6).all()
    assert [file.name for file in path.parent.iterdir()] == [path.name], "one file, weights inside"
    assert policy.network.trunk[0].weight.requires_grad, "the original stays trainable"


@needs_onnx
def test_onnx_has_named_ends_and_a_dynamic_batch(policy: DeployedPolicy, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "policy.onnx"
    export_policy(policy, path, "onnx")
    graph = onnx.load(path).graph
    onnx.checker.check_model(onnx.load(path))
    (obs,), (action,) = graph.input, graph.output
    assert (obs.name, action.name) == ("obs", "action")
    dims = obs.type.tensor_type.shape.dim
    assert dims[0].dim_param
    assert dims[1].dim_value == OBS


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_differs_is_not_left_behind(
    policy: DeployedPolicy, tmp_path: Path, format: export.Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = f"_read_{format}"
    read = getattr(export, reader)
    monkeypatch.setattr(export, reader, lambda path: lambda obs: read(path)(obs) + 2e-5)
    path = tmp_path / "policy.bin"
    path.write_text("an earlier export")
    with pytest.raises(
        InputError, match=r"would differ from the policy by 2e-05 \(allowed 1e-05\)"
    ):
        export_policy(policy, path, format)
    assert path.read_text() == "an earlier export"
    assert [file.name for file in tmp_path.iterdir()] == ["policy.bin"]


def test_a_diverged_policy_is_refused(policy: DeployedPolicy, tmp_path: Path) -> None:
    with torch.no_grad():
        policy.network.trunk[0].weight.fill_(float("nan"))
    with pytest.raises(InputError, match="nan"):
        export_policy(policy, tmp_path / "policy.pt", "torchscript")
    assert not list(tmp_path.iterdir())


def test_missing_packages_and_unknown_formats(
    policy: DeployedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="choose onnx or torchscript"):
        export_policy(policy, tmp_path / "x", "tflite")  # type: ignore[arg-type]  # on purpose
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"offdiff\[export\]"):
        export_policy(policy, tmp_path / "x", "onnx")
    assert not list(tmp_path.iterdir())
