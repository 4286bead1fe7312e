"""Named sizes of the denoising networks, and what they cost."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from offdiff.core.errors import InputError, unknown_name
from offdiff.diffusion.dit import DiT
from offdiff.diffusion.mlp import WindowMLP
from offdiff.diffusion.mmdit import MMDiT
from offdiff.diffusion.temporal_unet import TemporalUNet
from offdiff.diffusion.unet import UNet

TEMPORAL_SCALE = 100.0
"""Stretches c_noise = ln(sigma) / 4, of range 1, to Diffuser's hundreds of diffusion steps."""

NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "unet-32": partial(UNet, width=32),
    "unet-64": partial(UNet, width=64),
    "unet-128": partial(UNet, width=128),
    "unet-256": partial(UNet, width=256),
    "unet-1024": partial(UNet, width=1024),  # the authors' size
    "dit-xs": partial(DiT, width=64, depth=4, heads=4),
    "dit-tiny": partial(DiT, width=128, depth=4, heads=4),
    "dit-s-": partial(DiT, width=256, depth=6, heads=4),
    "dit-s": partial(DiT, width=384, depth=12, heads=6),
    "dit-b": partial(DiT, width=768, depth=12, heads=12),
    "temporal-32": partial(TemporalUNet, width=32, level_scale=TEMPORAL_SCALE),
    "temporal-64": partial(TemporalUNet, width=64, level_scale=TEMPORAL_SCALE),
    "temporal-128": partial(TemporalUNet, width=128, level_scale=TEMPORAL_SCALE),
}
"""All take x (B, T, in_channels) and c_noise (B,), and return (B, T, out_channels); any T."""
WINDOW_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp-128": partial(WindowMLP, width=128, depth=2),
    "mlp-256": partial(WindowMLP, width=256, depth=3),
    "mlp-512": partial(WindowMLP, width=512, depth=3),
}
"""The same for the one number of rows that they are built with."""
STREAM_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    # narrower than the DiT of that name, as three streams hold three times the weights
    "mmdit-xs": partial(MMDiT, width=48, depth=4, heads=3),
    "mmdit-s-": partial(MMDiT, width=144, depth=6, heads=6),
}
"""The same, with weights of their own for states, actions, and reward and terminal."""
NAMES = (*NETWORKS, *WINDOW_NETWORKS, *STREAM_NETWORKS)


def build_network(
    name: str,
    in_channels: int,
    out_channels: int,
    *,
    rows: int,
    widths: Sequence[int] | None = None,
) -> nn.Module:
    """An untrained network, drawn from torch's global generator on its default device.

    rows: T of the windows it will see; only WINDOW_NETWORKS are bound to it.
    widths: columns of each of `codec.GROUPS`; only STREAM_NETWORKS need them. They come first
    among the inputs and are the outputs.
    """
    if name in WINDOW_NETWORKS:
        return WINDOW_NETWORKS[name](in_channels, out_channels, rows=rows)
    if name in STREAM_NETWORKS:
        if widths is None:
            raise InputError(
                f"network {name!r} is for world models, whose columns are states, actions, rewards "
                "and terminals; choose another, such as 'dit-xs'"
            )
        states, actions, *scalars = widths
        return STREAM_NETWORKS[name](in_channels, (states, actions, sum(scalars)))
    if name not in NETWORKS:
        raise unknown_name("network", name, NAMES)
    return NETWORKS[name](in_channels, out_channels)


def forward_flops(
    name: str, channels: int, rows: int, *, widths: Sequence[int] | None = None
) -> float:
    """Operations of one window's forward pass: 2 x the multiply-adds of all matrix products.

    widths: see `build_network`; they add up to the channels.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_network(name, channels, channels, rows=rows, widths=widths)
        network(torch.empty(1, rows, channels), torch.empty(1))
    return float(counter.get_total_flops())
