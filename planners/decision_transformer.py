"""Decision Transformer: a wanted return in, an action out (Chen et al. 2021, arXiv 2106.01345).

Dimension letters: B environments or windows, K remembered steps, W width, O observation, A action.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from offdiff.core.planning import Plan, Situation
from offdiff.data.plan_windows import PlanBatch
from offdiff.planners.base import (
    Normaliser,
    PlannerConfig,
    PlannerModule,
    masked_mean,
    require_horizon,
)
from offdiff.planners.task import Task
from offdiff.planners.transformer import CausalTransformer


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerConfig(PlannerConfig):
    """Decision Transformer at the paper's sizes, with a laptop's learning rate and context."""

    horizon: int = 10
    """Steps of context, K; `history` follows it."""
    batch_size: int = 64
    """Windows per gradient step."""
    width: int = 128
    """Of the tokens, an even multiple of heads."""
    depth: int = 3
    """Blocks."""
    heads: int = 1
    """Of the attention."""
    dropout: float = 0.1
    """In [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride != 1:
            raise ValueError("a Decision Transformer reads neighbouring steps: stride must be 1")
        if self.replan_every != 1:
            raise ValueError(
                "a Decision Transformer gives one action at a time: replan_every must be 1, "
                f"got {self.replan_every}"
            )
        if self.depth < 1 or self.heads < 1 or self.width < 2 or self.width % (2 * self.heads):
            raise ValueError("depth and heads must be at least 1, width a multiple of 2 * heads")
        object.__setattr__(self, "history", self.horizon)

    def at_paper_size(self) -> Self:
        """The paper's Gym settings, for its 100,000 updates: the warm-up is a tenth of them."""
        return replace(self, horizon=20, learning_rate=1e-4, warmup=0.1, gradient_norm=0.25)

    def build(self, task: Task) -> "DecisionTransformer":
        """The planner before its first step."""
        require_horizon(self, task, 1)
        return DecisionTransformer(self, task)


class DecisionTransformer(PlannerModule):
    """Tokens return, observation, action of every step; an action is read off its observation.

    Differences from the paper and its code: windows are padded behind, not in front; returns are
    clipped to the data's range and divided by its larger end, not by 1000; GELU instead of ReLU, no
    dropout on the embeddings, torch's initialisation; after the warm-up the learning rate falls
    along a cosine; biases and gains do not decay; gradients are shortened layer by layer (each
    embedding, the norm, the blocks, the head), not all together; plans come from averaged weights;
    a time beyond the longest episode counts as its end.
    """

    def __init__(self, config: DecisionTransformerConfig, task: Task) -> None:
        super().__init__()
        self.config, self.task = config, task
        width, spec = config.width, task.spec
        self.scale = Normaliser(task.obs_mean, task.obs_std)
        self.embed_time = nn.Embedding(task.longest + 1, width)
        self.embed_return = nn.Linear(1, width)
        self.embed_obs = nn.Linear(spec.obs_dim, width)
        self.embed_action = nn.Linear(spec.action_dim, width)
        self.norm = nn.LayerNorm(width)
        self.transformer = CausalTransformer(
            width, config.depth, config.heads, dropout=config.dropout, rotary=False
        )
        self.head = nn.Linear(width, spec.action_dim)

    def forward(
        self, to_go: Tensor, obs: Tensor, action: Tensor, time: Tensor, real: Tensor
    ) -> Tensor:
        """(B, K), (B, K, O), (B, K, A), (B, K) steps, (B, K) bool -> (B, K, A) in [-1, 1]."""
        when = self.embed_time(time.clamp(0, self.task.longest))
        parts = (
            self.embed_return(self.task.condition(to_go)[..., None]),
            self.embed_obs(self.scale.encode(obs)),
            self.embed_action(action),
        )
        tokens = torch.stack([part + when for part in parts], dim=2).flatten(1, 2)
        hidden = self.transformer(self.norm(tokens), real.repeat_interleave(3, dim=1))
        return torch.tanh(self.head(hidden[:, 1::3]))

    def losses(self, batch: PlanBatch, /, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the actions that were taken."""
        steps = torch.arange(batch.real.shape[1], device=batch.time.device)
        time = batch.time[:, None] + steps
        action = self(batch.to_go, batch.obs, batch.action, time, batch.real)
        error = (action - batch.action).square()
        return {"action": masked_mean(error, (batch.real & batch.acted)[..., None])}

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        """The action for the return that is still wanted."""
        past = situation.history.shape[1]
        steps = torch.arange(1 - past, 1, device=situation.obs.device)
        action = self(
            situation.wanted,
            situation.history,
            situation.actions,
            situation.time[:, None] + steps,
            situation.remembered,
        )
        return Plan(action=action[:, -1:], calls=1)
