"""A trained trajectory model: denoiser, codec, and how well it denoises; on disk and in use.

Dimension letters: B windows, T = L + 1 rows, D columns, A action, K levels.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.core.types import Spec
from offdiff.data.codec import GROUPS, Codec
from offdiff.data.windows import Windows
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.denoiser import Denoiser
from offdiff.diffusion.gaussian_start import GaussianStart
from offdiff.diffusion.networks import build_network
from offdiff.diffusion.quantize import Quantised, pack, unpack
from offdiff.diffusion.sampling import karras_sigmas, low_levels, student_levels
from offdiff.diffusion.step_search import start_at

MODEL = "model.safetensors"
CURVE_LEVELS = 20
GAUSSIAN_WINDOWS = 16_384
FEW = 8
"""Up to so many steps start from the data's Gaussian."""


@dataclass(frozen=True)
class ErrorCurve:
    """Mean squared error of the denoised actions against the noise level, per action dimension.

    It is the variance of a clean action given a noisy window, which scales calibrated guidance:
    smaller than that of independent columns, because states tell much of the actions.
    """

    log_sigma: Tensor
    """(K,) rising"""
    error: Tensor
    """(K, A)"""

    def __call__(self, sigma: Tensor) -> Tensor:
        """(B,) levels -> (B, 1, A) variances, linear in ln sigma; the ends are continued."""
        at = sigma.log().clamp(self.log_sigma[0], self.log_sigma[-1])
        right = torch.searchsorted(self.log_sigma, at).clamp(1, len(self.log_sigma) - 1)
        low, high = self.log_sigma[right - 1], self.log_sigma[right]
        share = ((at - low) / (high - low))[:, None]
        return (self.error[right - 1].lerp(self.error[right], share))[:, None]


@torch.no_grad()
def measure_errors(denoiser: Denoiser, codec: Codec, windows: Windows, n: int) -> ErrorCurve:
    """The error curve on n windows (with replacement, always the same noise)."""
    generator = torch.Generator(windows.obs.device).manual_seed(0)
    cut = windows.sample(n, generator=generator)
    clean = codec.encode(cut)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    actions, errors = codec.group("action"), []
    levels = karras_sigmas(CURVE_LEVELS)[:-1].flip(0).to(clean)
    for sigma in levels:
        estimate = denoiser(clean + sigma * noise, sigma.expand(n))
        error = (estimate - clean)[:, :-1, actions].square()
        errors.append(error[cut.mask].mean(0))
    return ErrorCurve(levels.log(), torch.stack(errors))


def measure_gaussian(codec: Codec, windows: Windows, *, coupled: bool = False) -> GaussianStart:
    """Where sampling of such windows may start; coupled: for a model of pairs (reflow)."""
    number = min(len(windows), GAUSSIAN_WINDOWS)
    index = torch.linspace(0, len(windows) - 1, number, dtype=torch.float64).long()
    cut = windows.cut(index.to(windows.obs.device))
    return GaussianStart.of(codec.encode(cut), coupled=coupled)


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """How a model came about, other than from the data alone."""

    recipe: str = "train"
    """train, reflow, distil or consistency"""
    teacher: str = ""
    """`WorldModel.hash` of the model whose pairs it learned."""
    pairs: int = 0
    calls_per_pair: int = 0
    max_calls: int = 0
    """Network calls that it was distilled for, and the only number it makes; 0 for any."""


@dataclass(frozen=True, kw_only=True)
class WorldModel:
    """A trajectory diffusion model of one dataset, ready to sample from."""

    config: ModelConfig
    denoiser: Denoiser
    codec: Codec
    errors: ErrorCurve
    data_hash: str
    """`episodes_hash` of the data it was trained on."""
    validation: tuple[tuple[int, float], ...]
    """(step, loss on held-out episodes)"""
    lineage: Lineage = Lineage()
    grids: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    """Noise levels that a search found best for a number of steps (`step_search`)."""
    gaussian: GaussianStart | None = None
    """Where sampling in few steps starts; None for models from before it was measured."""
    skips: Mapping[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """For a number of steps in `grids`, the blocks that each of them leaves out (`skips`)."""

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of configuration, data and lineage."""
        made_of = (
            dataclasses.asdict(self.config),
            self.data_hash,
            dataclasses.asdict(self.lineage),
        )
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]

    def levels(self, steps: int) -> Tensor:
        """(steps + 1,) falling noise levels to sample with, the last one 0; on the CPU.

        Those that a search found for this number of steps; else those of a student
        (`student_levels`); else for 2 to 8 steps those that begin low (`low_levels`), for more
        Karras'.
        Raises InputError for another number of steps than a model was distilled for.
        """
        only = self.lineage.max_calls
        if only and steps != only:
            raise InputError(
                f"this model was distilled for {only} network call(s) and knows no other levels; "
                f"ask for {only} level(s) and the solver `euler`, or use its teacher"
            )
        if steps in self.grids:
            return torch.tensor((*self.grids[steps], 0.0), dtype=torch.float64)
        if self.lineage.teacher:
            return student_levels(steps)
        return low_levels(steps) if self.starts_low(steps) else karras_sigmas(steps)

    def starts_low(self, steps: int) -> bool:
        """Whether so many steps begin where the data's own variance counts."""
        few = 2 <= steps <= FEW and not self.lineage.teacher and self.gaussian is not None
        return few or steps in self.grids

    @property
    def device(self) -> torch.device:
        """Where it samples."""
        return self.codec.mean.device

    def start(self, noise: Tensor, steps: int) -> Tensor:
        """Where sampling with `levels(steps)` starts, given standard normal numbers (n, T, D).

        Low levels need the data's own variance beside the noise.
        """
        first = float(self.levels(steps)[0])
        if not self.starts_low(steps):
            return first * noise
        return start_at(noise, first) if self.gaussian is None else self.gaussian(noise, first)

    def noise(self, n: int, sigma: float, *, generator: torch.Generator) -> Tensor:
        """(n, T, D) pure noise of standard deviation sigma: where sampling starts."""
        shape = (n, self.codec.horizon + 1, self.codec.columns)
        return sigma * torch.randn(shape, generator=generator, device=self.device)

    def save(self, path: Path) -> None:
        """Writes the model atomically, as safetensors."""
        tensors = {f"network/{k}": v for k, v in pack(self.denoiser.network).items()}
        tensors |= {f"codec/{k}": v for k, v in self.codec.state_dict().items()}
        tensors |= {"errors/log_sigma": self.errors.log_sigma, "errors/error": self.errors.error}
        meta: dict[str, Any] = {
            "kind": "world_model",
            "config": dataclasses.asdict(self.config),
            "spec": [self.codec.spec.obs_dim, self.codec.spec.action_dim],
            "data_hash": self.data_hash,
            "validation": self.validation,
            "lineage": dataclasses.asdict(self.lineage),
            "grids": {str(steps): levels for steps, levels in self.grids.items()},
            "skips": {str(steps): blocks for steps, blocks in self.skips.items()},
        }
        if self.denoiser.quantised:
            meta["quantised"] = dataclasses.asdict(self.denoiser.quantised)
        if self.gaussian:
            tensors |= {f"gaussian/{k}": v for k, v in self.gaussian.tensors().items()}
            meta["coupled"] = self.gaussian.coupled
        save_tensors(path, tensors, meta)


def load_model(path: Path, device: torch.device, *, data_hash: str | None = None) -> WorldModel:
    """Reads a model file, or that of a folder.

    data_hash: what the model must have been trained on; None accepts any data.
    Raises InputError for a damaged or incomplete file, or a model of other data; MissingExtraError
    for a quantised one without torchao.
    """
    file = path / MODEL if path.is_dir() else path
    tensors, meta = load_tensors(file)
    try:
        config = ModelConfig(**meta["config"])
        spec = Spec(*meta["spec"])
        codec = _codec(config, spec, tensors["codec/mean"], tensors["codec/std"]).to(device)
        denoiser = make_denoiser(config, codec)
        weights = {
            k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")
        }
        if "quantised" in meta:
            denoiser.quantised = Quantised.of(meta["quantised"])
            unpack(denoiser.network, weights, denoiser.quantised)
        else:
            denoiser.network.load_state_dict(weights)
        denoiser.half_precision = device.type == "cuda"
        curve = ErrorCurve(*(tensors[f"errors/{k}"].to(device) for k in ("log_sigma", "error")))
        model = WorldModel(
            config=config,
            denoiser=denoiser.to(device).eval().requires_grad_(False),
            codec=codec,
            errors=curve,
            data_hash=meta["data_hash"],
            validation=tuple(tuple(point) for point in meta["validation"]),
            lineage=Lineage(**meta.get("lineage", {})),
            grids={int(k): tuple(v) for k, v in meta.get("grids", {}).items()},
            gaussian=_gaussian(tensors, meta, device),
            skips={int(k): tuple(map(tuple, v)) for k, v in meta.get("skips", {}).items()},
        )
    except MissingExtraError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file} lacks what a world model needs, statistics included ({reason}); train it again"
        ) from error
    if data_hash is not None and model.data_hash != data_hash:
        raise InputError(
            f"{file} models other data (hash {model.data_hash[:12]}, these are {data_hash[:12]}); "
            "train a model of these or leave the choice to the cache"
        )
    return model


def _gaussian(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], device: torch.device
) -> GaussianStart | None:
    """Files of models whose levels were never searched have none."""
    if "coupled" not in meta:
        return None
    found = {k: tensors[f"gaussian/{k}"].to(device) for k in ("mean", "axes", "variances", "rest")}
    return GaussianStart(**found, coupled=meta["coupled"])


def make_denoiser(config: ModelConfig, codec: Codec) -> Denoiser:
    """An untrained denoiser for the codec's rows, on its device."""
    mixed = config.levels == "mixed"
    extra = len(GROUPS) if mixed else 0
    columns, rows = codec.columns, config.horizon + 1
    network = build_network(
        config.network, columns + extra, columns, rows=rows, widths=codec.widths
    )
    denoiser = Denoiser(network, codec.slots, codec.widths, level_channels=mixed)
    return denoiser.to(codec.mean.device)


def _codec(config: ModelConfig, spec: Spec, mean: Tensor, std: Tensor) -> Codec:
    return Codec(
        spec=spec, horizon=config.horizon, action_map=config.action_map, mean=mean, std=std
    )


def describe(model: WorldModel) -> dict[str, Any]:
    """What `offdiff model info` prints."""
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    return {
        "data_hash": model.data_hash,
        "observation numbers": model.codec.spec.obs_dim,
        "action numbers": model.codec.spec.action_dim,
        "parameters": parameters,
        "validation loss": model.validation[-1][1] if model.validation else None,
        **{k: v for k, v in dataclasses.asdict(model.lineage).items() if v},
        **{f"levels of {steps} steps": _short(levels) for steps, levels in model.grids.items()},
        **{f"skipped in {steps} steps": show_skips(sets) for steps, sets in model.skips.items()},
        **({"quantised": str(model.denoiser.quantised)} if model.denoiser.quantised else {}),
        **dataclasses.asdict(model.config),
    }


def _short(levels: Sequence[float]) -> str:
    return " ".join(f"{level:.3g}" for level in levels)


def show_skips(skips: Sequence[Sequence[int]]) -> str:
    """The skipped blocks of every step: "2 | - | 1 3"."""
    return " | ".join(" ".join(map(str, blocks)) or "-" for blocks in skips)
