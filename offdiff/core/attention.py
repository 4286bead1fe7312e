"""Attention by the kernel that suits the machine."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(query key^T / sqrt(D)) value, (B, H, T, D) with keys (B, H, S, D) -> (B, H, T, D).

    mask: broadcasts to (B, H, T, S); bool, true where a key is seen, or numbers that are added to
    the scores. causal: a query sees the keys up to its own position. dropout: of the weights.
    """
    if query.device.type != "cpu" or torch.get_float32_matmul_precision() == "highest":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout
        )
    # torch's CPU kernel multiplies head by head, and oneDNN (`use_fastest_exact_matmul`) prepares
    # every product anew: for windows of 17 rows that takes twenty times as long as it does here.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        seen = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if seen else scores + mask
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ value
