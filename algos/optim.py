"""Adam on flat tensors: a single fused kernel per step."""

import math
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor


class Adam:
    """Kingma and Ba 2015, with bias correction and without weight decay.

    The same numbers as `torch.optim.Adam(fused=True)`, without its bookkeeping, which costs as
    much as the step itself at these sizes.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        learning_rate: float,
        *,
        cosine_updates: int = 0,
        eps: float = 1e-8,
    ) -> None:
        """tensors: leaves to move. cosine_updates: steps of a decay to zero; 0: constant rate."""
        self.tensors = list(tensors)
        self.learning_rate = learning_rate
        self.cosine_updates = cosine_updates
        self.eps = eps
        self.steps = 0
        self.means = [torch.zeros_like(t, requires_grad=False) for t in self.tensors]
        self.squares = [torch.zeros_like(t, requires_grad=False) for t in self.tensors]
        self._step_tensors = [torch.zeros((), device=t.device) for t in self.tensors]

    def minimise(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, a scalar."""
        self.step(torch.autograd.grad(loss, self.tensors))

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step down a gradient, one part for each of the tensors."""
        for step in self._step_tensors:
            step.add_(1)
        torch._fused_adam_(
            [t.detach() for t in self.tensors], list(gradients), self.means, self.squares, [],
            self._step_tensors, lr=self.rate(), beta1=0.9, beta2=0.999, weight_decay=0.0,
            eps=self.eps, amsgrad=False, maximize=False,
        )  # fmt: skip
        self.steps += 1

    def rate(self) -> float:
        """The learning rate of the next step; half a cosine from the first to `cosine_updates`."""
        return cosine_rate(self.learning_rate, self.steps, self.cosine_updates)

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step count."""
        moments = {f"mean{i}": mean for i, mean in enumerate(self.means)}
        moments |= {f"square{i}": square for i, square in enumerate(self.squares)}
        return {**moments, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        for i, (mean, square) in enumerate(zip(self.means, self.squares, strict=True)):
            mean.copy_(state[f"mean{i}"])
            square.copy_(state[f"square{i}"])
        self.steps = int(state["steps"])
        for step in self._step_tensors:
            step.fill_(float(self.steps))


def minimise_apart(losses: Sequence[Tensor], optimisers: Sequence[Adam]) -> None:
    """One step of every optimiser down its own loss, a scalar, in a single backward pass.

    No loss may depend on another optimiser's tensors: its gradient would reach them.
    """
    tensors = [t for optimiser in optimisers for t in optimiser.tensors]
    gradients = iter(torch.autograd.grad(losses, tensors))
    for optimiser in optimisers:
        optimiser.step(list(islice(gradients, len(optimiser.tensors))))


def cosine_rate(base: float, step: int, total: int) -> float:
    """base * (1 + cos(pi * step / total)) / 2; constant if `total` is 0."""
    if total == 0:
        return base
    return base * 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))
