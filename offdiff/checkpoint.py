"""Files of weights: a run's state to resume from, and its policy to deploy. No pickle in either."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.files import replacing
from offdiff.core.protocols import LearnerConfig
from offdiff.core.registry import resolve
from offdiff.core.types import Spec
from offdiff.policy import DeployedPolicy
from offdiff.results import plain

POLICY = "policy.safetensors"
CHECKPOINT = "checkpoint.safetensors"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors and JSON metadata atomically."""
    from safetensors.torch import save

    plain_tensors = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
    with replacing(path) as temporary:
        # By Python's own write: of a full disk safetensors' raises no OSError.
        temporary.write_bytes(save(plain_tensors, {"offdiff": json.dumps(meta)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote, to the CPU.

    Raises InputError for a missing, damaged or foreign file; a pickle is refused, never loaded.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} does not exist; give a run folder that holds one")
    if path.open("rb").read(4)[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise InputError(
            f"{path} holds a pickle, which can run any code when read, and is refused; "
            "save it as safetensors"
        )
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["offdiff"])
            return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is damaged or not written by offdiff ({error}); train again or restore a copy"
        ) from error


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
        policy = DeployedPolicy(network, **scaling)
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
