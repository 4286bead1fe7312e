"""Denoised actions: against the papers' chain, closed forms, and distributions to be learned."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offdiff.algos import diffusion_policy
from offdiff.algos.diffusion_policy import (
    SIGMA_DATA,
    CandidatePolicy,
    DiffusionActor,
    action_denoiser,
    network_sizes,
    sample_chain,
    vp_sigmas,
)
from offdiff.algos.hashed_noise import normal, observation_keys, uniform
from offdiff.algos.nets import mlp_module
from offdiff.algos.optim import Adam
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Spec

CPU = torch.device("cpu")
SPEC = Spec(3, 2)


def random_normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def key(seed: int = 0) -> Tensor:
    return torch.tensor(seed)


def actor(*seeds: int, hidden: tuple[int, ...] = (32, 32), spec: Spec = SPEC) -> DiffusionActor:
    return DiffusionActor(spec, hidden, 5, SeedStreams(seeds, "test", CPU), CPU)


class EvenWeights(nn.Module):
    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.zeros(action.shape[:2])


class ThirdTwiceAsLikely(nn.Module):
    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.tensor([0.0, 0.0, math.log(2.0)]).expand(action.shape[:2])


def policy(judge: nn.Module, candidates: int = 3, seed: int = 0) -> CandidatePolicy:
    network = mlp_module(network_sizes(SPEC, (16,)))
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(0.5 * random_normal(*parameter.shape, seed=i))
    return CandidatePolicy(network, judge, action_dim=2, candidates=candidates, levels=5, seed=seed)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_however_many_steps_the_chain_ends_at_the_same_level(n: int) -> None:
    sigmas = vp_sigmas(n)
    assert len(sigmas) == n + 1
    # The steps' logarithms sum to -(beta_min + beta_max) / 2.
    assert float(sigmas[0]) == pytest.approx(math.sqrt(math.exp(5.05) - 1), rel=1e-12)
    assert float(sigmas[-1]) == 0
    assert (sigmas.diff() < 0).all()


def test_sampling_is_the_papers_chain_in_other_coordinates() -> None:
    """The reference is DDPM's posterior in variance-preserving coordinates (Ho et al. 2020)."""
    steps, shape = 5, (2, 7, 3)
    noise = random_normal(steps, *shape, dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor, /) -> Tensor:  # leaves [-1, 1], so that clamping counts
        return 1.5 * torch.sin(2 * x / (1 + sigma.view(-1, 1, 1) ** 2).sqrt() + 0.3)

    t = torch.arange(1, steps + 1, dtype=torch.float64)
    alpha = torch.exp(-0.1 / steps - 0.5 * 9.9 * (2 * t - 1) / steps**2)
    bar = torch.cat((torch.ones(1, dtype=torch.float64), alpha.cumprod(0)))
    x = noise[0]
    for i in range(steps, 0, -1):
        sigma = torch.full((2,), float(((1 - bar[i]) / bar[i]).sqrt()), dtype=torch.float64)
        clean = denoise(x / bar[i].sqrt(), sigma).clamp(-1, 1)
        beta = 1 - alpha[i - 1]
        mean = (bar[i - 1].sqrt() * beta * clean + alpha[i - 1].sqrt() * (1 - bar[i - 1]) * x) / (
            1 - bar[i]
        )
        variance = beta * (1 - bar[i - 1]) / (1 - bar[i])
        x = mean + (variance.sqrt() * noise[steps - i + 1] if i > 1 else 0)
    assert (x.abs() == 1).any()
    assert_close(sample_chain(denoise, noise, vp_sigmas(steps)), x, rtol=0, atol=1e-12)


def test_a_network_of_zeros_is_the_best_for_unconditional_normal_actions() -> None:
    net = actor(0)
    with torch.no_grad():
        net.net.flat.zero_()
    obs, action = random_normal(1, 200_000, 3), SIGMA_DATA * random_normal(1, 200_000, 2, seed=1)
    sigmas = vp_sigmas(5)[:-1]
    # Per level: variance of the action given x, over sigma^2.
    expected = float((SIGMA_DATA**2 / (SIGMA_DATA**2 + sigmas**2)).mean())
    loss = net.loss(obs, action)
    assert float(loss.detach()) == pytest.approx(expected, rel=0.02)
    (gradient,) = torch.autograd.grad(loss.sum(), [net.net.flat])
    assert float(gradient.abs().max()) < 2e-3  # five standard errors of its one random entry
    (gradient,) = torch.autograd.grad(net.loss(obs, action + 0.2).sum(), [net.net.flat])
    assert float(gradient.abs().max()) > 2e-2, "actions of another mean pull"


def test_levels_are_given_per_row_or_per_element() -> None:
    net, obs, x = actor(0, 1), random_normal(2, 4, 3), random_normal(2, 4, 2, seed=1)
    denoise, sigma = action_denoiser(net.net, obs), torch.tensor([0.5, 3.0])
    assert_close(denoise(x, sigma), denoise(x, sigma[:, None].expand(2, 4)))
    far = denoise(1e3 * x, torch.full((2,), 1e3))
    near = denoise(x, torch.full((2,), 1e-4))
    assert float(far.detach().abs().max()) < 2, "all noise: the estimate has the size of actions"
    assert_close(near, x, rtol=0, atol=1e-3)  # no noise: nothing to remove


def test_gradients_through_the_chain_are_those_of_plain_torch() -> None:
    both = actor(0, 1)
    obs, noise = random_normal(2, 6, 3), random_normal(5, 2, 6, 2, seed=1)
    actions = sample_chain(action_denoiser(both.net, obs), noise, both.sigmas)
    (flat,) = torch.autograd.grad(actions.square().sum(), [both.net.flat])
    weights, biases, _, _ = both.net.split(flat)
    for seed in (0, 1):
        module = both.net.module(seed)
        one = slice(seed, seed + 1)
        sampled = sample_chain(action_denoiser(module, obs[one]), noise[:, one], both.sigmas)
        assert_close(sampled, actions[one], rtol=1e-4, atol=1e-5)
        sampled.square().sum().backward()
        linears = [layer for layer in module if isinstance(layer, nn.Linear)]
        for i, linear in enumerate(linears):
            wanted = linear.weight.grad
            assert wanted is not None
            got = weights[i][seed] if i == len(linears) - 1 else weights[i][seed].T
            assert_close(got, wanted, rtol=1e-3, atol=1e-4)
            assert_close(biases[i][seed, 0], linear.bias.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("levels", [5, 20])
def test_both_modes_are_learned_as_well_as_the_levels_allow(levels: int) -> None:
    """Actions are -0.6 or 0.6, whichever the observation: a Gaussian would stand at 0.

    The measure is the same chain with the denoiser that is exact for these data: its last step
    gives a mean of what is possible at the lowest level, which with 5 levels is between the modes.
    """
    spread = 0.03

    def exact(x: Tensor, sigma: Tensor, /) -> Tensor:
        v = sigma.view(-1, 1, 1) ** 2 + spread**2
        mode = 0.6 * torch.tanh(0.6 * x / v)
        return mode + spread**2 / v * (x - mode)

    streams = SeedStreams([0, 1], "data", CPU)
    net = DiffusionActor(Spec(3, 1), (64, 64), levels, SeedStreams([0, 1], "test", CPU), CPU)
    optimiser = Adam([net.net.flat], 5e-3, cosine_updates=600)
    for _ in range(600):
        sign = streams.integers(2, 256, 1) * 2 - 1
        action = 0.6 * sign + spread * streams.normal(256, 1)
        optimiser.minimise(net.loss(streams.normal(256, 3), action).sum())
    with torch.no_grad():
        sampled = net.sample(net.net, streams.normal(2000, 3)).squeeze(-1)
    wanted = sample_chain(exact, random_normal(levels, 1, 20_000, 1), net.sigmas).flatten()
    shares = torch.tensor([0.02, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 0.98])
    for drawn in sampled:
        assert 0.42 < float((drawn > 0).float().mean()) < 0.58
        near = float(((drawn.abs() - 0.6).abs() < 0.15).float().mean())
        assert near == pytest.approx(
            float(((wanted.abs() - 0.6).abs() < 0.15).float().mean()), abs=0.06
        )
        assert_close(drawn.quantile(shares), wanted.quantile(shares), rtol=0, atol=0.12)
    if levels == 20:
        assert near > 0.9


def test_a_policy_is_a_function_of_each_observation() -> None:
    acting, obs = policy(EvenWeights()), random_normal(40, 3)
    action = acting(obs)
    assert torch.equal(acting(obs), action), "no memory of calls"
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    # Products of other rows may round otherwise.
    assert_close(acting(obs[order]), action[order], rtol=0, atol=1e-5)
    assert_close(acting(obs[:5]), action[:5], rtol=0, atol=1e-5)
    assert not torch.equal(policy(EvenWeights(), seed=1)(obs), action)
    assert float(action.detach().abs().max()) <= 1


def test_many_observations_are_split_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    acting, obs = policy(EvenWeights()), random_normal(40, 3)
    whole = acting(obs)
    monkeypatch.setattr(diffusion_policy, "ROWS", 3 * 7)
    assert_close(acting(obs), whole, rtol=0, atol=1e-5)


def test_candidates_are_drawn_by_their_weights() -> None:
    acting, obs = policy(ThirdTwiceAsLikely()), random_normal(20_000, 3)
    with torch.no_grad():
        same = (acting.sample(obs) == acting(obs)[:, None]).all(-1)
    assert (same.sum(1) >= 1).all(), "an action is one of the candidates"
    unclear = same.sum(1) > 1  # clamped to one corner
    assert_close(
        same[~unclear].float().mean(0), torch.tensor([0.25, 0.25, 0.5]), rtol=0, atol=0.015
    )


def test_drawn_actions_are_spread_as_sampled_ones() -> None:
    """The hashed noise gives the same distribution as a generator's."""
    acting = policy(EvenWeights(), candidates=4)
    obs = 0.01 * random_normal(20_000, 3) + 1.0
    noise = random_normal(5, 1, 20_000, 2, seed=3)
    with torch.no_grad():
        hashed = acting(obs)
        drawn = sample_chain(action_denoiser(acting.network, obs[None]), noise, acting.sigmas)[0]
    for moment in (1, 2, 3):
        assert_close(
            hashed.pow(moment).mean(0), drawn.pow(moment).mean(0), rtol=0, atol=0.02
        )  # three standard errors of a difference
    assert float(hashed.std()) > 0.1


def test_the_choice_does_not_depend_on_the_candidates_noise() -> None:
    network = mlp_module(network_sizes(Spec(3, 1), (4,)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    acting = CandidatePolicy(network, EvenWeights(), action_dim=1, candidates=8, levels=1)
    # One step of a network of zeros: an action is a multiple of its only noise.
    with torch.no_grad():
        drawn = acting(random_normal(20_000, 3))
        scale = float(acting.sample(random_normal(20_000, 3)).std())
    assert abs(float(drawn.mean())) / scale < 0.03
    assert float(drawn.std()) / scale == pytest.approx(1, abs=0.02)


def test_hashed_numbers_are_uniform_and_normal() -> None:
    obs = torch.full((4000, 11), 0.3)
    obs[:, 5] += torch.arange(4000) * 2.0**-20  # neighbours: a few of the last bits differ
    u = uniform(observation_keys(obs, key()), 50)
    assert 0 < float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1
    ranks = u.flatten().sort().values
    grid = (torch.arange(len(ranks)) + 0.5) / len(ranks)
    assert float((ranks - grid).abs().max()) < 1.63 / math.sqrt(len(ranks))  # 1 % of Kolmogorov's
    z = normal(u)
    assert float(z.isfinite().float().mean()) == 1
    # Rows, columns and one step in either direction: correlations within four standard errors.
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1])):
        assert abs(float((a * b).mean())) < 4 / math.sqrt(a.numel())


def test_keys_differ_by_every_bit_but_the_sign_of_zero() -> None:
    obs = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [1.0, 1.0000001]])
    keys = observation_keys(obs, key()).tolist()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert set(keys).isdisjoint(observation_keys(obs, key(1)).tolist())
    stream = observation_keys(obs, key())
    assert torch.equal(uniform(stream, 9)[:, :4], uniform(stream, 4))
