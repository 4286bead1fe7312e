"""Anchored starts against closed forms and a mixture (samplers_and_acceleration, section 9)."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.diffusion.anchors import Anchors, anchored_start, kmeans, truncated_sigmas
from offdiff.diffusion.oracles import CorrelatedGaussian, Mixture
from offdiff.diffusion.paths import Cosine, RectifiedFlow, sigma_at
from offdiff.diffusion.sampling import sample_euler, sample_heun

MIXTURE = Mixture(
    torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64),
    torch.tensor([[-3.0, -2.0], [3.0, -1.0], [0.4, 3.2]], dtype=torch.float64),
    torch.full((3,), 0.3, dtype=torch.float64),
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def single_anchor(place: list[float]) -> Anchors:
    return Anchors(torch.tensor([place], dtype=torch.float64), torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("t_start", [0.1, 0.4, 0.6])
def test_truncated_ode_has_the_closed_form(t_start: float) -> None:
    """Mode N(m, s^2), anchor m + delta: the ODE keeps a share of the error, loses some width."""
    mean, std, delta = 1.0, 0.5, 0.4
    a, b = math.cos(math.pi * t_start / 2), math.sin(math.pi * t_start / 2)
    centre = torch.full((2,), mean, dtype=torch.float64)
    mode = CorrelatedGaussian(centre, std**2 * torch.eye(2, dtype=torch.float64))
    sigmas = truncated_sigmas(t_start, 16)
    start, _ = anchored_start(
        single_anchor([mean + delta] * 2), 400_000, float(sigmas[0]), generator=seeded(0)
    )
    found = sample_heun(mode, start, sigmas)
    norm = math.hypot(a * std, b)
    assert_close(float(found.mean()) - mean, std * a * delta / norm, rtol=0.01, atol=0.0)
    assert_close(float(found.std()), std * b / norm, rtol=0.01, atol=0.0)


def sliced_w2(first: Tensor, second: Tensor) -> float:
    """Root of the mean squared W2 over 64 directions; both (N, 2)."""
    angles = torch.linspace(0, math.pi, 65, dtype=first.dtype)[:-1]
    directions = torch.stack((angles.cos(), angles.sin()))
    gaps = (first @ directions).sort(0).values - (second @ directions).sort(0).values
    return float(gaps.square().mean().sqrt())


def mode_frequencies(samples: Tensor) -> Tensor:
    return torch.cdist(samples, MIXTURE.means).argmin(1).bincount(minlength=3) / len(samples)


def test_two_anchored_steps_beat_two_from_noise() -> None:
    n = 20_000
    data, fresh = MIXTURE.sample(4000, generator=seeded(1)), MIXTURE.sample(n, generator=seeded(2))
    anchors = kmeans(data, 20, restarts=4, generator=seeded(3))
    sigmas = truncated_sigmas(0.4, 2)

    def anchored(weights: str) -> Tensor:
        start, _ = anchored_start(
            anchors,
            n,
            float(sigmas[0]),
            weights=weights,  # type: ignore[arg-type]
            generator=seeded(4),
        )
        return sample_euler(MIXTURE, start, sigmas)

    full = truncated_sigmas(1.0, 2)
    noise = torch.randn(n, 2, generator=seeded(5), dtype=torch.float64)
    vanilla = sample_euler(MIXTURE, full[0] * noise, full)
    often, all_ = anchored("freq"), anchored("all")

    distance = sliced_w2(often, fresh)
    assert distance <= 0.3 * sliced_w2(vanilla, fresh)
    assert distance < 0.5 * sliced_w2(all_, fresh)
    true = MIXTURE.weights.float()
    assert_close(mode_frequencies(often), true, rtol=0, atol=0.02)
    assert (mode_frequencies(all_) - true).abs().max() > 0.05


def test_kmeans_finds_separate_clusters() -> None:
    corners = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    sizes = torch.tensor([10, 20, 30, 340])
    points = corners.repeat_interleave(sizes, 0)
    points = points + 0.1 * torch.randn(points.shape, generator=seeded(0))
    anchors = kmeans(points, 4, generator=seeded(1))
    nearest = torch.cdist(corners, anchors.centres).argmin(1)
    assert_close(anchors.centres[nearest], corners, rtol=0, atol=0.15)
    assert_close(anchors.frequencies[nearest], sizes / 400)


def test_kmeans_is_a_fixed_point_of_its_own_clusters() -> None:
    points = torch.randn(200, 3, 2, generator=seeded(0), dtype=torch.float64)
    anchors = kmeans(points, 6, restarts=2, generator=seeded(1))
    flat, centres = points.flatten(1), anchors.centres.flatten(1)
    nearest = torch.cdist(flat, centres).argmin(1)
    for cluster in range(6):
        assert_close(flat[nearest == cluster].mean(0), centres[cluster])
    again = kmeans(points, 6, restarts=2, generator=seeded(1))
    assert torch.equal(anchors.centres, again.centres)


def test_restarts_are_never_worse() -> None:
    points = MIXTURE.sample(500, generator=seeded(0))

    def spread(restarts: int) -> float:
        anchors = kmeans(points, 20, restarts=restarts, generator=seeded(1))
        return float(torch.cdist(points, anchors.centres).min(1).values.square().mean())

    assert spread(8) < spread(1)


def test_fewer_different_points_than_centres_get_no_share_twice() -> None:
    points = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    anchors = kmeans(points, 4, generator=seeded(0))
    assert_close(anchors.frequencies.sort(descending=True).values[:2], torch.tensor([0.5, 0.5]))
    assert set(anchors.centres.flatten().tolist()) == {0.0, 1.0}


def test_start_is_an_anchor_plus_noise_of_the_level() -> None:
    centres = torch.tensor([[[0.0], [1.0]], [[10.0], [11.0]]], dtype=torch.float64)
    anchors = Anchors(centres, torch.tensor([0.25, 0.75]))
    exact, which = anchored_start(anchors, 4000, 0.0, generator=seeded(0))
    assert torch.equal(exact, centres[which])
    assert float(which.double().mean()) == pytest.approx(0.75, abs=0.03)
    noisy, which = anchored_start(anchors, 4000, 0.5, weights="all", generator=seeded(0))
    assert which[:4].tolist() == [0, 1, 0, 1]
    assert float((noisy - centres[which]).std()) == pytest.approx(0.5, rel=0.03)


def test_truncated_levels_fall_from_the_start() -> None:
    sigmas = truncated_sigmas(0.4, 2)
    assert_close(sigmas, sigma_at(Cosine(), torch.tensor([0.4, 0.2, 0.0], dtype=torch.float64)))
    assert_close(truncated_sigmas(0.5, 1, RectifiedFlow()).tolist(), [1.0, 0.0])


def test_what_cannot_be_done_is_told() -> None:
    points = torch.zeros(3, 2)
    with pytest.raises(InputError, match=r"1 <= k <= 3 .* got k = 4"):
        kmeans(points, 4, generator=seeded(0))
    with pytest.raises(InputError, match="restarts"):
        kmeans(points, 1, restarts=0, generator=seeded(0))
    with pytest.raises(InputError, match="NaN"):
        kmeans(points / 0, 1, generator=seeded(0))
    with pytest.raises(InputError, match="t_start"):
        truncated_sigmas(0.0, 2)
    with pytest.raises(InputError, match="n >= 1"):
        anchored_start(single_anchor([0.0]), 0, 1.0, generator=seeded(0))
    with pytest.raises(InputError, match="unknown weights of anchors 'frequency'"):
        anchored_start(
            single_anchor([0.0]),
            1,
            1.0,
            weights="frequency",  # type: ignore[arg-type]
            generator=seeded(0),
        )
