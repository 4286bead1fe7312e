"""Synthetic experience as a dataset, with everything beside it that says how it was made.

Dimension letters: N windows, L transitions of a window, M rows, O observation, A action.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offdiff.augment.base import AugmentConfig, Source
from offdiff.augment.diffusion import DiffusionConfig, PGDConfig, ReleasedPGDConfig, UnguidedConfig
from offdiff.augment.sampler import DiffusionAugmenter
from offdiff.checkpoint import POLICY, load_policy
from offdiff.core.errors import InputError
from offdiff.core.files import require_writable, sha256
from offdiff.core.numerics import choose_device, threads
from offdiff.core.protocols import Augmenter
from offdiff.core.registry import name_of
from offdiff.core.seeding import derive_seed
from offdiff.core.types import Trajectories
from offdiff.data.dataset import Dataset, DatasetInfo
from offdiff.data.episodes import Episodes
from offdiff.data.hdf5 import Attribute
from offdiff.data.load import load_dataset
from offdiff.data.places import cache_dir
from offdiff.data.save import destination_path, save_dataset
from offdiff.data.windows import episodes_hash
from offdiff.diffusion.world_model import load_model
from offdiff.policy import DeployedPolicy
from offdiff.results import plain


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """A dataset to be made. Raises InputError for numbers out of range."""

    to: str
    """New file ending in .hdf5, or new Minari id such as me/hopper/pgd-v0."""
    augment: AugmentConfig = field(default_factory=PGDConfig)
    """The augmenter; its schedule and share matter only inside `offdiff run`."""
    dataset: str = "sample"
    """What it learns from: bundled sample, path of an HDF5 file, D4RL name, or Minari id."""
    policy: Path | None = None
    """Guide or actor: a policy file, or the folder of a run or of one of its seeds."""
    transitions: int | None = None
    """Transitions before windows are cut at terminals; default: the augmenter's own number."""
    seed: int = 0
    """Of everything random in the generation; the world model has a seed of its own."""
    clip_actions: bool = False
    """Clip the data's actions to the action box instead of refusing those outside."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 1
    """CPU threads, 0 for all cores; diffusion models heed --augment.threads instead."""
    overwrite: bool = False
    """Replace an existing HDF5 file."""

    def __post_init__(self) -> None:
        for option, value, low in (("transitions", self.count, 1), ("seed", self.seed, 0)):
            if not low <= value < 2**40:
                raise InputError(f"{option} must be at least {low} and below 2^40, got {value}")
        cores = os.cpu_count() or 1
        if not 0 <= self.threads <= cores:
            # Far beyond, torch ends the process without a word.
            raise InputError(f"threads must lie in [0, {cores}], got {self.threads}")

    @property
    def count(self) -> int:
        """Transitions to generate."""
        return self.augment.transitions if self.transitions is None else self.transitions


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How synthetic experience was made; kept with the data."""

    augmenter: str
    """Registered name or module:Class."""
    config: Mapping[str, Any]
    """The augmenter's configuration as plain JSON."""
    source: str
    """Name of the dataset it learned from."""
    data_hash: str
    """`episodes_hash` of that dataset."""
    seed: int
    made_with: Mapping[str, Any]
    """What the augmenter tells of itself, such as its model's hash; plain JSON."""
    policy: Path | None = None
    """File of the policy that guided or acted."""

    @property
    def behaviour(self) -> str:
        """Who acted, in words."""
        return f"synthetic: {self.augmenter} from {self.source}"

    def attributes(self) -> dict[str, Attribute]:
        """The same as attributes of a file. Reads the policy's file for its digest."""
        attributes: dict[str, Attribute] = {
            "augmenter": self.augmenter,
            "augmenter_config": json.dumps(self.config, sort_keys=True),
            "augmenter_provenance": json.dumps(self.made_with, sort_keys=True),
            "model_hash": str(self.made_with.get("model_hash", "")),
            "source_dataset": self.source,
            "source_data_hash": self.data_hash,
            "synthesis_seed": self.seed,
            "offdiff_version": version("offdiff"),
        }
        if self.policy is not None:
            attributes |= {"policy": str(self.policy), "policy_sha256": sha256(self.policy)}
        return attributes


def as_dataset(windows: Trajectories, source: DatasetInfo, behaviour: str) -> Dataset:
    """Windows as episodes of the source's environment; see `as_episodes`.

    The reference returns stay, for they rank policies of the environment; the returns of windows
    are those of fragments, and their score says nothing.
    """
    info = dataclasses.replace(source, name=behaviour, source=behaviour, behaviour=behaviour)
    info = dataclasses.replace(info, suite="hdf5", sha256="", notes=())
    return Dataset(info=info, episodes=as_episodes(windows))


def as_episodes(windows: Trajectories) -> Episodes:
    """Every run of transitions inside the mask as an episode; windows without one are left out.

    The last row of an episode is terminal if its transition is, else truncated; its successor is
    known in any case. Raises InputError if no transition is left or one is not finite.
    """
    mask, terminal = windows.mask.cpu().numpy(), windows.terminal.cpu().numpy() > 0.5
    if not mask.any():
        raise InputError("no synthetic transition is usable; train the model longer or guide less")
    followed = np.zeros_like(mask)
    followed[:, :-1] = mask[:, 1:]
    last = (~followed | terminal)[mask]
    obs = windows.obs.float().cpu().numpy()
    episodes = Episodes(
        obs=obs[:, :-1][mask],
        action=windows.action.float().cpu().numpy()[mask],
        reward=windows.reward.float().cpu().numpy()[mask],
        next_obs=obs[:, 1:][mask],
        terminal=terminal[mask],
        truncated=last & ~terminal[mask],
        successor_known=np.ones(len(last), bool),
    )
    for name in ("obs", "action", "reward", "next_obs"):
        if not np.isfinite(getattr(episodes, name)).all():
            raise InputError(
                f"the synthetic windows hold {name} that is not finite; train the model longer or "
                "guide less"
            )
    return episodes


def write_synthetic(
    dataset: Dataset, destination: str, provenance: Provenance, *, overwrite: bool = False
) -> Path:
    """Writes a dataset and its provenance, whole or not at all; see `save_dataset`."""
    return save_dataset(dataset, destination, provenance.attributes(), overwrite=overwrite)


def make_synthetic(config: SyntheticConfig, *, progress: bool = False) -> tuple[Path, Dataset]:
    """Trains or loads the augmenter, generates, writes; gives the place and what is there.

    progress: bars on stderr while a model is trained. Raises InputError, before anything is
    trained, for a destination that is taken and a policy that is missing or does not fit the data.
    """
    _require_policy_if_used(config)
    require_writable(destination_path(config.to, overwrite=config.overwrite).parent)
    file = None if config.policy is None else policy_file(config.policy)
    device = choose_device(config.device)
    data = load_dataset(config.dataset, clip_actions=config.clip_actions)
    policy = None if file is None else _fitting_policy(file, data, device)
    cache, episodes = cache_dir(), data.episodes
    source = Source(
        episodes=episodes, info=data.info, device=device, cache=cache, progress=progress
    )
    with threads(config.threads):
        augmenter = config.augment.build(source)
        return _generate(augmenter, config, data.info, episodes_hash(episodes), policy, file)


def sample_model(file: Path, config: SyntheticConfig) -> tuple[Path, Dataset]:
    """Windows of a trained world model, whose data need not be here: `dataset` is not read.

    So no window is cut as unbelievable, and the actions written lie in [-1, 1]. config.augment: a
    diffusion augmenter. Raises InputError for a taken destination or a file that is no model.
    """
    require_writable(destination_path(config.to, overwrite=config.overwrite).parent)
    augment, device = config.augment, choose_device(config.device)
    assert isinstance(augment, DiffusionConfig)
    model = load_model(file, device)
    # For the provenance: the model that was used, not the one that would have been trained.
    used = dataclasses.replace(augment, model=model.config, model_file=str(file))
    config = dataclasses.replace(config, augment=used)
    chunk = augment.chunk or (8192 if device.type == "cuda" else 256)
    prepare = augment.prepare(model)
    augmenter = DiffusionAugmenter(model, prepare, chunk=chunk, cpu_threads=config.threads)
    info = DatasetInfo(
        name=f"data {model.data_hash[:16]}",
        suite="hdf5",
        source=str(file),
        sha256="",
        family="other",
        env_id=None,
        max_episode_steps=None,
        score_range=None,
    )
    return _generate(augmenter, config, info, model.data_hash)


def policy_file(path: Path) -> Path:
    """The policy file behind a file, a seed's folder, or the folder of a run with one seed.

    Raises InputError if there is none, or several to choose from.
    """
    path = path.expanduser()
    if path.is_file():
        return path
    found = [path / POLICY] if (path / POLICY).exists() else sorted(path.glob(f"seed-*/{POLICY}"))
    if not found:
        raise InputError(
            f"{path} holds no policy; give a policy file or the folder that `offdiff run` named"
        )
    if len(found) > 1:
        raise InputError(
            f"{path} holds policies of {len(found)} seeds; choose one, such as {found[0].parent}"
        )
    return found[0]


def _require_policy_if_used(config: SyntheticConfig) -> None:
    augment, given = config.augment, config.policy is not None
    name, guided = name_of("augmenters", type(augment)), (PGDConfig, ReleasedPGDConfig)
    if not given and (augment.needs_policy or isinstance(augment, guided)):
        raise InputError(
            f"{name} needs a policy; give a run's folder with --policy, or --augment unguided"
        )
    if given and isinstance(augment, UnguidedConfig):
        raise InputError(f"{name} heeds no policy; leave --policy out, or choose --augment pgd")


def _fitting_policy(file: Path, data: Dataset, device: torch.device) -> DeployedPolicy:
    """The policy of a file. Raises InputError unless it acts in the data's environment."""
    policy, spec = load_policy(file, device), data.episodes.spec
    sizes = (len(policy.obs_mean), len(policy.action_low))
    if sizes != (spec.obs_dim, spec.action_dim):
        raise InputError(
            f"{file} takes {sizes[0]} observation and gives {sizes[1]} action numbers, but "
            f"{data.info.name} has {spec.obs_dim} and {spec.action_dim}; give a policy of the "
            "same environment"
        )
    info = data.info
    stated = (info.action_low, info.action_high)
    bounds = torch.stack([torch.tensor(bound).expand(sizes[1]) for bound in stated])
    its_bounds = torch.stack((policy.action_low, policy.action_high)).cpu()
    if not torch.allclose(bounds, its_bounds, rtol=1e-4, atol=1e-6):
        raise InputError(
            f"{file} acts between the bounds {its_bounds.tolist()}, {info.name} between "
            f"{bounds.tolist()}; give a policy of the same environment"
        )
    return policy


def _generate(
    augmenter: Augmenter,
    config: SyntheticConfig,
    source: DatasetInfo,
    data_hash: str,
    policy: DeployedPolicy | None = None,
    file: Path | None = None,
) -> tuple[Path, Dataset]:
    """Generates and writes. file: the policy's, if one guides."""
    generator = torch.Generator(choose_device(config.device))
    generator.manual_seed(derive_seed(config.seed, "synthetic dataset"))
    count = math.ceil(config.count / augmenter.window)
    windows = augmenter.generate(count, policy, generator=generator)
    provenance = Provenance(
        augmenter=name_of("augmenters", type(config.augment)),
        config=plain(config.augment) | {"transitions": config.count},
        source=source.name,
        data_hash=data_hash,
        seed=config.seed,
        made_with=augmenter.provenance(),
        policy=file,
    )
    dataset = as_dataset(windows, source, provenance.behaviour)
    return write_synthetic(dataset, config.to, provenance, overwrite=config.overwrite), dataset
