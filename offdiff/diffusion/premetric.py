"""How far apart two windows are in consequence: a perceptual metric for trajectories.

What LPIPS is to images in reflow (arXiv 2405.20320): equal distance should mean equal consequence.
Rows are a codec's. Dimension letters: B windows, L transitions, T = L + 1 rows, D columns,
O observation, A action, H hidden units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.core.seeding import derive_seed
from offdiff.data.codec import Codec
from offdiff.data.windows import Windows
from offdiff.diffusion.paths import RectifiedFlow

WIDTH = 128
STEPS, BATCH, LEARNING_RATE = 1_000, 64, 2e-3
SCALE_WINDOWS = 2048


@dataclass(frozen=True)
class Features:
    """What a window leads to, in units of each term's standard deviation in the data."""

    residual: Tensor
    """(B, L, O) s_{k+1} - f(s_k, a_k): what the dynamics do not explain"""
    change: Tensor
    """(B, L, O) s_{k+1} - s_k"""
    worth: Tensor
    """(B, H) what a network that predicts the window's reward makes of its states and actions"""


@dataclass(frozen=True, kw_only=True)
class Premetric:
    """Frozen features and the distance in them; no module, as it is no part of what is trained."""

    codec: Codec
    dynamics: nn.Sequential
    """[s_k, a_k] -> s_{k+1} - s_k"""
    worth: nn.Sequential
    """States and actions of a window -> H hidden units"""
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Standard deviations of the three terms in the data"""

    def features(self, rows: Tensor) -> Features:
        """Of clean windows (B, T, D); differentiable."""
        state, action = rows[..., self.codec.group("state")], rows[..., self.codec.group("action")]
        change = state[:, 1:] - state[:, :-1]
        expected = self.dynamics(torch.cat((state[:, :-1], action[:, :-1]), dim=-1))
        residual, moved, worth = self.scales
        hidden = self.worth(_acts(rows, self.codec))
        return Features((change - expected) / residual, change / moved, hidden / worth)

    def __call__(self, estimate: Tensor, clean: Tensor, counted: Tensor) -> Tensor:
        """(B,) mean of the three mean squared differences; gradients reach the estimate alone.

        estimate, clean: (B, T, D). counted: (B, T, D) bool; entries that do not count, pinned ones
        and those beyond a task's end, are taken from the clean window.
        """
        alive = self.codec.alive(clean) > 0.5
        there = counted & _entries(alive, self.codec)
        ours = self.features(torch.where(there, estimate, clean))
        with torch.no_grad():
            theirs = self.features(clean)
        steps = alive[..., None].expand_as(ours.change)
        number = steps.sum((1, 2)).clamp(min=1)
        terms = [
            ((ours.residual - theirs.residual).square() * steps).sum((1, 2)) / number,
            ((ours.change - theirs.change).square() * steps).sum((1, 2)) / number,
            (ours.worth - theirs.worth).square().mean(1),
        ]
        return torch.stack(terms).mean(0)


def fit_premetric(
    windows: Windows, codec: Codec, *, steps: int = STEPS, seed: int = 0
) -> Premetric:
    """Trains the two small networks on windows of data, measures the scales, and freezes all.

    The same for the same data and seed. steps: gradient steps, at least 1.
    """
    device = codec.mean.device
    observed, acted = codec.spec.obs_dim, codec.spec.action_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "premetric"))
        dynamics = nn.Sequential(*_hidden(observed + acted), nn.Linear(WIDTH, observed)).to(device)
        worth = nn.Sequential(*_hidden((codec.horizon + 1) * (observed + acted))).to(device)
        value = nn.Linear(WIDTH, 1).to(device)
    generator = torch.Generator(device).manual_seed(derive_seed(seed, "premetric windows"))
    made = Premetric(codec=codec, dynamics=dynamics, worth=worth)
    learned = nn.ModuleList((dynamics, worth, value))
    optimiser = torch.optim.Adam(learned.parameters(), LEARNING_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = codec.encode(windows.sample(BATCH, generator=generator))
        alive = codec.alive(rows)
        found = made.features(rows)
        reward = (rows[:, :-1, codec.group("reward")].squeeze(-1) * alive).mean(1)
        loss = (found.residual.square() * alive[..., None]).mean()
        loss = loss + (value(found.worth).squeeze(-1) - reward).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    optimiser.zero_grad()
    learned.requires_grad_(False)
    rows = codec.encode(windows.sample(SCALE_WINDOWS, generator=generator))
    alive, found = codec.alive(rows) > 0.5, made.features(rows)
    parts = (found.residual[alive], found.change[alive], found.worth)
    scales = [max(float(part.std(0, correction=0).square().mean().sqrt()), 1e-6) for part in parts]
    return Premetric(
        codec=codec, dynamics=dynamics, worth=worth, scales=(scales[0], scales[1], scales[2])
    )


def flow_time(sigma: Tensor) -> Tensor:
    """(B,) a window's time on rectified flow's clock: that of its noisiest entry."""
    return RectifiedFlow().time(sigma.flatten(1).amax(1) if sigma.ndim > 1 else sigma)


def _hidden(inputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU()]


def _acts(rows: Tensor, codec: Codec) -> Tensor:
    """(B, T * (O + A)) states and actions, flat: the reward is what they are to tell."""
    parts = (rows[..., codec.group("state")], rows[..., codec.group("action")])
    return torch.cat(parts, dim=-1).flatten(1)


def _entries(alive: Tensor, codec: Codec) -> Tensor:
    """(B, T, D) bool: states up to the task's end, the rest before it; alive (B, L) bool."""
    states = nn.functional.pad(alive, (1, 0), value=True)[..., None]
    others = nn.functional.pad(alive, (0, 1), value=False)[..., None]
    of_state = torch.zeros(codec.columns, dtype=torch.bool, device=alive.device)
    of_state[codec.group("state")] = True
    return torch.where(of_state, states, others)
