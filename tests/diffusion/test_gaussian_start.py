"""Where the ODE of a Gaussian is at a level, against the ODE itself and closed forms."""

import pytest
import torch
from torch import Tensor

from offdiff.diffusion.gaussian_start import GaussianStart
from offdiff.diffusion.multistep import sample_unipc
from offdiff.diffusion.oracles import CorrelatedGaussian
from offdiff.diffusion.sampling import karras_sigmas, sample_euler

ROWS, COLUMNS = 3, 2
SIZE = ROWS * COLUMNS


def covariance() -> Tensor:
    mix = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mix @ mix.T


def exact(
    covariance: Tensor, mean: Tensor, *, rank: int = SIZE, coupled: bool = False
) -> GaussianStart:
    """Of the very moments: samples that have them exactly."""
    n = 4 * SIZE
    raw = torch.randn(n, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    centred = raw - raw.mean(0)
    white = centred @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(centred.T))).T
    samples = mean + white @ torch.linalg.cholesky(covariance).T
    return GaussianStart.of(samples.view(n, ROWS, COLUMNS), rank=rank, coupled=coupled)


def matrix(start: GaussianStart, sigma: float) -> Tensor:
    """(E, E) what noise is multiplied with."""
    basis = torch.eye(SIZE, dtype=torch.float64).view(SIZE, ROWS, COLUMNS)
    return (start(basis, sigma) - start.mean).flatten(1)


@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_noisy_data_have_the_covariance_of_the_data_and_of_the_noise(sigma: float) -> None:
    made = matrix(exact(covariance(), torch.zeros(SIZE, dtype=torch.float64)), sigma)
    wanted = covariance() + sigma**2 * torch.eye(SIZE, dtype=torch.float64)
    torch.testing.assert_close(made.T @ made, wanted, rtol=0, atol=1e-9)


def test_it_is_where_the_ode_comes_from_pure_noise() -> None:
    mean = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    data = CorrelatedGaussian(mean, covariance())
    noise = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    top = 2_000.0  # where the data's own spread is nothing
    levels = karras_sigmas(200, 1.5, top)[:-1]
    travelled = sample_unipc(data, top * noise, levels, order=3)
    begun = exact(covariance(), mean)(noise.view(5, ROWS, COLUMNS), 1.5)
    torch.testing.assert_close(begun.flatten(1), travelled, rtol=0, atol=5e-3)


def test_after_reflow_one_call_from_any_level_ends_at_the_pair() -> None:
    values, vectors = torch.linalg.eigh(covariance())

    def reflowed(x: Tensor, sigma: Tensor, /) -> Tensor:
        """E[x0 | x0 + sigma z] where x0 = covariance^(1/2) z."""
        gain = values.sqrt() / (values.sqrt() + sigma[:, None])
        return (((x.flatten(1) @ vectors) * gain) @ vectors.T).view_as(x)

    start = exact(covariance(), torch.zeros(SIZE, dtype=torch.float64), coupled=True)
    noise = torch.randn(4, ROWS, COLUMNS, generator=torch.Generator().manual_seed(3),
                        dtype=torch.float64)  # fmt: skip
    pair = (noise.flatten(1) @ vectors * values.sqrt()) @ vectors.T
    for sigma in (0.3, 4.0):
        levels = torch.tensor([sigma, 0.0], dtype=torch.float64)
        made = sample_euler(reflowed, start(noise, sigma), levels)
        torch.testing.assert_close(made.flatten(1), pair, rtol=0, atol=1e-9)


def test_axes_beyond_the_rank_share_their_mean_variance() -> None:
    spread = torch.diag(torch.tensor([9.0, 4.0, 0.5, 0.4, 0.3, 0.2], dtype=torch.float64))
    start = exact(spread, torch.zeros(SIZE, dtype=torch.float64), rank=2)
    assert start.rest.item() == pytest.approx(0.35)
    made = matrix(start, 0.0)
    torch.testing.assert_close(
        (made.T @ made).diagonal(),
        torch.tensor([9.0, 4.0, *[0.35] * 4], dtype=torch.float64), rtol=0, atol=1e-9,
    )  # fmt: skip


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        GaussianStart.of(torch.zeros(1, ROWS, COLUMNS))
