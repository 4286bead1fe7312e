"""Saved stable-baselines3 agents, loaded without running what is pickled in their files.

An agent's zip holds weights, plain settings, and pickles; unpickling runs code of whoever made the
file. Weights and plain settings suffice to rebuild SB3's own policies for acting, so pickles are
left alone, which also opens files made with the old `gym`.
"""

import ast
import importlib
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offdiff.core.errors import InputError
from offdiff.data.sb3 import HasSpaces, import_sb3

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

TELLING = {
    "cg_max_steps": "trpo",
    "top_quantiles_to_drop_per_net": "tqc",
    "delta_std": "ars",
    "n_epochs": "ppo",
    "target_entropy": "sac",
    "policy_delay": "td3",  # and ddpg, which is td3 with one critic
    "gae_lambda": "a2c",
}
"""A setting that tells the algorithm by which a file was saved; the first one found counts."""

CONTRIB = ("tqc", "trpo", "ars")
"""Algorithms that sb3-contrib brings."""

OUR_OWN = {
    "learning_rate": 0.0,
    "clip_range": 0.0,
    "clip_range_vf": None,
    "delta_std_schedule": 0.0,
    "train_freq": 1,
    "buffer_size": 1,
    "action_noise": None,
    "verbose": 0,
    "tensorboard_log": None,
}
"""Replaces settings that only training needs."""


def load_agent(
    path: Path, spaces: HasSpaces, *, trust: bool = False, device: str = "auto"
) -> "BaseAlgorithm":
    """An agent that can act in an environment of the given spaces; it cannot be trained further.

    trust: unpickle what the file holds, if it cannot be rebuilt from its weights (a policy or
    feature extractor of somebody's own). That runs code from the file: only for files you trust.
    Raises InputError for other files, agents of other sizes, and, without trust, such policies.
    """
    import_sb3(f"agent {path}")
    settings = _settings(path)
    kind = _kind(path, settings)
    replaced: dict[str, Any] = {
        name: None for name, value in settings.items() if _is_pickled(value)
    }
    if trust:
        replaced = {}
    else:
        replaced["policy_class"] = _policy_class(path, settings)
        replaced["policy_kwargs"] = _policy_kwargs(path, settings)
    replaced |= {name: value for name, value in OUR_OWN.items() if name in settings}
    replaced |= {
        "lr_schedule": lambda _: 0.0,
        "observation_space": spaces.observation_space,
        "action_space": spaces.action_space,
    }
    try:
        agent: BaseAlgorithm = _algorithm(path, kind).load(
            path, device=device, custom_objects=replaced
        )
    except RuntimeError as error:
        if "size mismatch" not in str(error) and "state_dict" not in str(error):
            raise
        raise InputError(
            f"{path} does not fit the environment ({spaces.observation_space.shape} observation "
            f"and {spaces.action_space.shape} action numbers) or has a network that only "
            f"--trust-agent can rebuild: {_line(error)}"
        ) from error
    return agent


def _settings(path: Path) -> dict[str, Any]:
    """The zip's JSON: plain values, and for pickles their text and a summary."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the .zip of a stable-baselines3 agent")
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{path} is no stable-baselines3 agent ({_line(error)}); give what `model.save` wrote"
        ) from error
    if not isinstance(settings, dict) or "policy_class" not in settings:
        raise InputError(f"{path} is no stable-baselines3 agent (no policy_class in its data)")
    return settings


def _is_pickled(value: object) -> bool:
    return isinstance(value, dict) and ":serialized:" in value


def _kind(path: Path, settings: dict[str, Any]) -> str:
    """Name of the algorithm, told by the first setting that only it (or its kin) has."""
    found = next((kind for setting, kind in TELLING.items() if setting in settings), None)
    if found is None:
        raise InputError(
            f"{path}: cannot tell its algorithm; known are {', '.join(sorted(TELLING.values()))}"
        )
    return found


def _algorithm(path: Path, kind: str) -> Any:
    package = import_sb3(f"agent {path}")
    if kind in CONTRIB:
        try:
            package = importlib.import_module("sb3_contrib")
        except ImportError as error:
            raise InputError(
                f"{path} is an agent of sb3-contrib; run: pip install sb3-contrib"
            ) from error
    found = getattr(package, kind.upper(), None)
    if found is None:
        raise InputError(f"{path}: stable-baselines3 has no algorithm {kind!r}")
    return found


def _policy_class(path: Path, settings: dict[str, Any]) -> Any:
    """SB3's own class; the pickle's summary tells its name by that of its constructor."""
    stored = settings["policy_class"]
    # Importing runs code, too: only that of the two packages, whatever the file names.
    if str(stored.get("__module__")).split(".")[0] not in ("stable_baselines3", "sb3_contrib"):
        raise _needs_trust(path, "its policy class")
    module = importlib.import_module(stored["__module__"])
    for candidate in vars(module).values():
        if (
            isinstance(candidate, type)
            and candidate.__module__ == stored["__module__"]
            and f"<function {candidate.__qualname__}.__init__ " in str(stored.get("__init__"))
        ):
            return candidate
    raise _needs_trust(path, "its policy class")


def _policy_kwargs(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the policy, read from the summary that SB3 writes beside the pickle."""
    from torch import nn

    stored = settings.get("policy_kwargs") or {}
    if not _is_pickled(stored):
        return dict(stored)
    arguments: dict[str, Any] = {}
    for name, value in stored.items():
        if name.startswith(":") or name in ("optimizer_class", "optimizer_kwargs"):
            continue
        if name == "activation_fn":
            arguments[name] = getattr(nn, str(value).rstrip("'>").rpartition(".")[2], None)
            if arguments[name] is None:
                raise _needs_trust(path, f"activation {value}")
            continue
        try:
            arguments[name] = ast.literal_eval(value) if isinstance(value, str) else value
        except (ValueError, SyntaxError) as error:
            raise _needs_trust(path, f"policy_kwargs {name}={value}") from error
    return arguments


def _needs_trust(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: {what} can only be had by unpickling, which runs code from the file; pass "
        "--trust-agent if you trust who made it"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
