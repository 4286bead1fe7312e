"""RF-Edit: a real window edited under a new condition (arXiv 2411.04746).

The window is turned into its noise and made again by another denoiser, one guided by a policy or to
a goal. What of it has to stay is carried over in the attention values of the later blocks: those of
the way there stand in for those of the way back, in the noisiest steps, where the course of a
window is decided.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from offdiff.core.errors import InputError
from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.dit import Block
from offdiff.diffusion.flow_solvers import HIGH, LOW, OnPath, invert, restore
from offdiff.diffusion.paths import RectifiedFlow
from offdiff.diffusion.skips import require_transformer

OnValues = Callable[[int, Tensor], Tensor | None]
"""(number of the layer, values (B, heads, T, width / heads)) -> what to use instead, or None."""


def edit(
    denoise_source: Denoise,
    denoise_new: Denoise,
    clean: Tensor,
    *,
    network: nn.Module,
    steps: int = 20,
    inject: int = 3,
    blocks: Sequence[int] | None = None,
    low: float = LOW,
    high: float = HIGH,
    noise: Tensor | None = None,
) -> Tensor:
    """The window (B, T, D) as the new denoiser would have it, near to what it was.

    denoise_source, denoise_new: how the window came about, and the new condition; both call
    `network`, a DiT or MMDiT, once per evaluation (`guided` does).
    inject: steps, from the noisiest on, whose values are shared; with 0 this is `invert`, then
    `restore`. 2 inject values per layer are held meanwhile, each of the size B T width.
    blocks: whose values, from 0; the second half by default. low, high, noise: see `invert`.
    Raises InputError for networks without attention and denoisers that do not fit the network.
    """
    if not 0 <= inject <= steps:
        raise InputError(f"inject must lie in [0, steps = {steps}], got {inject}")
    layers = attention_layers(network, blocks)
    source, new = Counted(denoise_source), Counted(denoise_new)
    # By steps from the noisiest, 0 for a step's beginning and 1 for its middle, and layer. Where a
    # step begins on the way back, the one after it began on the way there.
    kept: dict[tuple[int, int, int], Tensor] = {}
    used = set()

    def keep(layer: int, values: Tensor) -> None:
        step, stage = divmod(source.call, 2)
        key = (steps - step - stage, stage, layer)
        if key in kept:
            raise InputError("the source denoiser calls its network more than once per evaluation")
        if key[0] < inject:
            kept[key] = values.detach().clone()  # a view would hold queries and keys as well

    def replace(layer: int, values: Tensor) -> Tensor | None:
        key = (*divmod(new.call, 2), layer)
        used.add(key)
        return kept.get(key)

    with on_values(layers, keep):
        noisy = invert(source, clean, steps=steps, low=low, high=high, noise=noise)
        if inject:  # the way back begins where the way there makes no evaluation
            OnPath(source, RectifiedFlow()).clean(noisy, high)
    with on_values(layers, replace):
        edited = restore(new, noisy, steps=steps, low=low, high=high)
    if len(kept) != 2 * inject * len(layers) or not used.issuperset(kept):
        raise InputError("the denoisers do not call the network that was named; name theirs")
    return edited


@dataclass
class Counted:
    """A denoiser that knows which of its calls is under way, from 0."""

    denoise: Denoise
    call: int = -1

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """As the denoiser."""
        self.call += 1
        return self.denoise(x, sigma)


def attention_layers(network: nn.Module, blocks: Sequence[int] | None = None) -> list[Block]:
    """The attention layers of some blocks, one per stream; of the second half by default.

    Raises InputError for a network without attention, or without such blocks.
    """
    every = require_transformer(network, "sharing attention values").blocks
    if blocks is None:
        blocks = range(len(every) // 2, len(every))
    if not set(blocks) <= set(range(len(every))) or len(set(blocks)) < len(blocks):
        raise InputError(f"blocks must be different numbers below {len(every)}, got {blocks}")
    return [layer for k in blocks for layer in every[k].modules() if isinstance(layer, Block)]


@contextmanager
def on_values(layers: Sequence[Block], do: OnValues) -> Iterator[None]:
    """Calls `do` with every layer's values before they are attended to, while the context lasts."""

    def hook(number: int, _module: nn.Module, _inputs: object, values: Tensor) -> Tensor | None:
        return do(number, values)

    handles = [
        layer.values.register_forward_hook(partial(hook, number))
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
