"""The causal transformer: no look ahead, caches equal recomputation, padding does not matter."""

import pytest
import torch
from torch import nn

from offdiff.planners.generator import Generator
from offdiff.planners.transformer import CausalTransformer

WIDTH = 16


def transformer(*, rotary: bool = True, dtype: torch.dtype = torch.float64) -> CausalTransformer:
    torch.manual_seed(0)
    made = CausalTransformer(WIDTH, 2, 2, rotary=rotary).to(dtype)
    return made.eval().requires_grad_(False)


def tokens(n: int = 3, steps: int = 7, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, steps, WIDTH, generator=generator, dtype=dtype)


def test_an_output_does_not_depend_on_later_inputs() -> None:
    net, x = transformer(), tokens(1)
    direction = torch.linspace(-1, 1, WIDTH, dtype=x.dtype)
    jacobian = torch.autograd.functional.jacobian(lambda t: net(t)[0] @ direction, x)[:, 0]
    size = jacobian.abs().sum(-1)  # (outputs, inputs)
    assert (size.triu(1) == 0).all()
    assert (size[torch.ones(7, 7, dtype=torch.bool).tril()] > 1e-6).all()


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("past", [1, 3, 6])
def test_steps_on_a_cache_equal_full_recomputation(past: int, rotary: bool) -> None:
    net, x = transformer(rotary=rotary), tokens()
    real = torch.ones(3, 7, dtype=torch.bool)
    real[1, : past - 1] = False  # a shorter past, padded on the left
    whole = net(x, real)
    out, cache = net.prefill(x[:, :past], real[:, :past])
    steps = [out[:, -1:]]
    for t in range(past, 7):
        out, cache = net.step(x[:, t : t + 1], cache)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), whole[:, past - 1 :], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_caches_are_exact_at_any_length_and_padding(dtype: torch.dtype, tolerance: float) -> None:
    net, generator = transformer(dtype=dtype), torch.Generator().manual_seed(4)

    def below(limit: int, *shape: int) -> torch.Tensor:
        return torch.randint(1, limit, shape, generator=generator)

    for _ in range(20):
        steps = int(below(39)) + 1
        past = int(below(steps))
        x = torch.randn(3, steps, WIDTH, generator=generator, dtype=dtype)
        real = torch.arange(steps) >= below(past + 1, 3, 1) - 1
        whole = net(x, real)
        out, cache = net.prefill(x[:, :past], real[:, :past])
        later = [out[:, -1:]]
        for t in range(past, steps):
            out, cache = net.step(x[:, t : t + 1], cache)
            later.append(out)
        torch.testing.assert_close(
            torch.cat(later, 1), whole[:, past - 1 :], rtol=0, atol=tolerance
        )


def test_an_older_cache_takes_tokens_back() -> None:
    net, x = transformer(), tokens()
    _, cache = net.prefill(x[:, :4])
    net.step(tokens(3, 1), cache)
    again, _ = net.step(x[:, 4:5], cache)
    torch.testing.assert_close(again, net(x[:, :5])[:, -1:], rtol=0, atol=1e-12)


def test_padding_on_the_left_changes_nothing_and_neither_does_what_it_holds() -> None:
    net, x = transformer(), tokens()
    for junk in (0.0, 1e3, float("inf"), float("nan")):
        padded = torch.cat((torch.full((3, 2, WIDTH), junk, dtype=x.dtype), x), dim=1)
        real = torch.tensor([False, False] + [True] * 7).expand(3, 9)
        out = net(padded, real)
        assert out.isfinite().all()
        torch.testing.assert_close(out[:, 2:], net(x), rtol=0, atol=1e-12)


def test_padding_on_the_right_changes_nothing_before_it() -> None:
    net, x = transformer(), tokens()
    real = torch.tensor([True] * 5 + [False] * 2).expand(3, 7)
    junk = x.masked_fill(~real[..., None], float("nan"))
    torch.testing.assert_close(net(junk, real)[:, :5], net(x[:, :5]), rtol=0, atol=1e-12)


def test_windows_without_a_real_row_give_finite_numbers_and_gradients() -> None:
    net, x = transformer().requires_grad_(True), tokens()
    out = net(x, torch.zeros(3, 7, dtype=torch.bool))
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_no_leak_and_short_contexts_are_as_good_as_long_ones() -> None:
    """s' = A s + noise: no position can do better than the noise, and one observation suffices."""
    noise, steps = 0.3, 6
    turn = 0.9 * torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    generator = torch.Generator().manual_seed(0)

    def series(n: int) -> torch.Tensor:
        rows = [torch.randn(n, 2, generator=generator)]
        for _ in range(steps):
            rows.append(rows[-1] @ turn.T + noise * torch.randn(n, 2, generator=generator))
        return torch.stack(rows, dim=1)

    torch.manual_seed(0)
    net = Generator(2, width=32, depth=2)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    unit, updates = torch.ones(2), 500
    for step in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / updates)
        x = series(128)
        real = torch.ones(128, steps + 1, dtype=torch.bool)
        loss = net.loss(x, torch.zeros(128, steps + 1), real, unit=unit, noise=torch.zeros_like(x))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = series(4096)
    rows = nn.functional.pad(x, (0, 1))[:, :-1]
    with torch.no_grad():
        change = net(rows, torch.ones(rows.shape[:2], dtype=torch.bool))[..., :2]
    square = (x[:, :-1] + change - x[:, 1:]).square().mean(-1)  # (windows, positions)
    error, standard_error = square.mean(0), square.std(0) / len(x) ** 0.5
    assert (error > noise**2 - 3 * standard_error).all()
    assert error.max() < 1.1 * error[-1]
    assert error[-1] < 1.1 * noise**2


def test_a_rollout_equals_feeding_back_without_a_cache() -> None:
    torch.manual_seed(0)
    net = Generator(2, width=16, depth=2)
    nn.init.normal_(net.head.weight, std=0.1)
    net = net.double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    obs = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)
    to_go = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    real = torch.ones(4, 3, dtype=torch.bool)
    real[0, :2] = False
    unit = torch.tensor([0.5, 2.0], dtype=torch.float64)
    rows, units = torch.cat((obs, to_go[..., None]), -1), torch.tensor([0.5, 2.0, 1.0])
    for _ in range(4):
        following = rows[:, -1:] + net(rows, real)[:, -1:] * units
        rows = torch.cat((rows, following), dim=1)
        real = nn.functional.pad(real, (0, 1), value=True)
    cached = net.rollout(obs, to_go, real[:, :3], 4, unit=unit)
    torch.testing.assert_close(cached, rows[:, 3:, :2], rtol=0, atol=1e-12)
