"""Policies that denoise actions: the trained denoiser, and the policy that chooses among samples.

Coordinates are EDM's, x = action + sigma * noise, levels those of the papers' variance-preserving
schedule; ancestral sampling through them is the DDPM chain of the papers, written otherwise.
Dimension letters: S seeds, R rows that share a level, B batch, N candidates, O observation,
A action, T noise levels.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from offdiff.algos.hashed_noise import normal, observation_keys, uniform
from offdiff.algos.nets import MLP, mlp_module
from offdiff.core.protocols import LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Spec
from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.sampling import sample_ddim

SIGMA_DATA = 0.5
"""Taken for the standard deviation of actions in [-1, 1]."""
FREQUENCIES = (1.0, 2.0, 4.0)
"""Of the features of a level, in cycles per two units of ln(sigma) / 4."""
ROWS = 2**16
"""Candidates that are denoised in one call: bounds the memory of many observations."""


def vp_sigmas(n: int, beta_min: float = 0.1, beta_max: float = 10.0) -> Tensor:
    """(n + 1,) falling levels of an n-step variance-preserving chain, the last one 0. On the CPU.

    Step t keeps the share exp(-beta_min / n - (beta_max - beta_min) (2 t - 1) / (2 n^2)) of the
    variance (Xiao et al. 2021, "vp" in the code of Diffusion-QL); sigma^2 = (1 - abar) / abar.
    """
    t = torch.arange(1, n + 1, dtype=torch.float64)
    log_kept = -beta_min / n - (beta_max - beta_min) * (2 * t - 1) / (2 * n**2)
    sigmas = torch.expm1(-log_kept.cumsum(0)).sqrt()
    return torch.cat((sigmas.flip(0), torch.zeros(1, dtype=torch.float64)))


def network_sizes(spec: Spec, hidden: Sequence[int]) -> tuple[int, ...]:
    """Widths of a denoising network: action, observation and the level's features -> action."""
    inputs = spec.action_dim + spec.obs_dim + 2 * len(FREQUENCIES)
    return (inputs, *hidden, spec.action_dim)


def action_denoiser(network: Callable[[Tensor], Tensor], obs: Tensor) -> Denoise:
    """E[action | x, obs] = c_skip x + c_out F, with EDM's preconditioning around the network F.

    network: (R, B, inputs) -> (R, B, A). obs: (R, B, O). The denoiser takes x (R, B, A) and levels
    (R,) or (R, B).
    """

    def denoise(x: Tensor, sigma: Tensor, /) -> Tensor:
        s = sigma[(...,) + (None,) * (x.ndim - sigma.ndim)]
        scale = (s.square() + SIGMA_DATA**2).rsqrt()
        features = _level_features(s).expand(*x.shape[:-1], -1)
        output = network(torch.cat((scale * x, obs, features), dim=-1))
        return (SIGMA_DATA * scale).square() * x + SIGMA_DATA * s * scale * output

    return denoise


def _level_features(sigma: Tensor) -> Tensor:
    """(..., 1) -> (..., 6) sines and cosines of ln(sigma) / 4."""
    angle = sigma.log() * (torch.pi / 4)
    angles = torch.cat([angle * frequency for frequency in FREQUENCIES], dim=-1)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def denoising_loss(denoise: Denoise, action: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mean over B and A of (D - action)^2 / sigma^2: the squared error of the predicted noise.

    action, noise: (R, B, A). sigma: (R, B). Gives (R,).
    """
    s = sigma.unsqueeze(-1)
    error = (denoise(action + s * noise, sigma) - action) / s
    return error.square().mean((-2, -1))


def sample_chain(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Ancestral sampling with clean estimates kept in [-1, 1].

    noise: (T, R, B, A), standard normal. sigmas: (T + 1,) from `vp_sigmas`. Gives (R, B, A) in
    [-1, 1]; differentiable through all steps.
    """

    def bounded(x: Tensor, sigma: Tensor, /) -> Tensor:
        return denoise(x, sigma).clamp(-1, 1)

    # The chain of the papers starts at unit variance, which in these coordinates is 1 + sigma^2.
    start = noise[0] * math.sqrt(1 + float(sigmas[0]) ** 2)
    return sample_ddim(bounded, start, sigmas, eta=1.0, noise=noise[1:])


class DiffusionActor:
    """Denoising networks of S seeds and their moving average, from which actions are sampled."""

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        levels: int,
        random: SeedStreams,
        device: torch.device,
    ) -> None:
        """levels: T. random: draws the parameters, and later all noise."""
        self.random = random
        self.action_dim = spec.action_dim
        self.sigmas = vp_sigmas(levels)
        self.net = MLP(network_sizes(spec, hidden), len(random))
        self.net.to(device).initialise(random, "torch")
        self.average = self.net.clone()
        self._levels = self.sigmas[:-1].float().to(device)
        self.noise_seeds = random.integers(2**62).tolist()
        """Of the policies that are deployed."""

    def loss(self, obs: Tensor, action: Tensor) -> Tensor:
        """`denoising_loss` at levels drawn uniformly. (S, B, O), (S, B, A) -> (S,)."""
        index = self.random.integers(len(self._levels), action.shape[1])
        noise = self.random.normal(*action.shape[1:])
        denoise = action_denoiser(self.net, obs)
        return denoising_loss(denoise, action, noise, self._levels[index])

    def sample(self, net: MLP, obs: Tensor) -> Tensor:
        """Actions (S, B, A) of one of the networks for (S, B, O)."""
        noise = self.random.normal(len(self._levels), obs.shape[1], self.action_dim)
        return sample_chain(action_denoiser(net, obs), noise.transpose(0, 1), self.sigmas)


class CandidatePolicy(nn.Module):
    """Denoises N candidates per observation and draws one of them, by the judge's weights.

    Everything drawn is determined by the observation and the seed: see `hashed_noise`.
    """

    seed: Tensor

    def __init__(
        self,
        network: nn.Module,
        judge: nn.Module,
        *,
        action_dim: int,
        candidates: int,
        levels: int,
        seed: int = 0,
    ) -> None:
        """network: of `network_sizes`. judge: (B, N, O), (B, N, A) -> (B, N) log weights."""
        super().__init__()
        self.network, self.judge = network, judge
        self.action_dim, self.candidates = action_dim, candidates
        self.sigmas = vp_sigmas(levels)  # no buffer: it plans the steps, on the CPU
        self.register_buffer("seed", torch.tensor(seed))

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B, A) in [-1, 1]."""
        at_once = max(1, ROWS // self.candidates)
        if len(obs) <= at_once:
            return self._act(obs)
        return torch.cat([self._act(rows) for rows in obs.split(at_once)])

    def sample(self, obs: Tensor) -> Tensor:
        """All candidates: (B, O) -> (B, N, A)."""
        return self._candidates(obs, observation_keys(obs, self.seed))

    def _act(self, obs: Tensor) -> Tensor:
        keys = observation_keys(obs, self.seed)
        candidates = self._candidates(obs, keys)
        log_weight = self.judge(self._repeated(obs), candidates)
        # The largest of log weights plus Gumbel noise is a draw by the weights.
        gumbel = -torch.log(-torch.log(uniform(~keys, self.candidates)))
        chosen = (log_weight + gumbel).argmax(1)[:, None, None]
        return candidates.gather(1, chosen.expand(-1, 1, self.action_dim)).squeeze(1)

    def _candidates(self, obs: Tensor, keys: Tensor) -> Tensor:
        shape = (len(self.sigmas) - 1, self.candidates, self.action_dim)
        noise = normal(uniform(keys, math.prod(shape))).view(-1, *shape)
        denoise = action_denoiser(self.network, self._repeated(obs))
        return sample_chain(denoise, noise.transpose(0, 1), self.sigmas)

    def _repeated(self, obs: Tensor) -> Tensor:
        return obs.unsqueeze(1).expand(-1, self.candidates, -1)


class SmallestQ(nn.Module):
    """The least of several critics."""

    def __init__(self, critics: Sequence[nn.Module]) -> None:
        """critics: (..., O + A) -> (..., 1)."""
        super().__init__()
        self.critics = nn.ModuleList(critics)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(..., O), (..., A) -> (...)."""
        x = torch.cat((obs, action), dim=-1)
        return torch.stack([critic(x).squeeze(-1) for critic in self.critics]).amin(0)


def critic_modules(net: MLP, seed: int, members: int = 2) -> SmallestQ:
    """The critics of the seed at this position, a copy. net: of S * members networks."""
    return SmallestQ([net.module(seed * members + m) for m in range(members)])


def untrained_critics(spec: Spec, hidden: Sequence[int], members: int = 2) -> SmallestQ:
    """Critics of this shape, to load weights into."""
    sizes = (spec.obs_dim + spec.action_dim, *hidden, 1)
    return SmallestQ([mlp_module(sizes) for _ in range(members)])


def require_at_least(config: LearnerConfig, **least: float) -> None:
    """Raises ValueError for the first field that is smaller than allowed."""
    for name, low in least.items():
        value = getattr(config, name)
        if value < low:
            raise ValueError(f"{name} must be at least {low:g}, got {value}")
