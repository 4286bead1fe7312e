"""DiffusionDrive's own training: anchors under a little noise, refined and scored.

Liao et al. 2024, arXiv 2411.15139. The input is anchor + noise, never data + noise: the anchors
bring the variety, and the noise is an augmentation. `offdiff.diffusion.anchors` runs an ordinary
denoiser from anchors instead.

Dimension letters: B situations, K anchors, N windows or best plans, T rows, D columns.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offdiff.core.errors import InputError
from offdiff.diffusion.anchors import kmeans
from offdiff.diffusion.networks import build_network

NOISE = 0.094
"""Largest b of sqrt(1 - b^2) anchor + b noise in training: the authors' step 49 of 1000."""
SAMPLING_SHARE = 1 / 3
"""Of it when plans are made: the authors' step 8, b = 0.032."""
REGRESSION_WEIGHT, SCORE_WEIGHT = 8.0, 10.0
FOCUS, POSITIVE_WEIGHT = 2.0, 0.25
"""gamma and alpha of the focal loss."""


class Refined(NamedTuple):
    """A plan for every anchor, and how often the data did that in such a situation."""

    plans: Tensor
    """(B, K, T, D)"""
    scores: Tensor
    """(B, K) probabilities that this anchor is the one nearest to what follows; they sum to 1"""

    def best(self, n: int) -> "Refined":
        """The n plans of highest score, best first: (B, N, T, D), (B, N); all if there are fewer.

        Their scores are kept as they are and no longer sum to 1.
        """
        scores, order = self.scores.topk(min(n, self.scores.shape[1]), dim=1)
        rows = torch.arange(len(order), device=order.device)[:, None]
        return Refined(self.plans[rows, order], scores)


class AnchoredRefiner(nn.Module):
    """A cascade of networks, each of which moves every anchor's plan and scores it.

    Entries that are known enter clean beside a mask and leave unchanged: the first row is the
    condition. A stage sees the plans of the stage before, without its gradient.

    Differences from the paper: the cascade's two stages are the two calls (the authors call a
    decoder of two stages twice); plans condition a network of `offdiff.diffusion.networks` instead
    of cross-attention to a scene; nothing is clamped.
    """

    anchors: Tensor
    start: Tensor

    def __init__(
        self, network: str, start: Tensor, *, anchors: int, stages: int = 2, noise: float = NOISE
    ) -> None:
        """network: of every stage. start: (T, D) bool, entries that are always known."""
        super().__init__()
        if anchors < 1 or stages < 1 or not 0 < noise < 1:
            raise ValueError(
                f"need anchors >= 1, stages >= 1, 0 < noise < 1, got {anchors}, {stages}, {noise}"
            )
        rows, columns = start.shape
        self.noise = noise
        self.stages = nn.ModuleList(
            build_network(network, 2 * columns, columns + 1, rows=rows) for _ in range(stages)
        )
        self.register_buffer("start", start.clone(), persistent=False)
        self.register_buffer("anchors", torch.zeros(anchors, rows, columns))

    def place(self, clean: Tensor, *, generator: torch.Generator) -> None:
        """Puts the anchors at the centres of windows (N, T, D); what is known anyway is left out.

        Raises InputError for fewer windows than anchors.
        """
        if len(clean) < len(self.anchors):
            raise InputError(
                f"{len(clean)} windows are too few for {len(self.anchors)} anchors; ask for fewer "
                "anchors, or for shorter windows"
            )
        found = kmeans(
            clean * ~self.start, len(self.anchors), restarts=4, rounds=30, generator=generator
        )
        self.anchors.copy_(found.centres)

    def nearest(self, clean: Tensor, counts: Tensor) -> Tensor:
        """(B,) number of the anchor nearest to each window (B, T, D), over entries that count."""
        weight = (counts * ~self.start)[:, None]
        distance = (clean[:, None] - self.anchors).square() * weight
        return distance.sum((2, 3)).argmin(1)

    def forward(
        self, x: Tensor, level: Tensor, values: Tensor, known: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Plans (B, K, T, D) and focal logits (B, K) of every stage.

        x: (B, K, T, D) noisy anchors. level: (B,) their b. values, known: (B, T, D).
        """
        known = known[:, None].expand_as(x)
        c_noise = (level.log() / 4).repeat_interleave(x.shape[1])
        outputs = []
        for stage in self.stages:
            x = torch.where(known, values[:, None], x.detach())
            rows = torch.cat((x, known.to(x.dtype)), dim=-1).flatten(0, 1)
            output = stage(rows, c_noise).unflatten(0, x.shape[:2])
            x = torch.where(known, x, x + output[..., :-1])
            outputs.append((x, output[..., -1].mean(-1)))
        return outputs

    def loss(
        self, clean: Tensor, known: Tensor, counts: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """Mean over the stages of 8 L1 (nearest anchor) + 10 focal (all anchors), 0-d.

        clean: (B, T, D). known: (B, T, D) bool, `start` among them. counts: (B, T, D), 0 where
        there is nothing to learn.
        """
        device = clean.device
        # The variance grows about evenly with the authors' step, which is uniform.
        share = 1 - torch.rand(len(clean), generator=generator, device=device)
        level = self.noise * share.sqrt()
        x = self._noisy(level, generator)
        label, counted = self.nearest(clean, counts), counts * ~known
        each = [
            REGRESSION_WEIGHT * regression_loss(plans, clean, label, counted)
            + SCORE_WEIGHT * focal_loss(logits, label)
            for plans, logits in self(x, level, clean, known)
        ]
        return torch.stack(each).mean()

    def refine(self, values: Tensor, known: Tensor, *, generator: torch.Generator) -> Refined:
        """Every anchor under slight noise through all stages: one network call for each stage.

        values, known: (B, T, D), what is given and where.
        """
        level = values.new_full((len(values),), SAMPLING_SHARE * self.noise)
        plans, logits = self(self._noisy(level, generator), level, values, known)[-1]
        chance = log_odds(logits).sigmoid()
        return Refined(plans, chance / chance.sum(1, keepdim=True))

    def _noisy(self, level: Tensor, generator: torch.Generator) -> Tensor:
        """(B, K, T, D) the anchors at levels b (B,) of the variance-preserving path."""
        b = level[:, None, None, None]
        shape = (len(level), *self.anchors.shape)
        noise = torch.randn(shape, generator=generator, device=level.device)
        return (1 - b**2).sqrt() * self.anchors + b * noise


def regression_loss(plans: Tensor, clean: Tensor, label: Tensor, counted: Tensor) -> Tensor:
    """Mean absolute error of the labelled anchor's plan over the entries that count, 0-d.

    plans (B, K, T, D); clean, counted (B, T, D); label (B,).
    """
    chosen = plans[torch.arange(len(label), device=label.device), label]
    return ((chosen - clean).abs() * counted).sum() / counted.sum().clamp(min=1)


def focal_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over (B, K) of -alpha_t (1 - p_t)^gamma ln p_t (Lin et al. 2017, arXiv 1708.02002).

    logits (B, K), label (B,): one of K is true, and each is judged by itself.
    """
    truth = F.one_hot(label, logits.shape[1]).to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    weight = POSITIVE_WEIGHT * truth + (1 - POSITIVE_WEIGHT) * (1 - truth)
    return (weight * (1 - (-entropy).exp()) ** FOCUS * entropy).mean()


def log_odds(logits: Tensor) -> Tensor:
    """What the logits that minimise the focal loss say of the odds, elementwise.

    The focal loss is no proper score: sigmoid(logit) is not the probability eta. At the minimum
    eta alpha A(p) = (1 - eta)(1 - alpha) A(1 - p), with A(p) = (1 - p)^(gamma - 1) ((1 - p) / p -
    gamma ln p), which gives the odds of eta (Charoenphakdee et al. 2021, arXiv 2011.09172).
    """
    logits = logits.clamp(-40, 40)

    def log_a(z: Tensor) -> Tensor:
        slope = ((-z).exp() + FOCUS * F.softplus(-z)).log()
        return (FOCUS - 1) * F.logsigmoid(-z) + slope

    prior = torch.tensor(1 / POSITIVE_WEIGHT - 1, dtype=logits.dtype).log()
    return prior + log_a(-logits) - log_a(logits)
