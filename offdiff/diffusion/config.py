"""What decides a trained world model."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from offdiff.core.errors import unknown_name
from offdiff.data.codec import ActionMap
from offdiff.diffusion.denoiser import LevelMode
from offdiff.diffusion.networks import NAMES

Objective = Literal["edm", "x0", "eps", "v"]
Metric = Literal["l2", "huber"]
Law = Literal["normal", "uniform", "u-shape", "mode", "cosine", "end"]
RANGES: dict[str, tuple[float, float]] = {
    "horizon": (1, 4096),
    "steps": (1, 2**40),
    "batch_size": (1, 2**20),
    "learning_rate": (1e-9, 1),
    "warmup": (0, 1),
    "weight_decay": (0, 1),
    "gradient_norm": (1e-6, 1e9),
    "ema": (0, 0.999999),
    "level_mean": (-20, 20),
    "level_std": (1e-3, 10),
    "shift": (1e-2, 1e2),
    "uniform_share": (0, 1),
    "holdout": (1e-6, 0.5),
    "seed": (0, 2**40),
}
"""Allowed values, ends included."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A trajectory diffusion model and its training. ValueError for values out of range."""

    horizon: int = 16
    """Transitions per window."""
    network: str = "dit-xs"
    """unet-WIDTH (32, 64, 128, 256, 1024), dit-SIZE (xs, tiny, s-, s, b), temporal-WIDTH (32, 64,
    128), mlp-WIDTH (128, 256, 512), or mmdit-SIZE (xs, s-): a transformer with weights of its own
    for states, for actions, and for reward and terminal."""
    action_map: ActionMap = "linear"
    """How actions become columns: as they are, or through atanh as in PGD's code."""
    terminals: bool = True
    """Model where tasks end. Without, no synthetic transition is terminal, as in PGD's code."""
    levels: LevelMode = "shared"
    """shared: one noise level per window. mixed: also levels per row and group, for in-painting."""
    steps: int = 4_000
    """Gradient steps."""
    batch_size: int = 64
    """Windows per step."""
    learning_rate: float = 3e-3
    """Peak of the schedule: linear warm-up, then half a cosine to 0."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 1e-4
    """Of AdamW, on matrices only."""
    gradient_norm: float = 1.0
    """Longer gradients are shortened to this."""
    ema: float = 0.999
    """Decay per step of the averaged weights that sampling uses; rises to this in the beginning."""
    objective: Objective = "edm"
    """Whose error is made small: the clean window's (x0), the noise's (eps), rectified flow's
    velocity's (v), or EDM's own mixture of them. The network's output is EDM's in any case."""
    metric: Metric = "l2"
    """Squared error, or pseudo-Huber of a whole window's error, which outliers move less."""
    law: Law = "normal"
    """Of the noise level in training. normal: ln sigma, as EDM and SD3 take it; the others are laws
    of t = sigma / (1 + sigma), u-shape that of reflow; end: the largest level alone, and for
    distilling to several calls the levels of those."""
    level_mean: float = -1.2
    """Mean of ln sigma in training, of the normal law."""
    level_std: float = 1.2
    """Standard deviation of ln sigma in training, of the normal law."""
    uniform_share: float = 0.0
    """Share of the levels that is drawn uniformly in t instead: ends that a law hardly reaches."""
    shift: float = 1.0
    """SD3's shift of all levels: multiplies sigma, for longer windows."""
    holdout: float = 0.05
    """Share of the episodes that is kept for validation."""
    seed: int = 0
    """Of initial weights, batches, noise and the choice of held-out episodes."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")
        if self.network not in NAMES:
            raise unknown_name("network", self.network, NAMES)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits: equal configurations, equal digits."""
        return config_digest(self)


RECTIFIED_FLOW: dict[str, Any] = {
    "objective": "v", "law": "normal", "level_mean": 0.0, "level_std": 1.0, "uniform_share": 0.05,
}  # fmt: skip
"""What `--path rf` changes: velocity loss and the levels of SD3 (arXiv 2403.03206); the uniform
share is there because sampling starts at levels that its law has never drawn."""
PAPER = ModelConfig(
    horizon=32, network="unet-1024", steps=300_000, batch_size=256, learning_rate=3e-4
)
"""The network of PGD's scripts; training length and rates of PGD spec 16.4, as theirs are unknown.
"""


def config_digest(config: object) -> str:
    """16 hexadecimal digits of any dataclass of plain values."""
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
