"""Policies for other programs: ONNX and TorchScript files, checked against the original.

Dimension letters: B batch, O observation, A action.
"""

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.files import replacing
from offdiff.policy import DeployedPolicy

Format = Literal["onnx", "torchscript"]
Run = Callable[[Tensor], Tensor]
"""(B, O) -> (B, A), both in the environment's units."""

TOLERANCE = 1e-5
"""Largest difference that float32 rounding explains for actions in [-1, 1]; grows with the box."""
OBSERVATIONS = 300
CHECKED_BATCHES = (1, 7, OBSERVATIONS)


@dataclass(frozen=True)
class ExportCheck:
    """What the reloaded file was found to do."""

    path: Path
    format: Format
    max_abs_difference: float
    """Of any action number from the original's, in the environment's units."""
    n_observations: int
    batch_sizes: tuple[int, ...]


def export_policy(policy: DeployedPolicy, path: Path, format: Format) -> ExportCheck:
    """Writes the policy as a graph `obs` (B, O) -> `action` (B, A) of any batch size.

    Both are float32 in the environment's units; the scaling of observations and actions is inside.
    The file is read back and compared with the original on observations around the data's mean,
    before it gets its name: a file that differs by more than TOLERANCE allows is not left behind.
    Raises InputError for that and for an unwritable path; MissingExtraError for ONNX without its
    packages.
    """
    writers: dict[str, tuple[Callable[[DeployedPolicy, Path], None], Callable[[Path], Run]]] = {
        "onnx": (_write_onnx, _read_onnx),
        "torchscript": (_write_torchscript, _read_torchscript),
    }
    if format not in writers:
        raise InputError(f"unknown export format {format!r}; choose onnx or torchscript")
    write, read = writers[format]
    if format == "onnx":
        _require_onnx()
    half_width = float((policy.action_high - policy.action_low).max()) / 2
    allowed = TOLERANCE * max(1.0, half_width)
    on_cpu = copy.deepcopy(policy).cpu().eval().requires_grad_(False)
    with replacing(path) as temporary:
        write(on_cpu, temporary)
        difference = _largest_difference(on_cpu, read(temporary))
        if not difference <= allowed:  # NaN is worse, too
            raise InputError(
                f"{path} would differ from the policy by {difference:.2g} (allowed {allowed:g}); "
                f"nothing was written, try the other format than {format}"
            )
    return ExportCheck(path, format, difference, OBSERVATIONS, CHECKED_BATCHES)


def _largest_difference(policy: DeployedPolicy, run: Run) -> float:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(OBSERVATIONS, len(policy.obs_mean), generator=random)
    # Three standard deviations: also where actions saturate.
    obs = policy.obs_mean + 3 * policy.obs_std * noise
    differences = []
    for size in CHECKED_BATCHES:
        rows = obs[:size]
        with torch.no_grad():
            differences.append(float((run(rows) - policy(rows)).abs().max()))
    return max(differences)


def _write_torchscript(policy: DeployedPolicy, path: Path) -> None:
    # Traced: a policy has no branches that depend on values, and scripting would demand that
    # `predict`, which speaks NumPy, be scriptable too.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch prefers torch.export
        # torch.jit has it, but not in its __all__. The file is checked below.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(policy, _example(policy))
        torch.jit.freeze(traced).save(str(path))


def _read_torchscript(path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: Run = torch.jit.load(str(path))
    return module


def _write_onnx(policy: DeployedPolicy, path: Path) -> None:
    # The exporter reports its steps on stdout and through loggers; a failure still raises.
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                policy,
                (_example(policy),),
                input_names=["obs"],
                output_names=["action"],
                dynamic_shapes={"obs": {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise InputError(
            f"this policy ({type(policy.network).__name__}) has no ONNX form; export it as "
            "torchscript"
        ) from error
    finally:
        exporter_log.setLevel(level)
    assert program is not None
    # One file: a policy is far from the 2 GB that make external weights necessary.
    path.write_bytes(program.model_proto.SerializeToString())


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    # As bytes: the temporary file's suffix is not .onnx.
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(obs: Tensor) -> Tensor:
        (action,) = session.run(["action"], {"obs": obs.numpy()})
        return torch.from_numpy(action)

    return run


def _require_onnx() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"ONNX export ({package})", "export")


def _example(policy: DeployedPolicy) -> Tensor:
    """Two observations: a batch of one would be taken for a constant size."""
    return policy.obs_mean.repeat(2, 1)
