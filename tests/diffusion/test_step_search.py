"""The search for levels, on a mixture whose fine ODE is known, and for blocks to skip."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.diffusion.denoiser import SIGMA_MAX, Denoise, Denoiser
from offdiff.diffusion.dit import Block, DiT
from offdiff.diffusion.genomes import Evolution
from offdiff.diffusion.multistep import sample_unipc
from offdiff.diffusion.oracles import Mixture
from offdiff.diffusion.paths import Cosine, Path, RectifiedFlow, sigma_at
from offdiff.diffusion.sampling import karras_sigmas, sample_euler, sample_heun
from offdiff.diffusion.skips import Sample, Skipping
from offdiff.diffusion.step_search import Found, search_steps, start_at

MIXTURE = Mixture(
    torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64),
    torch.tensor([[-3.0, -2.0], [3.0, -1.0], [0.4, 3.2]], dtype=torch.float64),
    torch.full((3,), 0.3, dtype=torch.float64),
)
SHORT = Evolution(generations=2, population=12, kept=3, mutated=5, crossed=3, finalists=2)


def short_search(seed: int, denoise: Mixture = MIXTURE, spread: float = 1.0) -> Found:
    return search_steps(
        denoise,
        (64, 2),
        steps=3,
        evolution=SHORT,
        fine_steps=24,
        fresh_batches=2,
        seed=seed,
        start=partial(start_at, spread=spread),
        like=MIXTURE.means,
    )


@pytest.mark.parametrize("seed", range(3))
def test_halves_the_error_of_the_uniform_grid(seed: int) -> None:
    found = search_steps(
        MIXTURE,
        (256, 2),
        steps=3,
        fine_steps=40,
        fresh_batches=16,
        seed=seed,
        like=MIXTURE.means,
    )
    assert found.error <= 0.5 * found.uniform_error
    # It finds that the noisiest steps are of no use (the spec's prototype: 0.83 to 0.93).
    assert Cosine().time(found.sigmas[0]) < 0.95


def test_reported_errors_hold_on_noise_of_ones_own() -> None:
    found = short_search(0)
    noise = torch.randn(
        4096, 2, generator=torch.Generator().manual_seed(9), dtype=MIXTURE.means.dtype
    )

    def run(sigmas: Tensor) -> Tensor:
        return sample_euler(MIXTURE, start_at(noise, float(sigmas[0])), sigmas)

    goal = sample_heun(MIXTURE, start_at(noise, SIGMA_MAX), karras_sigmas(40))
    uniform = sigma_at(Cosine(), torch.tensor([1.0, 2 / 3, 1 / 3, 0.0], dtype=noise.dtype))
    for sigmas, error in ((found.sigmas, found.error), (uniform, found.uniform_error)):
        assert_close(float((run(sigmas) - goal).square().mean().sqrt()), error, rtol=0.25, atol=0.0)


def test_a_start_of_the_data_s_width_lowers_the_error() -> None:
    """On standardised data; see start_at."""
    centre = MIXTURE.weights @ MIXTURE.means
    offsets = MIXTURE.means - centre
    std = (MIXTURE.weights @ offsets.square() + MIXTURE.stds[0] ** 2).mean().sqrt()
    standard = Mixture(MIXTURE.weights, offsets / std, MIXTURE.stds / std)
    assert short_search(0, standard).error < 0.6 * short_search(0, standard, spread=0.0).error


def test_same_seed_same_grid() -> None:
    first, again, other = short_search(1), short_search(1), short_search(2)
    assert_close(first.sigmas, again.sigmas, rtol=0, atol=0)
    assert first.error == again.error
    assert first.evaluations == 12 + 2 * 9
    assert not torch.equal(first.sigmas, other.sigmas)


def test_grid_is_one_of_the_samplers() -> None:
    sigmas = short_search(0).sigmas.tolist()
    assert len(sigmas) == 4
    assert sigmas[-1] == 0
    assert all(now >= following for now, following in pairwise(sigmas))


def test_generations_only_get_better_and_are_reported() -> None:
    told: list[tuple[int, float]] = []
    search_steps(
        MIXTURE,
        (32, 2),
        sample_heun,
        steps=1,
        clock=RectifiedFlow(),
        evolution=SHORT,
        fine_steps=8,
        fresh_batches=1,
        like=MIXTURE.means,
        report=lambda generation, error: told.append((generation, error)),
    )
    assert [generation for generation, _ in told] == [0, 1, 2]
    errors = [error for _, error in told]
    assert errors == sorted(errors, reverse=True)


def test_grids_that_diverge_lose() -> None:
    def broken_when_late(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
        return sample_euler(denoise, x, sigmas) / (0.0 if sigmas[0] < 2 else 1.0)

    found = search_steps(
        MIXTURE,
        (32, 2),
        broken_when_late,
        steps=2,
        evolution=SHORT,
        fine_steps=8,
        fresh_batches=1,
        like=MIXTURE.means,
    )
    assert found.sigmas[0] >= 2
    assert found.error < 10


@pytest.mark.parametrize("path", [Cosine(), RectifiedFlow()])
def test_times_name_levels(path: Path) -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert_close(path.time(sigma_at(path, t)), t)
    assert_close(sigma_at(path, t)[1].item(), 1.0)
    for dtype in (torch.float32, torch.float64):
        assert sigma_at(path, torch.ones(1, dtype=dtype)).item() == SIGMA_MAX


def useless_block_2() -> Denoiser:
    """A denoiser of four blocks with open gates, but for those of block 2."""
    torch.manual_seed(0)
    net = DiT(4, 4, width=16, depth=4, heads=2)
    nn.init.xavier_uniform_(net.head.weight)
    for k, block in enumerate(net.blocks):
        assert isinstance(block, Block)
        with torch.no_grad():
            block.modulation.bias.view(6, -1)[[2, 5]] = float(k != 2)
    slots = torch.ones(3, 4, dtype=torch.bool)
    return Denoiser(net, slots, (1, 1, 1, 1), level_channels=False).requires_grad_(False)


def skipping_search(
    seed: int, least: float, model: Denoiser, sample: Sample = sample_euler
) -> Found:
    return search_steps(
        model,
        (32, 3, 4),
        sample,
        steps=3,
        evolution=Evolution(generations=6, population=16, kept=4, mutated=8, crossed=3),
        fine_steps=16,
        fresh_batches=2,
        seed=seed,
        skipping=Skipping(network=model.network, most=0.25, least=least),
    )


@pytest.mark.parametrize("seed", range(2))
def test_a_block_that_does_nothing_is_skipped(seed: int) -> None:
    must = skipping_search(seed, 0.25, useless_block_2())
    assert must.skips == ((2,), (2,), (2,))
    assert must.saved == 0.25
    assert must.error == must.full_error
    may = skipping_search(seed, 0.0, useless_block_2())
    assert set().union(*may.skips) == {2}
    assert may.error == may.full_error


def test_of_equal_errors_the_one_of_fewer_blocks_wins() -> None:
    """With a sampler that never looks, all errors are equal; and no budget asks for anything."""
    found = skipping_search(2, 0.0, useless_block_2(), lambda _, x, __: torch.zeros_like(x))
    assert found.saved == 0.25


def test_the_budget_is_kept_at_a_price() -> None:
    """Here all blocks matter, and half of what may be skipped has to be."""
    model = useless_block_2()
    nn.init.normal_(model.network.get_parameter("blocks.2.modulation.bias"))
    found = skipping_search(0, 1 / 6, model)
    assert max(map(len, found.skips)) == 1
    assert sum(map(len, found.skips)) == 12 * found.saved >= 2
    assert found.error > found.full_error
    assert found.evaluations == 16 + 16 + 6 * 12


def test_same_seed_same_skips() -> None:
    model = useless_block_2()
    nn.init.normal_(model.network.get_parameter("blocks.2.modulation.bias"))
    first, again = (skipping_search(1, 1 / 6, model) for _ in range(2))
    assert first.skips == again.skips
    assert (first.error, first.saved) == (again.error, again.saved)
    assert torch.equal(first.sigmas, again.sigmas)


def test_what_cannot_be_searched_is_told() -> None:
    with pytest.raises(InputError, match="at least 1 step, got 0"):
        search_steps(MIXTURE, (8, 2), steps=0)
    with pytest.raises(InputError, match="shape is"):
        search_steps(MIXTURE, (8,))
    with pytest.raises(InputError, match="fine_steps"):
        search_steps(MIXTURE, (8, 2), steps=4, fine_steps=3)
    with pytest.raises(InputError, match="sigma_max"):
        search_steps(MIXTURE, (8, 2), sigma_max=0.0)
    with pytest.raises(InputError, match="must fit into a population of 10"):
        Evolution(population=10)
    with pytest.raises(InputError, match="negative"):
        Evolution(generations=-1)
    with pytest.raises(InputError, match="finalists"):
        Evolution(finalists=0)
    with pytest.raises(InputError, match="full_share must lie"):
        Evolution(full_share=1.5)


def test_multistep_rules_can_be_searched_at_the_top() -> None:
    """Candidates crowd at the largest level; none of them may have two equal levels."""
    found = search_steps(
        MIXTURE, (4, 2), sample_unipc, steps=12, fine_steps=16, fresh_batches=1,
        like=torch.empty(0, dtype=torch.float64),
    )  # fmt: skip
    assert (found.sigmas.diff() < 0).all()
    assert found.sigmas[0] <= SIGMA_MAX
