"""`offdiff export`: write a run's policy as ONNX or TorchScript, checked against the original."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from offdiff.cli.options import parse_options


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a policy for other programs: raw observations in, the environment's actions out.

    Examples:
      offdiff export results/runs/hopper-mixed-sample/iql/0-1a2b3c4d --format onnx
      offdiff export RUN/seed-3 --format torchscript --to policy.pt
    """

    run: Positional[Path]
    """Run folder (its first seed is taken), or one seed's folder inside it."""
    format: Literal["onnx", "torchscript"] = "onnx"
    """File format."""
    to: Path | None = None
    """File to write; default: policy.onnx or policy.pt beside the policy."""


def main(command: str, args: list[str]) -> int:
    """Parses, exports, prints the check; the exit code."""
    options = parse_options(ExportOptions, args, command)
    from offdiff.export import export_policy
    from offdiff.reevaluate import network, seed_folders

    folder = seed_folders(options.run)[0]
    policy = network(folder, "its plans are no single graph; export the run of a learner")
    name = "policy.onnx" if options.format == "onnx" else "policy.pt"
    check = export_policy(policy, options.to or folder / name, options.format)
    print(
        f"{check.path}: differs by at most {check.max_abs_difference:.1e} from the original on "
        f"{check.n_observations} observations"
    )
    return 0
