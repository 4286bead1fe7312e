"""Both ways to the same attention, and its closed forms."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offdiff.core.attention import attention


@pytest.fixture(params=["highest", "medium"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """torch's fused kernel, or products written out, by the library that multiplies."""
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def tokens(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, rows, 8, generator=generator, requires_grad=True)


@pytest.mark.parametrize("seen", ["all", "causal", "bool", "added"])
def test_it_is_torchs_attention_with_its_gradients(path: str, seen: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [tokens(5, generator) for _ in range(3)]
    mask = torch.rand(2, 1, 5, 5, generator=generator) > 0.4
    mask |= torch.eye(5, dtype=torch.bool)
    added = torch.randn(2, 1, 5, 5, generator=generator)
    ours, theirs = {
        "all": ({}, {}),
        "causal": ({"causal": True}, {"is_causal": True}),
        "bool": ({"mask": mask}, {"attn_mask": mask}),
        "added": ({"mask": added}, {"attn_mask": added}),
    }[seen]
    found = attention(*parts, **ours)
    exact = F.scaled_dot_product_attention(*(p.double() for p in parts), **_doubled(theirs))
    torch.testing.assert_close(found.double(), exact, atol=2e-6, rtol=1e-5)
    weights = torch.randn(found.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), parts),
        torch.autograd.grad((exact * weights).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def _doubled(options: dict[str, Tensor | bool]) -> dict[str, Tensor | bool]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in options.items()
    }


def test_equal_keys_are_averaged(path: str) -> None:
    value = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    found = attention(torch.randn(2, 3, 2, 8), torch.ones(2, 3, 6, 8), value)
    torch.testing.assert_close(found, value.mean(2, keepdim=True).expand(2, 3, 2, 4))


def test_dropout_keeps_the_mean_and_drops_whole_weights(path: str) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1, 1, 4_000, 8)
    found = attention(ones, ones[..., :4, :], torch.ones(1, 1, 4, 1), dropout=0.25)
    # Four weights of a quarter, each kept with 3/4 and then multiplied by 4/3.
    kept = (found * 3).round()
    torch.testing.assert_close(found * 3, kept, atol=1e-4, rtol=0)
    assert abs(float(found.mean()) - 1) < 5 * (1 / 3 / 4 / 4_000) ** 0.5
    assert set(kept.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
