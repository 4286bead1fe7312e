"""A model of a task with known dynamics: samples are checked against the truth."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from offdiff.augment.diffusion import (
    PartialPGDConfig,
    PGDConfig,
    ReleasedPGDConfig,
    UnguidedConfig,
)
from offdiff.augment.sampler import DiffusionAugmenter
from offdiff.augment.strength import residual_std, tuned_strength
from offdiff.core.errors import InputError
from offdiff.core.types import Trajectories
from offdiff.data.toy import linear_gaussian
from offdiff.data.windows import Windows
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.fit import split, train_model
from offdiff.diffusion.world_model import Lineage, WorldModel

CPU = torch.device("cpu")
EPISODES = linear_gaussian(400, 12, terminal_share=0.5)


class Linear:
    """a = 0.3 + 0.2 s, spread 0.3: not the behaviour, but within its reach."""

    def act(self, obs: Tensor, /) -> Tensor:
        return 0.3 + 0.2 * obs

    def distribution(self, obs: Tensor, /) -> tuple[Tensor, Tensor]:
        return self.act(obs), torch.full_like(obs, 0.3)

    def reset(self, which: Tensor, /) -> None:
        """Nothing to forget."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    config = ModelConfig(horizon=8, steps=700)
    return train_model(EPISODES, config, CPU, tmp_path_factory.mktemp("model"))


def sample(model: WorldModel, config: object, n: int, policy: object = None) -> Trajectories:
    prepare = config.prepare(model, EPISODES)  # type: ignore[attr-defined]
    augmenter = DiffusionAugmenter(model, prepare, chunk=256, cpu_threads=1)
    return augmenter.generate(n, policy, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def dynamics_error(windows: Trajectories, model: WorldModel) -> Tensor:
    """(L,) squared error of the successors, in variances of the state."""
    predicted = 0.9 * windows.obs[:, :-1, 0] + 0.5 * windows.action[..., 0]
    error = (windows.obs[:, 1:, 0] - predicted).square() * windows.mask
    return error.sum(0) / windows.mask.sum(0) / model.codec.std[0] ** 2


def residual(windows: Trajectories) -> Tensor:
    return ((windows.action - Linear().act(windows.obs[:, :-1])) / 0.3)[windows.mask]


def test_samples_obey_the_dynamics_in_every_row(model: WorldModel) -> None:
    windows = sample(model, UnguidedConfig(), 1000)
    by_row = dynamics_error(windows, model)
    assert float(by_row.max()) < 0.05
    assert float(by_row.max()) < 3 * float(by_row.median()), "flat: no error accumulates"
    reward = (windows.reward - windows.obs[:, :-1, 0] - windows.action[..., 0])[windows.mask]
    assert float(reward.square().mean() / model.codec.std[2] ** 2) < 0.05


def test_samples_terminate_as_often_as_the_data(model: WorldModel) -> None:
    windows = sample(model, UnguidedConfig(levels=12), 3000)
    data = Windows.of(EPISODES, 8, CPU)
    cut = data.cut(torch.arange(len(data)))
    real = float((cut.terminal * cut.mask).sum() / cut.mask.sum())
    made = float((windows.terminal * windows.mask).sum() / windows.mask.sum())
    assert real > 0.03
    assert made == pytest.approx(real, rel=0.2)


def test_guidance_moves_actions_to_the_policy_as_far_as_it_is_strong(model: WorldModel) -> None:
    means = [
        abs(float(residual(sample(model, PGDConfig(strength=s), 500, Linear())).mean()))
        for s in (0.0, 0.25, 1.0, 4.0)
    ]
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.7 * means[0]


def test_guided_samples_still_obey_the_dynamics(model: WorldModel) -> None:
    guided = sample(model, PGDConfig(strength=1.0), 1000, Linear())
    assert float(dynamics_error(guided, model).max()) < 0.05


def test_joint_guidance_reaches_further_at_less_dynamics_error(model: WorldModel) -> None:
    plain, joint = (
        sample(model, PGDConfig(strength=4.0, joint=on), 1000, Linear()) for on in (False, True)
    )
    assert float(residual(joint).mean()) > float(residual(plain).mean())
    assert float(residual(joint).std()) < float(residual(plain).std())
    errors = [float(dynamics_error(windows, model).mean()) for windows in (plain, joint)]
    assert errors[1] < 0.8 * errors[0]


def test_automatic_strength_spreads_actions_as_the_policy_does(model: WorldModel) -> None:
    config = PGDConfig(strength="auto")
    found = sample(model, config, 1000, Linear())
    assert float(residual(found).square().mean().sqrt()) == pytest.approx(1.0, abs=0.15)


def test_automatic_strength_ends_at_its_range(model: WorldModel) -> None:
    class Sharp(Linear):
        def distribution(self, obs: Tensor, /) -> tuple[Tensor, Tensor]:
            return self.act(obs) + 50, torch.full_like(obs, 1e-3)

    plain = UnguidedConfig().prepare(model, EPISODES)(None, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    assert residual_std(model, plain, Sharp(), 1.0, generator) > 1
    found = tuned_strength(lambda _: plain, model, Sharp(), 1.0, generator)
    assert found > 32, "never sharp enough: the strongest is taken"


def test_noised_windows_of_the_data_are_guided(model: WorldModel) -> None:
    free, guided = (sample(model, PartialPGDConfig(), 500, p) for p in (None, Linear()))
    assert float(residual(guided).square().mean()) < 0.7 * float(residual(free).square().mean())
    assert dynamics_error(guided, model).mean() < 0.02


def test_partial_noising_stays_as_near_to_data_as_the_level_is_low(model: WorldModel) -> None:
    windows, _ = split(EPISODES, model.config, CPU)
    generator = torch.Generator().manual_seed(0)
    real = model.codec.encode(windows.sample(256, generator=generator))
    moved = []
    for noise in (0.2, 1.0, 5.0):
        made = sample(model, PartialPGDConfig(noise=noise), 256)
        moved.append(float((model.codec.encode(made) - real).square().mean().sqrt()))
    assert moved[0] < 0.3
    assert moved == sorted(moved)
    assert moved[2] > 3 * moved[0]


def test_partial_noising_refuses_what_it_cannot_use(model: WorldModel) -> None:
    student = replace(model, lineage=Lineage(recipe="reflow", teacher="abc"))
    with pytest.raises(InputError, match="a student knows only the noise of its pairs"):
        PartialPGDConfig().prepare(student, EPISODES)
    with pytest.raises(InputError, match="starts from windows of the data"):
        PartialPGDConfig().prepare(model)
    with pytest.raises(ValueError, match=r"noise must lie in \(0.1, 80\] with 4 levels, got 0.1"):
        PartialPGDConfig(noise=0.1)


def test_an_untrained_policy_does_not_guide(model: WorldModel) -> None:
    plain = sample(model, UnguidedConfig(), 32)
    assert torch.equal(sample(model, PGDConfig(), 32, None).action, plain.action)


def test_released_guidance_collapses_onto_the_policy(model: WorldModel) -> None:
    config = ReleasedPGDConfig(levels=64, coefficient=1.0)
    released = residual(sample(model, config, 200, Linear()))
    calibrated = residual(sample(model, PGDConfig(), 200, Linear()))
    assert float(released.std()) < 0.5 * float(calibrated.std())


def test_equal_seeds_give_equal_windows_whatever_the_chunk(model: WorldModel) -> None:
    prepare = UnguidedConfig(solver="dpmpp").prepare(model, EPISODES)
    made = [
        DiffusionAugmenter(model, prepare, chunk=16, cpu_threads=1).generate(
            32, None, generator=torch.Generator().manual_seed(3)
        )
        for _ in range(2)
    ]
    assert torch.equal(made[0].obs, made[1].obs)


def test_windows_end_before_what_is_far_outside_the_data(model: WorldModel) -> None:
    narrow = (torch.tensor([-0.3]), torch.tensor([0.3]))
    prepare = UnguidedConfig(levels=8).prepare(model, EPISODES)
    augmenter = DiffusionAugmenter(model, prepare, chunk=256, cpu_threads=1, bounds=narrow)
    windows = augmenter.generate(200, None, generator=torch.Generator().manual_seed(0))
    batch = windows.transitions()
    assert float(torch.cat((batch.obs, batch.next_obs)).abs().max()) <= 0.3
    assert bool((windows.mask.int().diff(dim=1) <= 0).all()), "nothing after the first is kept"
    assert 0.1 < float(windows.mask.float().mean()) < 0.9


def test_network_calls_are_counted(model: WorldModel) -> None:
    for config, calls in (
        (UnguidedConfig(levels=16), 31),
        (UnguidedConfig(levels=16, solver="dpmpp"), 16),
        (PGDConfig(levels=16), 31),
        (ReleasedPGDConfig(levels=16), 31 + 15),
        (PartialPGDConfig(), 4),
    ):
        augmenter = DiffusionAugmenter(
            model, config.prepare(model, EPISODES), chunk=4, cpu_threads=1
        )
        augmenter.generate(8, Linear(), generator=torch.Generator().manual_seed(0))
        assert augmenter.provenance()["network_calls_per_window"] == calls


def test_a_policy_of_another_action_size_is_refused(model: WorldModel) -> None:
    class Wide(Linear):
        def act(self, obs: Tensor, /) -> Tensor:
            return obs.expand(-1, 3)

    with pytest.raises(InputError, match="3 action numbers, the model's data have 1"):
        sample(model, PGDConfig(), 4, Wide())


def test_a_policy_of_another_observation_size_is_refused(model: WorldModel) -> None:
    class Deep(Linear):
        def act(self, obs: Tensor, /) -> Tensor:
            return obs @ torch.zeros(7, 1)

    with pytest.raises(InputError, match="does not take the model's 1 observation numbers on cpu"):
        sample(model, PGDConfig(), 4, Deep())


def test_numbers_that_break_are_told_with_step_and_level(model: WorldModel) -> None:
    class Broken(Linear):
        def distribution(self, obs: Tensor, /) -> tuple[Tensor, Tensor]:
            return torch.full_like(obs, torch.nan), torch.ones_like(obs)

    message = r"network call \d+ of 31 \(noise level [0-9.]+\); lower the guidance strength"
    with pytest.raises(InputError, match=message):
        sample(model, PGDConfig(), 4, Broken())
