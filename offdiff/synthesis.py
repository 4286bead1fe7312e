"""Synthetic experience in a run: generated on schedule, looked at, kept for resuming."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offdiff.augment.base import AugmentConfig, Source
from offdiff.config import RunConfig
from offdiff.core.errors import InputError
from offdiff.core.files import write_text
from offdiff.core.protocols import Augmenter, Learner, Replay
from offdiff.core.seeding import SeedStreams, derive_seed
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.data.buffer import MixedReplay
from offdiff.data.pools import Pools
from offdiff.diagnostics import Inspector
from offdiff.folder import POOLS, RunFolder
from offdiff.plots import can_plot, plot_diagnostics
from offdiff.policy import DeployedPolicy
from offdiff.prepare import Prepared, Transitions, View
from offdiff.results import changed, plain
from offdiff.training import Training

DIAGNOSTICS = "synthetic.json"
PICTURE = "synthetic.png"


def generations(config: AugmentConfig, updates: int) -> list[int]:
    """The updates before which synthetic experience is generated."""
    return list(range(config.start, updates, config.every))


@dataclass(kw_only=True)
class Synthesis:
    """Keeps the pools of all seeds filled with the augmenter's experience."""

    name: str
    config: AugmentConfig
    augmenter: Augmenter
    pools: Pools
    real: Replay
    view: View
    needs_next_action: bool
    seeds: Sequence[int]
    deploy: Callable[[nn.Module], DeployedPolicy]
    """A learner's network as a policy of the environment."""
    inspector: Inspector
    folder: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    """Diagnostics so far, in order: {"update": ..., "seed": ..., ...}."""

    def generate(self, training: Training, update: int) -> None:
        """Replaces the oldest pool of every seed by experience near its present policy.

        What a stopped run has generated already is read back. Raises InputError if a generation
        leaves no transition.
        """
        path = self._pool(update)
        if path.exists():
            self._read(update)
        else:
            self._make(training.learner, update)
            write_text(self.folder / DIAGNOSTICS, json.dumps(self.history, indent=1) + "\n")
            if can_plot():
                plot_diagnostics(self.history, self.folder / PICTURE)
            state = self.pools.state(self._number(update))
            save_tensors(path, state, {"kind": "pool", "update": update})
            self._forget(update)
        training.replay = self._mixed(training)

    def _make(self, learner: Learner, update: int) -> None:
        batches = []
        for position, seed in enumerate(self.seeds):
            random = torch.Generator(self.pools.rows.device)
            random.manual_seed(derive_seed(seed, f"augment {update}"))
            # An untrained policy is no guide.
            policy = self.deploy(learner.policy(position)) if update > 0 else None
            count = math.ceil(self.config.transitions / self.augmenter.window)
            windows = self.augmenter.generate(count, policy, generator=random)
            raw = windows.transitions(need_next_action=self.needs_next_action)
            if len(raw.reward) == 0:
                raise InputError(
                    f"the synthetic experience before update {update} holds no usable transition; "
                    "train the model longer or guide less"
                )
            batches.append(self.view(raw))
            found = self.inspector.inspect(windows, policy, self.config.policy_std)
            made = {"provenance": self.augmenter.provenance(), **found.as_json()}
            self.history.append({"update": update, "seed": seed, **made})
            print(f"offdiff: update {update}, seed {seed}: {found.sentence()}", file=sys.stderr)
        self.pools.put(self._number(update), batches)

    def _mixed(self, training: Training) -> MixedReplay:
        return MixedReplay(self.real, self.pools, self.config.share, training.synthetic)

    def restore(self, training: Training) -> None:
        """Brings the pools back to what they were after the training's updates.

        A generation that is due just now is left to `generate`.
        """
        update = training.updates
        needed = generations(self.config, update + 1)[-self.pools.rows.shape[1] :]
        done = [generation for generation in needed if generation < update]
        for generation in done:
            self._read(generation)
        if done:
            training.replay = self._mixed(training)
        path = self.folder / DIAGNOSTICS
        if path.exists():
            history = json.loads(path.read_text())
            made = self._pool(update).exists()
            self.history = [
                row
                for row in history
                if row["update"] < update or (made and row["update"] == update)
            ]

    def record(self, seed: int) -> dict[str, Any]:
        """What a run record tells of one seed's synthetic experience."""
        return {
            "name": self.name,
            "config": plain(self.config),
            "diff_from_default": changed(self.config),
            "generations": [row for row in self.history if row["seed"] == seed],
        }

    def _pool(self, update: int) -> Path:
        return self.folder / POOLS.replace("*", str(update))

    def _number(self, update: int) -> int:
        """How many generations came before that of this update."""
        return (update - self.config.start) // self.config.every

    def _read(self, update: int) -> None:
        tensors, _ = load_tensors(self._pool(update))
        self.pools.restore(self._number(update), tensors)

    def _forget(self, update: int) -> None:
        """Deletes pools that no checkpoint from here on refers to."""
        kept = generations(self.config, update + 1)[-self.pools.rows.shape[1] :]
        names = {self._pool(generation).name for generation in kept}
        for path in self.folder.glob(POOLS):
            if path.name not in names:
                path.unlink()


def start_synthesis(
    config: RunConfig,
    augmenter: Augmenter,
    source: Source,
    prepared: Prepared,
    transitions: Transitions,
    training: Training,
    folder: RunFolder,
) -> Synthesis:
    """Empty pools for every seed. Raises InputError if they do not fit into memory."""
    assert config.augment is not None
    capacity = math.ceil(config.augment.transitions / augmenter.window) * augmenter.window
    training.synthetic = SeedStreams(config.seeds, "synthetic batches", source.device)
    return Synthesis(
        name=config.augment_name,
        config=config.augment,
        augmenter=augmenter,
        pools=Pools(
            len(config.seeds), config.augment.pools, capacity, prepared.spec, source.device
        ),
        real=training.replay,
        view=transitions.view,
        needs_next_action=config.algo.needs_next_action,
        seeds=config.seeds,
        deploy=prepared.deploy,
        inspector=Inspector(source.info, source.episodes),
        folder=folder.path,
    )
