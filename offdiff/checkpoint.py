"""The files of a run: its state to resume from, and its policy to deploy."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from offdiff.core.errors import InputError
from offdiff.core.protocols import LearnerConfig
from offdiff.core.registry import resolve
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.core.types import Spec
from offdiff.policy import DeployedPolicy, deploy
from offdiff.results import plain

POLICY = "policy.safetensors"
CHECKPOINT = "checkpoint.safetensors"


def save_policy(path: Path, policy: DeployedPolicy, name: str, config: LearnerConfig) -> None:
    """Writes a policy with its scaling, and the name and config that rebuild its network."""
    spec = [len(policy.obs_mean), len(policy.action_low)]
    meta = {"kind": "policy", "algo": name, "config": plain(config), "spec": spec}
    save_tensors(path, policy.state_dict(), meta)


def load_policy(path: Path, device: torch.device | str = "cpu") -> DeployedPolicy:
    """Reads a policy file, or that of a run folder.

    Raises InputError if the file is damaged or lacks what a policy needs.
    """
    file = path / POLICY if path.is_dir() else path
    tensors, meta = load_tensors(file)
    try:
        config = config_from_json(resolve("learners", meta["algo"]), meta["config"])
        network = config.network(Spec(*meta["spec"]))
        scaling = {
            key: tensors[key] for key in ("obs_mean", "obs_std", "action_low", "action_high")
        }
        policy = deploy(network, **scaling)
        policy.load_state_dict(tensors)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())  # torch's has several lines
        raise InputError(f"{file} lacks what a policy needs ({reason}); train again") from error
    return policy.to(device)


def config_from_json(kind: type, values: Mapping[str, Any]) -> LearnerConfig:
    """A learner config from its JSON form. Raises InputError for fields it does not have."""
    if not (dataclasses.is_dataclass(kind) and issubclass(kind, LearnerConfig)):
        raise InputError(f"{kind.__name__} is no learner config; it must derive from LearnerConfig")
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"{kind.__name__} has no field {unknown[0]!r}; it was written by another version"
        )
    arguments: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
    }
    return kind(**arguments)
