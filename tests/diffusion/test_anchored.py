"""Anchored training: what it learns, where its gradients go, what its scores mean."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.diffusion.anchored import AnchoredRefiner, focal_loss, log_odds, regression_loss

WEIGHTS = torch.tensor([0.1, 0.3, 0.6])
MODES = torch.tensor([[-3.0, -2.0], [3.0, -1.0], [0.4, 3.2]])
SPREAD = 0.1
START = torch.tensor([[True] * 3, [False, False, True]])
"""Row 0 is the situation: a shift of all modes, and the mode's number or 0. Row 1: what follows."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def situations(shift: Tensor, told: Tensor) -> Tensor:
    first = torch.cat((shift, told[:, None]), dim=1)
    return torch.stack((first, torch.zeros_like(first)), dim=1)


def windows(n: int, generator: torch.Generator) -> Tensor:
    """Half of them tell in row 0 which mode follows."""
    mode = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    told = (mode + 1.0) * (torch.rand(n, generator=generator) < 0.5)
    shift = torch.rand(n, 2, generator=generator) - 0.5
    rows = situations(shift, told)
    noise = SPREAD * torch.randn(n, 2, generator=generator)
    rows[:, 1, :2] = MODES[mode] + shift + noise
    return rows


def untrained(anchors: int = 6, **settings: object) -> AnchoredRefiner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AnchoredRefiner("mlp-128", START, anchors=anchors, **settings)  # type: ignore[arg-type]
    made.place(windows(4000, seeded(1)), generator=seeded(2))
    return made


@pytest.fixture(scope="module")
def refiner() -> AnchoredRefiner:
    made, generator = untrained(), seeded(3)
    optimiser = torch.optim.AdamW(made.parameters(), lr=4e-3, weight_decay=1e-4)
    steps = 400
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        clean = windows(64, generator)
        known = START.expand_as(clean)
        optimiser.zero_grad()
        made.loss(clean, known, torch.ones_like(clean), generator=generator).backward()
        optimiser.step()
        schedule.step()
    return made.eval().requires_grad_(False)


def ask(refiner: AnchoredRefiner, told: float, n: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """Mode nearest to every plan and its distance (n, K); probability of every mode (n, 3)."""
    shift = torch.rand(n, 2, generator=seeded(4)) - 0.5
    values = situations(shift, torch.full((n,), told))
    refined = refiner.refine(values, START.expand_as(values), generator=seeded(5))
    assert torch.equal(refined.plans[:, :, 0], values[:, None, 0].expand(-1, 6, -1))
    assert_close(refined.scores.sum(1), torch.ones(n))
    distance, mode = torch.cdist(refined.plans[:, :, 1, :2] - shift[:, None], MODES).min(2)
    shares = [(refined.scores * (mode == m)).sum(1) for m in range(3)]
    return mode, distance, torch.stack(shares, dim=1)


def test_plans_leave_their_anchors_for_the_modes(refiner: AnchoredRefiner) -> None:
    """The situation shifts the modes by up to 0.5, of which an anchor knows nothing.

    Refined plans are medians of a part of a mode, whose spread is 0.1.
    """
    mode, distance, _ = ask(refiner, told=0.0)
    assert set(mode[0].tolist()) == {0, 1, 2}
    assert (mode == mode[:1]).all()  # no anchor changes its mode
    shift = torch.rand(512, 2, generator=seeded(4)) - 0.5
    anchors = torch.cdist(refiner.anchors[None, :, 1, :2] - shift[:, None], MODES).amin(2)
    assert anchors.mean() > 0.4
    assert distance.mean() < 0.2


def test_scores_are_frequencies_where_the_situation_tells_nothing(refiner: AnchoredRefiner) -> None:
    _, _, shares = ask(refiner, told=0.0)
    assert_close(shares.mean(0), WEIGHTS, atol=0.05, rtol=0)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_scores_follow_a_situation_that_tells_the_mode(refiner: AnchoredRefiner, mode: int) -> None:
    found, distance, shares = ask(refiner, told=mode + 1.0)
    assert shares[:, mode].mean() > 0.9
    values = situations(torch.zeros(1, 2), torch.tensor([mode + 1.0]))
    refined = refiner.refine(values, START.expand_as(values), generator=seeded(6))
    best = refined.best(1).plans[0, 0, 1, :2]
    assert torch.linalg.vector_norm(best - MODES[mode]) < 0.25
    assert bool((found == mode).any(1).all())
    assert distance[found == mode].mean() < 0.2


def test_two_stages_are_two_network_calls_for_all_anchors_at_once(refiner: AnchoredRefiner) -> None:
    seen: list[int] = []
    hooks = [
        stage.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
        for stage in refiner.stages
    ]
    ask(refiner, told=0.0, n=5)
    assert seen == [5 * 6, 5 * 6]
    for hook in hooks:
        hook.remove()


def test_only_the_nearest_anchor_is_regressed_and_stages_learn_apart() -> None:
    made, clean = untrained(), windows(8, seeded(7))
    with torch.no_grad():  # heads begin at zero, and would pass no gradient on
        for parameter in made.parameters():
            parameter.add_(0.01)
    known, counts = START.expand_as(clean), torch.ones_like(clean)
    label = made.nearest(clean, counts)
    level = torch.full((8,), 0.05)
    x = made.anchors.expand(8, -1, -1, -1)
    (plans, logits), (again, _) = made(x, level, clean, known)
    (plan_gradient,) = torch.autograd.grad(
        regression_loss(plans, clean, label, counts * ~known), plans, retain_graph=True
    )
    chosen = torch.zeros(8, 6, dtype=torch.bool)
    chosen[torch.arange(8), label] = True
    assert plan_gradient[~chosen].eq(0).all()
    assert plan_gradient[chosen][:, 1, :2].ne(0).all()
    assert plan_gradient[..., 0, :].eq(0).all()  # row 0 is known
    (score_gradient,) = torch.autograd.grad(focal_loss(logits, label), logits)
    assert score_gradient.ne(0).all()
    regression_loss(again, clean, label, counts).backward()
    assert all(parameter.grad is None for parameter in made.stages[0].parameters())
    assert all(parameter.grad is not None for parameter in made.stages[1].parameters())


def test_the_focal_loss_has_its_closed_form() -> None:
    """Lin et al. 2017, equation 5, at gamma 2 and alpha 0.25."""
    logits = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    p = [1 / (1 + math.exp(-z)) for z in (2.0, -1.0, 0.5)]
    expected = -0.25 * (1 - p[1]) ** 2 * math.log(p[1])
    expected -= sum(0.75 * q**2 * math.log(1 - q) for q in (p[0], p[2]))
    assert_close(float(focal_loss(logits, torch.tensor([1]))), expected / 3)


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.5, 0.9])
def test_odds_undo_what_the_focal_loss_does_to_probabilities(probability: float) -> None:
    """The logit of least expected loss, found by search, is far off; its odds are right."""
    logits = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    p = logits.sigmoid()
    expected = -probability * 0.25 * (1 - p) ** 2 * p.log()
    expected -= (1 - probability) * 0.75 * p**2 * (1 - p).log()
    least = logits[expected.argmin()]
    assert float(log_odds(least).sigmoid()) == pytest.approx(probability, abs=1e-4)
    assert abs(float(least.sigmoid()) - probability) > 0.02
    extreme = log_odds(torch.tensor([-1e4, 1e4]))
    assert extreme.isfinite().all()
    assert extreme[0] < extreme[1]


def test_padding_neither_chooses_the_anchor_nor_counts() -> None:
    made, clean = untrained(), windows(16, seeded(9))
    counts = torch.ones_like(clean)
    counts[:, 1, 0] = 0
    other = clean.clone()
    other[:, 1, 0] += 100.0
    assert torch.equal(made.nearest(clean, counts), made.nearest(other, counts))
    known = START.expand_as(clean)
    losses = [made.loss(rows, known, counts, generator=seeded(1)) for rows in (clean, other)]
    assert torch.equal(*losses)


def test_the_best_come_first_with_their_own_scores(refiner: AnchoredRefiner) -> None:
    values = situations(torch.zeros(4, 2), torch.zeros(4))
    refined = refiner.refine(values, START.expand_as(values), generator=seeded(6))
    best = refined.best(3)
    assert torch.equal(best.scores, refined.scores.sort(1, descending=True).values[:, :3])
    for b in range(4):
        k = int(refined.scores[b].argmax())
        assert torch.equal(best.plans[b, 0], refined.plans[b, k])
    assert refined.best(99).plans.shape == refined.plans.shape


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="0 < noise < 1, got 6, 2, 1"):
        untrained(noise=1.0)
    with pytest.raises(InputError, match="4000 windows are too few for 5000 anchors"):
        untrained(5000)
