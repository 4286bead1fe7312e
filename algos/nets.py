"""Many small networks of one shape, evaluated and differentiated as batched matrix products.

Dimension letters: S seeds, E ensemble members, M networks (S, or S * E), B batch, I inputs,
H hidden units, P parameters of all M networks.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Spec

Init = Literal["torch", "orthogonal", "small_head"]
LAYER_NORM_EPS = 1e-5
FEW_ROWS = 512
"""Up to which setting up a matrix product takes longer than a single output's multiplications. Of
each network's rows, not of all: seeds trained together must take the path of one alone."""


class MLP:
    """M multilayer perceptrons: hidden layers Linear-ReLU (-LayerNorm), linear output.

    All parameters live in one flat leaf tensor, so that an optimiser step or a Polyak average is
    one kernel, and the backward pass fills one flat gradient.
    """

    def __init__(self, sizes: Sequence[int], members: int, *, layer_norm: bool = False) -> None:
        """sizes: inputs, hidden widths, outputs. Parameters start at zero; see `initialise`."""
        self.sizes = tuple(sizes)
        self.members = members
        self.layer_norm = layer_norm
        self._shapes = self._parameter_shapes()
        self._numels = [shape.numel() for shape in self._shapes]
        self.flat = torch.zeros(sum(self._numels))
        self._bind()

    def __call__(
        self, x: Tensor, *, frozen: bool = False, dropout: Sequence[Tensor] = ()
    ) -> Tensor:
        """(M, B, I) -> (M, B, outputs).

        frozen: pass gradients to `x` only. dropout: one mask (M, B, H) per hidden layer, holding
        0 or 1 / keep probability.
        """
        flat = self.flat.detach() if frozen else self.flat
        out: Tensor = _Forward.apply(x, flat, self, tuple(dropout))  # type: ignore[no-untyped-call]
        return out

    def to(self, device: torch.device) -> "MLP":
        """Moves the parameters, before an optimiser is made."""
        self.flat = self.flat.detach().to(device)
        self._bind()
        return self

    def clone(self) -> "MLP":
        """A copy with the same parameters, that receives no gradient: a target network."""
        twin = MLP(self.sizes, self.members, layer_norm=self.layer_norm).to(self.flat.device)
        twin.flat.requires_grad_(False).copy_(self.flat.detach())
        return twin

    def initialise(self, random: SeedStreams, init: Init, head_range: float = 0.0) -> "MLP":
        """Draws every member's parameters from its seed's stream, on the streams' device.

        torch: U(+-1/sqrt(inputs)) weights and biases. orthogonal: gain sqrt 2, zero biases.
        small_head: as torch, but hidden biases 0.1 and the last layer U(+-head_range).
        """
        each = self.members // len(random)
        with torch.no_grad():
            for s, generator in enumerate(random.generators):
                for m in range(s * each, (s + 1) * each):
                    for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                        last = i == len(self.weights) - 1
                        layer = weight[m] if last else weight[m].T  # (out, in)
                        _draw(layer, bias[m], init, head_range if last else 0.0, generator)
            for gain in self.gains:
                gain.fill_(1.0)
        return self

    def module(self, member: int) -> nn.Sequential:
        """One network as plain torch layers, a copy."""
        layers = mlp_module(self.sizes, layer_norm=self.layer_norm)
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for linear, weight, bias in zip(linears, self.weights, self.biases, strict=True):
                linear.weight.copy_(weight[member] if linear is linears[-1] else weight[member].T)
                linear.bias.copy_(bias[member, 0])
            norms = [layer for layer in layers if isinstance(layer, nn.LayerNorm)]
            for norm, gain, shift in zip(norms, self.gains, self.shifts, strict=True):
                norm.weight.copy_(gain[member, 0])
                norm.bias.copy_(shift[member, 0])
        return layers

    def frozen_subset(self, members: slice) -> "MLP":
        """Some of the networks, sharing parameters; to be called with `frozen=True` only."""
        view = copy.copy(self)
        view.weights = [w[members] for w in self.weights]
        view.biases = [b[members] for b in self.biases]
        view.gains = [g[members] for g in self.gains]
        view.shifts = [s[members] for s in self.shifts]
        return view

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters of all members."""
        return {"flat": self.flat.detach()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        with torch.no_grad():
            self.flat.copy_(state["flat"])

    def split(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Views of a flat tensor: weights (M, in, out), the head's (M, out, in); biases, LayerNorm
        gains and shifts (M, 1, out).
        """
        pieces = flat.split_with_sizes(self._numels)
        parts = [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        n = len(self.sizes) - 1
        return parts[:n], parts[n : 2 * n], parts[2 * n : 3 * n - 1], parts[3 * n - 1 :]

    def _bind(self) -> None:
        views = self.split(self.flat.detach())
        self.weights, self.biases, self.gains, self.shifts = views
        self.flat.requires_grad_(True)

    def _parameter_shapes(self) -> list[torch.Size]:
        pairs = list(pairwise(self.sizes))
        weights = [torch.Size((self.members, i, o)) for i, o in pairs[:-1]]
        # The head is stored as (out, in): narrow products are several times faster that way.
        weights.append(torch.Size((self.members, self.sizes[-1], self.sizes[-2])))
        biases = [torch.Size((self.members, 1, o)) for _, o in pairs]
        return weights + biases + (biases[:-1] * 2 if self.layer_norm else [])


class _Forward(torch.autograd.Function):
    """One autograd node for a whole network, whose backward pass fills the flat gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat: Tensor, net: MLP, dropout: tuple[Tensor, ...]) -> Tensor:
        inputs, activations, statistics = [x], [], []
        for i, (weight, bias) in enumerate(zip(net.weights[:-1], net.biases[:-1], strict=True)):
            x = torch.bmm(x, weight).add_(bias).relu_()
            if dropout:
                x = x.mul_(dropout[i])
            activations.append(x)
            if net.layer_norm:
                x, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, LAYER_NORM_EPS)
                statistics.append((x, mean, rstd))
                x = torch.addcmul(net.shifts[i], x, net.gains[i])
            inputs.append(x)
        ctx.net, ctx.kept = net, (inputs, activations, statistics, dropout)
        return _head(x, net.weights[-1]).add_(net.biases[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        net: MLP = ctx.net
        inputs, activations, statistics, dropout = ctx.kept
        need_x, need_flat = ctx.needs_input_grad[:2]
        (up,) = gradients
        flat = torch.empty_like(net.flat) if need_flat else None
        if flat is not None:
            weights, biases, gains, shifts = net.split(flat)
        head = len(net.weights) - 1
        for i in reversed(range(head + 1)):
            if flat is not None:
                if i == head:
                    torch.bmm(up.transpose(1, 2), inputs[i], out=weights[i])
                else:
                    torch.bmm(inputs[i].transpose(1, 2), up, out=weights[i])
                torch.sum(up, 1, keepdim=True, out=biases[i])
            if i == 0 and not need_x:
                return None, flat, None, None
            across = net.weights[i] if i == head else net.weights[i].transpose(1, 2)
            # An outer product: a matrix-product kernel would spend its time on a dimension of 1.
            up = up * across if up.shape[-1] == 1 else torch.bmm(up, across)
            if i == 0:
                break
            if net.layer_norm:
                normed, mean, rstd = statistics[i - 1]
                if flat is not None:
                    torch.sum(up * normed, 1, keepdim=True, out=gains[i - 1])
                    torch.sum(up, 1, keepdim=True, out=shifts[i - 1])
                # LayerNorm's Jacobian needs its input; the ReLU below is masked by the same tensor.
                up = torch.ops.aten.native_layer_norm_backward(
                    up * net.gains[i - 1], activations[i - 1], normed.shape[-1:], mean, rstd,
                    None, None, [True, False, False],
                )[0]  # fmt: skip
            torch.ops.aten.threshold_backward.grad_input(up, activations[i - 1], 0, grad_input=up)
            if dropout:
                up.mul_(dropout[i - 1])
        return up, flat, None, None


def _head(x: Tensor, weight: Tensor) -> Tensor:
    """(M, B, H) by (M, outputs, H) -> (M, B, outputs)."""
    if weight.shape[1] == 1 and x.shape[1] <= FEW_ROWS:
        single: Tensor = torch.linalg.vecdot(x, weight)
        return single.unsqueeze(-1)
    return torch.bmm(weight, x.transpose(1, 2)).transpose(1, 2)


class Critic:
    """E action-value networks for each of S seeds."""

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        seeds: int,
        *,
        members: int,
        layer_norm: bool = False,
    ) -> None:
        self.seeds, self.members = seeds, members
        sizes = (spec.obs_dim + spec.action_dim, *hidden, 1)
        self.net = MLP(sizes, seeds * members, layer_norm=layer_norm)

    def __call__(self, obs: Tensor, action: Tensor, *, frozen: bool = False) -> Tensor:
        """(S, B, O), (S, B, A) -> (S, E, B). frozen: gradients reach the action only."""
        return self._values(self.net, obs, action, frozen)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """Values of each seed's first network, (S, B); gradients reach the action only."""
        net = self.net.frozen_subset(slice(None, None, self.members))
        return net(torch.cat((obs, action), dim=-1), frozen=True).squeeze(-1)

    def target(self) -> "TargetCritic":
        """A copy that follows slowly."""
        return TargetCritic(self)

    def _values(self, net: MLP, obs: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        x = torch.cat((obs, action), dim=-1)
        shared = x.unsqueeze(1).expand(-1, self.members, -1, -1).reshape(-1, *x.shape[1:])
        return net(shared, frozen=frozen).view(self.seeds, self.members, -1)


class TargetCritic:
    """A critic's Polyak average."""

    def __init__(self, critic: Critic) -> None:
        self.critic = critic
        self.net = critic.net.clone()

    @torch.no_grad()
    def __call__(self, obs: Tensor, action: Tensor) -> Tensor:
        """(S, B, O), (S, B, A) -> (S, E, B)."""
        return self.critic._values(self.net, obs, action)


@torch.no_grad()
def move_toward(target: MLP, online: MLP, rate: float) -> None:
    """target <- (1 - rate) * target + rate * online."""
    target.flat.lerp_(online.flat, rate)


def mlp_module(sizes: Sequence[int], *, layer_norm: bool = False) -> nn.Sequential:
    """The same network as plain torch layers, for deployment."""
    layers: list[nn.Module] = []
    for width_in, width in pairwise(sizes[:-1]):
        layers += [nn.Linear(width_in, width), nn.ReLU()]
        if layer_norm:
            layers.append(nn.LayerNorm(width, eps=LAYER_NORM_EPS))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def _draw(
    weight: Tensor, bias: Tensor, init: Init, head_range: float, generator: torch.Generator
) -> None:
    """Fills one layer in place. weight: (out, in). head_range: 0, or that of a special head."""
    bound = weight.shape[1] ** -0.5
    if init == "orthogonal":
        nn.init.orthogonal_(weight, gain=2**0.5, generator=generator)
        bias.zero_()
    elif head_range:
        weight.uniform_(-head_range, head_range, generator=generator)
        bias.uniform_(-head_range, head_range, generator=generator)
    else:
        weight.uniform_(-bound, bound, generator=generator)
        if init == "small_head":
            bias.fill_(0.1)
        else:
            bias.uniform_(-bound, bound, generator=generator)
