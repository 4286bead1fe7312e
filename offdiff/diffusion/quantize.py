"""Post-training int8 quantization of a denoiser's linear layers, by torchao.

Weights: per output channel, symmetric. Activations: per token when computed (dynamic), per tensor
with scales calibrated beforehand (static; arXiv 2211.15736), or float (weight). Convolutions stay
float, so networks made of them are refused. torchao's int8 layers lose the gradient by their input
without an error; `Denoiser` therefore refuses gradients once it is quantised.
Dimension letters: B windows, T rows of a window, D columns, N calibration states.
"""

import copy
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from offdiff.core.errors import InputError, MissingExtraError, unknown_name
from offdiff.data.codec import GROUPS
from offdiff.diffusion.denoiser import SIGMA_MAX, Denoise, Denoiser
from offdiff.diffusion.sampling import karras_sigmas, sample_euler, sample_heun

Mode = Literal["dynamic", "static", "weight"]
ENDS = {"in": ("tokens", "enter"), "out": ("head",), "time": ("embed",)}
"""What `keep` names -> submodules of the networks: the first, the last, the noise embedding."""
LEAST_SHARE = 0.5
"""Share of the arithmetic in int8 below which quantization is not worth its error."""
STATES = 1024
CALIBRATION_LEVELS = 32
TIME_LAW = (0.4, 0.4)
"""Mean and standard deviation of calibration times t = sigma / (1 + sigma)."""


@dataclass(frozen=True)
class Quantised:
    """What was done to a network; with its tensors, enough to build it again."""

    mode: Mode
    keep: tuple[str, ...]
    """What stayed float, of `ENDS`."""
    layers: tuple[str, ...]
    """Names of the int8 layers in the network."""
    covered: float
    """Share of a forward pass's matrix arithmetic that they make up."""
    torchao: str
    """Version that made the weights."""

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "Quantised":
        """From the JSON of its fields."""
        lists = {name: tuple(meta[name]) for name in ("keep", "layers")}
        return cls(**{**meta, **lists})

    def __str__(self) -> str:
        kept = ", ".join(self.keep) or "none"
        return (
            f"int8 {self.mode}, {len(self.layers)} layers, {self.covered:.1%} of the arithmetic; "
            f"float ends: {kept}; torchao {self.torchao}"
        )


def quantize(
    denoiser: Denoiser,
    *,
    mode: Mode = "dynamic",
    keep: Collection[str] = tuple(ENDS),
    states: tuple[Tensor, Tensor] | None = None,
) -> Denoiser:
    """A copy with int8 linear layers; without gradients.

    keep: names of `ENDS` that stay float. states: (N, T, D) and their levels (N,) to calibrate
    static scales on, the model's own by default.
    Raises InputError for a network that would gain nothing, MissingExtraError without torchao.
    """
    if mode not in get_args(Mode):
        raise unknown_name("mode", mode, get_args(Mode))
    for name in keep:
        if name not in ENDS:
            raise unknown_name("part to keep", name, ENDS)
    if denoiser.quantised:
        raise InputError("the model is quantised already; quantise the float model it was made of")
    floats = {child for name in keep for child in ENDS[name]}
    layers = [
        name
        for name, module in denoiser.network.named_modules()
        if isinstance(module, nn.Linear) and name.partition(".")[0] not in floats
    ]
    covered = covered_share(denoiser, layers)
    if covered < LEAST_SHARE:
        raise InputError(
            f"linear layers do only {covered:.0%} of this network's arithmetic, convolutions stay "
            "float: quantise a model with a dit-* or mlp-* network"
        )
    version = _torchao().__version__
    made = copy.deepcopy(denoiser).eval().requires_grad_(False)
    scales: dict[str, Tensor] = {}
    if mode == "static":
        scales = input_scales(made, layers, *(states or own_states(made)))
    for name in layers:
        _convert(made.network.get_submodule(name), mode, scales.get(name))
    order = tuple(name for name in ENDS if name in keep)
    made.quantised = Quantised(mode, order, tuple(layers), covered, version)
    return made


def covered_share(denoiser: Denoiser, layers: Iterable[str]) -> float:
    """Share of the matrix arithmetic (attention, convolutions included) that the layers make up."""
    shadow = copy.deepcopy(denoiser.network).to("meta")
    rows, columns = denoiser.slots.shape
    columns += len(GROUPS) if denoiser.level_channels else 0
    counted = 0

    def count(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Linear)
        counted += 2 * inputs[0].numel() * layer.out_features

    for name in layers:
        shadow.get_submodule(name).register_forward_pre_hook(count)
    with FlopCounterMode(display=False) as total, torch.no_grad():
        shadow(torch.empty(1, rows, columns, device="meta"), torch.empty(1, device="meta"))
    return counted / float(total.get_total_flops())


@torch.no_grad()
def own_states(denoiser: Denoiser, n: int = STATES, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(n, T, D) states on the model's own deterministic paths, and the level of each, (n,).

    Where a path is cut follows `TIME_LAW`, skewed to the data; each state keeps the level at which
    its path was cut, as activation ranges depend on it.
    """
    slots = denoiser.slots
    generator = torch.Generator(slots.device).manual_seed(seed)
    sigmas = karras_sigmas(CALIBRATION_LEVELS)
    levels = sigmas[:-1].float().to(slots.device)
    mean, std = TIME_LAW
    times = torch.randn(n, generator=generator, device=slots.device).mul(std).add(mean).clamp(0, 1)
    nearest = (times[:, None] - levels / (1 + levels)).abs().argmin(1)
    cut_at = levels[nearest]
    start = SIGMA_MAX * torch.randn(n, *slots.shape, generator=generator, device=slots.device)
    states = torch.empty_like(start)

    def collect(x: Tensor, sigma: Tensor) -> Tensor:
        states[sigma == cut_at] = x[sigma == cut_at]
        return x

    sample_euler(denoiser, start, sigmas, edit=collect)
    return states, cut_at


@torch.no_grad()
def input_scales(
    denoiser: Denoiser, layers: Sequence[str], x: Tensor, sigma: Tensor
) -> dict[str, Tensor]:
    """Scale of every layer's int8 input, from one pass of (N, T, D) at levels (N,).

    The largest input is still represented. Scales that clip it, of least |error|^2.4 as in the
    paper's code, made samples of a mixture 0.7 to 1.5 times as wrong: no gain to count on.
    """
    scales: dict[str, Tensor] = {}
    hooks = []
    for name in layers:

        def record(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            largest = inputs[0].float().abs().max().clamp(min=1e-8)
            # torchao wants as many axes as the input has: rows of a window, or one vector of it.
            scales[name] = (largest / 127).view((1,) * inputs[0].ndim)

        hooks.append(denoiser.network.get_submodule(name).register_forward_pre_hook(record))
    denoiser(x, sigma)
    for hook in hooks:
        hook.remove()
    return scales


def pack(network: nn.Module) -> dict[str, Tensor]:
    """The network's state as plain tensors: an int8 weight becomes its integers and scales."""
    plain: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        parts = {"": value}
        if hasattr(value, "qdata"):
            parts = {"/int8": value.qdata, "/scale": value.scale}
            if value.act_quant_scale is not None:
                parts["/input_scale"] = value.act_quant_scale
        plain |= {f"{name}{part}": tensor for part, tensor in parts.items()}
    return plain


def unpack(network: nn.Module, plain: Mapping[str, Tensor], quantised: Quantised) -> None:
    """Makes a float network the one that was packed, bit for bit.

    Raises KeyError or RuntimeError for tensors of another network.
    """
    weights = [f"{name}.weight" for name in quantised.layers]
    state = {name: tensor for name, tensor in plain.items() if "/" not in name}
    # Checks names and shapes; then torchao builds its layers and gets the stored integers.
    state |= {name: plain[f"{name}/int8"] * plain[f"{name}/scale"] for name in weights}
    network.load_state_dict(state)
    for name, weight in zip(quantised.layers, weights, strict=True):
        layer: Any = network.get_submodule(name)
        _convert(layer, quantised.mode, plain.get(f"{weight}/input_scale"))
        layer.weight.qdata.copy_(plain[f"{weight}/int8"])
        layer.weight.scale.copy_(plain[f"{weight}/scale"])


@torch.no_grad()
def paired_error(one: Denoiser, other: Denoise, *, n: int, levels: int, seed: int = 0) -> float:
    """RMSE between the windows that two denoisers make of the same noise, in standard deviations.

    Distances between distributions cannot show quantization's error: they may even improve.
    """
    slots = one.slots
    generator = torch.Generator(slots.device).manual_seed(seed)
    start = SIGMA_MAX * torch.randn(n, *slots.shape, generator=generator, device=slots.device)
    sigmas = karras_sigmas(levels)
    difference = sample_heun(one, start, sigmas) - sample_heun(other, start, sigmas)
    return float(difference[:, slots].square().mean().sqrt())


def _convert(layer: nn.Module, mode: Mode, scale: Tensor | None) -> None:
    """Turns one linear layer to int8 in place."""
    ao = _torchao().quantization
    config: Any
    if mode == "dynamic":
        config = ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    elif mode == "weight":
        config = ao.Int8WeightOnlyConfig(set_inductor_config=False)
    else:
        if scale is None:
            raise KeyError("the scale of an input")
        config = ao.Int8StaticActivationInt8WeightConfig(
            act_quant_scale=scale,
            granularity=[ao.PerTensor(), ao.PerRow()],
            set_inductor_config=False,
        )
    ao.quantize_(layer, config)


def _torchao() -> ModuleType:
    """The package, imported when it is first needed: it takes seconds."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of its kernels for other processors
    try:
        import torchao
        import torchao.quantization
    except ImportError as error:
        raise MissingExtraError("int8 quantization", "quantize") from error
    finally:
        logging.disable(before)
    module: ModuleType = torchao
    return module
