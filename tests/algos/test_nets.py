"""The batched networks against plain torch layers and torch's own autograd."""

import copy

import pytest
import torch
from torch import Tensor, nn

from offdiff.algos.nets import FEW_ROWS, MLP, Critic, move_toward
from offdiff.algos.optim import Adam, minimise_apart
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Spec

CPU = torch.device("cpu")


def random_input(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def streams(*seeds: int) -> SeedStreams:
    return SeedStreams(seeds, "test", CPU)


def reference(net: MLP) -> list[nn.Sequential]:
    return [net.module(member) for member in range(net.members)]


def flat_gradient(net: MLP, modules: list[nn.Sequential]) -> Tensor:
    """The gradients that autograd left in plain layers, laid out as the flat tensor is."""
    flat = torch.zeros_like(net.flat)
    weights, biases, gains, shifts = net.split(flat)
    for m, module in enumerate(modules):
        linears = [layer for layer in module if isinstance(layer, nn.Linear)]
        norms = [layer for layer in module if isinstance(layer, nn.LayerNorm)]
        for i, layer in enumerate(linears):
            head = i == len(linears) - 1
            weights[i][m] = layer.weight.grad if head else layer.weight.grad.T
            biases[i][m, 0] = layer.bias.grad
        for i, layer in enumerate(norms):
            gains[i][m, 0], shifts[i][m, 0] = layer.weight.grad, layer.bias.grad
    return flat


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("sizes", [(5, 7, 1), (5, 8, 6, 3), (4, 2)])
def test_values_and_all_gradients_equal_autograd(sizes: tuple[int, ...], layer_norm: bool) -> None:
    net = MLP(sizes, 3, layer_norm=layer_norm).initialise(streams(0, 1, 2), "torch")
    with torch.no_grad():
        net.flat.add_(random_input(len(net.flat), seed=1) * 0.1)
    modules = reference(net)
    x, plain_x = (random_input(3, 11, sizes[0]).requires_grad_() for _ in range(2))
    up = random_input(3, 11, sizes[-1], seed=2)

    out = net(x)
    expected = torch.stack([module(row) for module, row in zip(modules, plain_x, strict=True)])
    torch.testing.assert_close(out, expected)

    grad_x, grad_flat = torch.autograd.grad((out * up).sum(), (x, net.flat))
    (expected * up).sum().backward()
    # LayerNorm over a nearly dead layer divides by a small deviation: float32 loses some digits.
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if layer_norm else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(grad_x, plain_x.grad, **tolerance)
    torch.testing.assert_close(grad_flat, flat_gradient(net, modules), **tolerance)


@pytest.mark.parametrize("rows", [FEW_ROWS, FEW_ROWS + 1])
def test_one_output_is_the_same_for_few_and_many_rows_and_for_one_or_many_networks(
    rows: int,
) -> None:
    net = MLP((5, 256, 1), 4).initialise(streams(0, 1, 2, 3), "torch")
    x = random_input(4, rows, 5)
    out = net(x)
    plain = torch.stack([module(row) for module, row in zip(reference(net), x, strict=True)])
    torch.testing.assert_close(out, plain)
    alone = MLP((5, 256, 1), 1).initialise(streams(2), "torch")
    torch.testing.assert_close(alone(x[2:3]), out[2:3], rtol=1e-6, atol=1e-6)


def test_dropout_masks_enter_forward_and_backward() -> None:
    net = MLP((4, 16, 2), 1).initialise(streams(0), "orthogonal")
    mask = (random_input(1, 6, 16, seed=3) > 0).float() / 0.5
    x = random_input(1, 6, 4)
    w1, w2 = (w.detach().clone().requires_grad_() for w in net.weights)
    b1, b2 = net.biases
    expected = torch.relu(x @ w1 + b1.detach()) * mask @ w2.mT + b2.detach()
    got = net(x, dropout=[mask])
    torch.testing.assert_close(got, expected)
    (grad,) = torch.autograd.grad(got.square().sum(), net.flat)
    wanted = torch.autograd.grad(expected.square().sum(), (w1, w2))
    torch.testing.assert_close(net.split(grad)[0], list(wanted))


def test_frozen_networks_pass_gradients_to_their_input_only() -> None:
    critic = Critic(Spec(3, 2), (8,), 1, members=2)
    critic.net.initialise(streams(0), "torch")
    obs, action = random_input(1, 5, 3), random_input(1, 5, 2).requires_grad_()
    value = critic(obs, action, frozen=True).sum()
    assert torch.autograd.grad(value, critic.net.flat, allow_unused=True, retain_graph=True) == (
        None,
    )
    assert torch.autograd.grad(value, action)[0].abs().sum() > 0


def test_first_is_the_first_member_of_every_seed() -> None:
    critic = Critic(Spec(3, 2), (8, 8), 3, members=2)
    critic.net.initialise(streams(0, 1, 2), "torch")
    obs, action = random_input(3, 5, 3), random_input(3, 5, 2)
    torch.testing.assert_close(critic.first(obs, action), critic(obs, action)[:, 0])


@pytest.mark.parametrize("init", ["torch", "orthogonal", "small_head"])
def test_a_seed_starts_alike_alone_and_in_company(init: str) -> None:
    alone = MLP((3, 4, 2), 2).initialise(streams(7), init, 1e-3)
    joint = MLP((3, 4, 2), 6).initialise(streams(3, 7, 5), init, 1e-3)
    for one, many in zip(alone.weights + alone.biases, joint.weights + joint.biases, strict=True):
        assert torch.equal(one, many[2:4])


def test_orthogonal_layers_are_orthogonal_with_gain() -> None:
    net = MLP((6, 6, 6), 1).initialise(streams(0), "orthogonal")
    for weight in net.weights:
        product = weight[0] @ weight[0].T
        torch.testing.assert_close(product, 2 * torch.eye(6), rtol=0, atol=1e-5)


def test_target_follows_at_its_rate() -> None:
    net = MLP((2, 3), 1).initialise(streams(0), "torch")
    target = net.clone()
    with torch.no_grad():
        net.flat.add_(1.0)
    before = target.flat.clone()
    move_toward(target, net, 0.25)
    torch.testing.assert_close(target.flat, before + 0.25)
    assert not target.flat.requires_grad


def test_adam_equals_torchs_adam_with_cosine_schedule() -> None:
    start = random_input(50)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    optimiser = Adam([ours], 1e-2, cosine_updates=20)
    reference_optimiser = torch.optim.Adam([theirs], 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference_optimiser, T_max=20)
    for _ in range(20):
        optimiser.minimise((ours**4).sum())
        reference_optimiser.zero_grad()
        (theirs**4).sum().backward()
        reference_optimiser.step()
        schedule.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_backward_pass_for_several_losses_takes_the_same_steps() -> None:
    a, b, c, d = (random_input(9, seed=s % 2).requires_grad_() for s in range(4))
    together, one_by_one = [Adam([a], 1e-2), Adam([b], 3e-2)], [Adam([c], 1e-2), Adam([d], 3e-2)]
    for _ in range(3):
        minimise_apart(((a**2).sum(), (b**4).sum()), together)
        one_by_one[0].minimise((c**2).sum())
        one_by_one[1].minimise((d**4).sum())
    assert torch.equal(a, c)
    assert torch.equal(b, d)


def test_adam_continues_exactly_from_its_state() -> None:
    whole, first = (random_input(9).requires_grad_() for _ in range(2))
    a, b = Adam([whole], 1e-2), Adam([first], 1e-2)
    for _ in range(6):
        a.minimise((whole**2).sum())
    for _ in range(3):
        b.minimise((first**2).sum())
    second = first.detach().clone().requires_grad_()
    c = Adam([second], 1e-2)
    c.load_state_dict(copy.deepcopy(b.state_dict()))
    for _ in range(3):
        c.minimise((second**2).sum())
    assert torch.equal(whole, second)
