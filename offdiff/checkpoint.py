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
from offdiff.planners.base import PlannerConfig, PlannerModule
from offdiff.planners.policy import Pinning, PlannerPolicy
from offdiff.planners.task import Task
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
    if meta.get("kind") == "planner":
        raise InputError(f"{file} holds a planner, not a policy network; load it as a planner")
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


def save_planner(
    path: Path, planner: PlannerModule, name: str, config: PlannerConfig, task: Task
) -> None:
    """Writes a planner with the name, config and task that rebuild it."""
    meta = {"kind": "planner", "name": name, "config": plain(config), "task": task.to_json()}
    save_tensors(path, planner.state_dict(), meta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedPlanner:
    """A trained planner and what it was made from."""

    name: str
    config: PlannerConfig
    task: Task
    planner: PlannerModule
    device: torch.device

    def policy(self, seed: int, pinning: Pinning | None = None) -> PlannerPolicy:
        """The planner as a policy that remembers nothing yet. seed: of its plans' noise."""
        return PlannerPolicy(
            self.planner,
            self.task.spec,
            name=self.name,
            history=self.config.history,
            replan_every=self.config.replan_every,
            open_loop=self.config.open_loop,
            wanted=self.config.target(self.task),
            stride=self.config.stride,
            device=self.device,
            seed=seed,
            pinning=pinning,
        )


def load_planner(path: Path, device: torch.device | str = "cpu") -> SavedPlanner:
    """Reads a planner's file, or that of a run folder.

    Raises InputError if the file is damaged, lacks a part or holds something else.
    """
    file = path / POLICY if path.is_dir() else path
    tensors, meta = load_tensors(file)
    if meta.get("kind") != "planner":
        raise InputError(f"{file} holds no planner but a {meta.get('kind')}; load it as that")
    try:
        config = planner_config(meta["name"], meta["config"])
        task = Task.from_json(meta["task"])
        planner = config.build(task)
        planner.load_state_dict(tensors)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file} lacks what planner {meta.get('name')} needs ({reason}); train it again"
        ) from error
    return SavedPlanner(
        name=meta["name"],
        config=config,
        task=task,
        planner=planner.to(device).eval().requires_grad_(False),
        device=torch.device(device),
    )


def planner_config(name: str, values: Mapping[str, Any]) -> PlannerConfig:
    """The planner config of this name from its JSON form.

    Raises InputError for unknown names and fields, and classes that are no planner's.
    """
    kind = resolve("planners", name)
    if not (dataclasses.is_dataclass(kind) and issubclass(kind, PlannerConfig)):
        raise InputError(f"{kind.__name__} is no planner config; it must derive from PlannerConfig")
    return kind(**_arguments(kind, values))


def config_from_json(kind: type, values: Mapping[str, Any]) -> LearnerConfig:
    """A learner config from its JSON form. Raises InputError for fields it does not have."""
    if not (dataclasses.is_dataclass(kind) and issubclass(kind, LearnerConfig)):
        raise InputError(f"{kind.__name__} is no learner config; it must derive from LearnerConfig")
    return kind(**_arguments(kind, values))


def _arguments(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values as a config's arguments. Raises InputError for fields it does not have."""
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"{kind.__name__} has no field {unknown[0]!r}; it was written by another version"
        )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
