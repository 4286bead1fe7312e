"""A trained trajectory model: denoiser, codec, and how well it denoises; on disk and in use.

Dimension letters: B windows, T = L + 1 rows, D columns, A action, K levels.
"""

import dataclasses
from dataclasses import dataclass
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
from offdiff.diffusion.networks import build_network
from offdiff.diffusion.quantize import Quantised, pack, unpack
from offdiff.diffusion.sampling import karras_sigmas

MODEL = "model.safetensors"
CURVE_LEVELS = 20


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

    @property
    def device(self) -> torch.device:
        """Where it samples."""
        return self.codec.mean.device

    def noise(self, n: int, sigma: float, *, generator: torch.Generator) -> Tensor:
        """(n, T, D) pure noise of standard deviation sigma: where sampling starts."""
        shape = (n, self.codec.horizon + 1, self.codec.columns)
        return sigma * torch.randn(shape, generator=generator, device=self.device)

    def save(self, path: Path) -> None:
        """Writes the model atomically, as safetensors."""
        tensors = {f"network/{k}": v for k, v in pack(self.denoiser.network).items()}
        tensors |= {f"codec/{k}": v for k, v in self.codec.state_dict().items()}
        tensors |= {"errors/log_sigma": self.errors.log_sigma, "errors/error": self.errors.error}
        meta = {
            "kind": "world_model",
            "config": dataclasses.asdict(self.config),
            "spec": [self.codec.spec.obs_dim, self.codec.spec.action_dim],
            "data_hash": self.data_hash,
            "validation": self.validation,
        }
        if self.denoiser.quantised:
            meta["quantised"] = dataclasses.asdict(self.denoiser.quantised)
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


def make_denoiser(config: ModelConfig, codec: Codec) -> Denoiser:
    """An untrained denoiser for the codec's rows, on its device."""
    mixed = config.levels == "mixed"
    extra = len(GROUPS) if mixed else 0
    columns, rows = codec.columns, config.horizon + 1
    network = build_network(config.network, columns + extra, columns, rows=rows)
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
        **({"quantised": str(model.denoiser.quantised)} if model.denoiser.quantised else {}),
        **dataclasses.asdict(model.config),
    }
