"""Augmenters that sample a world model: unguided, policy-guided, policy-guided as released."""

import os
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from offdiff.augment.base import AugmentConfig, Source
from offdiff.augment.believable import observed_range
from offdiff.augment.cache import world_model
from offdiff.augment.dynamics import DynamicsConfig, load_or_train
from offdiff.augment.filtering import Filtered
from offdiff.augment.sampler import DiffusionAugmenter, Draw, Prepare
from offdiff.augment.strength import tuned_strength
from offdiff.core.errors import InputError
from offdiff.core.protocols import Augmenter, Policy
from offdiff.data.episodes import Episodes
from offdiff.data.windows import episodes_hash
from offdiff.diffusion.config import PAPER, ModelConfig
from offdiff.diffusion.denoiser import SIGMA_MAX, Denoise
from offdiff.diffusion.fit import split
from offdiff.diffusion.guidance import PolicyGuidance, guided, guided_jointly
from offdiff.diffusion.released import ReleasedGuidance, sample_released
from offdiff.diffusion.sampling import karras_sigmas, low_levels
from offdiff.diffusion.solvers import SAMPLERS, Solver, chosen, sampler
from offdiff.diffusion.world_model import WorldModel, load_model


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(AugmentConfig):
    """What all augmenters share that sample a world model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The world model; trained once per dataset and kept in the cache."""
    model_file: str = ""
    """Use this trained model (`offdiff model train`) instead; it must be of the same data."""
    levels: int = 16
    """Noise levels of the sampler; 2 to 8 of them start low, from the Gaussian of the data."""
    chunk: int = 0
    """Windows sampled at a time; 0 for 256 on a CPU, 8192 on a GPU."""
    threads: int = 1
    """CPU threads of training and sampling the model; 0 for all cores. More than one helps on idle
    cores, and harms badly on busy ones."""
    drop_share: float = 0.0
    """Share of the transitions that is dropped as least believable to an ensemble of dynamics."""
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """That ensemble, trained once per dataset if anything is to be dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.levels <= 10_000:
            raise ValueError(f"levels must lie in [1, 10000], got {self.levels}")
        if not 0 <= self.chunk < 2**31:
            raise ValueError(f"chunk must be at least 0, got {self.chunk}")
        cores = os.cpu_count() or 1
        if not 0 <= self.threads <= cores:
            raise ValueError(f"threads must lie in [0, {cores}], got {self.threads}")
        if not 0 <= self.drop_share < 1:
            raise ValueError(f"drop_share must lie in [0, 1), got {self.drop_share}")

    def at_paper_size(self) -> Self:
        """With the largest network and long training as well."""
        return replace(super().at_paper_size(), model=PAPER)

    @abstractmethod
    def prepare(self, model: WorldModel, episodes: Episodes | None = None) -> Prepare:
        """How windows are drawn from the model.

        episodes: the model's data, for those who start from them; None where they are not at hand.
        Raises InputError for a model that does not do, or without the data that it takes.
        """

    def build(self, source: Source) -> Augmenter:
        """Loads the model, or trains it if no earlier run has."""
        if self.model_file:
            path, data_hash = Path(self.model_file).expanduser(), episodes_hash(source.episodes)
            model = load_model(path, source.device, data_hash=data_hash)
        else:
            model = world_model(source, self.model, cpu_threads=self.threads)
        chunk = self.chunk or (8192 if source.device.type == "cuda" else 256)
        augmenter = DiffusionAugmenter(
            model,
            self.prepare(model, source.episodes),
            chunk=chunk,
            cpu_threads=self.threads,
            bounds=observed_range(source.episodes),
        )
        if self.drop_share == 0:
            return augmenter
        return Filtered(augmenter, load_or_train(source, self.dynamics), self.drop_share)


@dataclass(frozen=True, kw_only=True)
class UnguidedConfig(DiffusionConfig):
    """Windows of the behaviour's own distribution, as SynthER makes single transitions."""

    solver: Solver = "auto"
    """heun, midpoint: second order, two calls per level; dpmpp, unipc: second and third order, one;
    euler: first; auto: unipc for 2 to 8 levels, else heun, and euler for students."""

    def prepare(self, model: WorldModel, episodes: Episodes | None = None) -> Prepare:
        """The solver from pure noise, whatever the policy."""

        def prepare(policy: Policy | None, generator: torch.Generator) -> Draw:
            return _solve(model, self.levels, self.solver)

        return prepare


@dataclass(frozen=True, kw_only=True)
class PGDConfig(DiffusionConfig):
    """Policy-guided diffusion, calibrated: samples p(window) * policy(actions | states)^strength.

    arXiv 2404.06356 with the repairs of DESIGN.md. The first generation, before the policy has
    been trained, is not guided.
    """

    strength: float | Literal["auto"] = 1.0
    """Exponent of the policy, or auto: as strong as makes actions spread about the policy's mean as
    the policy itself would spread them. For a deterministic policy that is `policy_std`: give one
    smaller than the behaviour's spread, such as 0.2, or there is nothing to guide to."""
    joint: bool = False
    """Let states follow the guided actions at every level, for a backward pass per network call."""
    solver: Solver = "auto"
    """heun, midpoint: second order, two calls per level; dpmpp, unipc: second and third order, one;
    euler: first; auto: unipc for 2 to 8 levels, else heun, and euler for students."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength != "auto" and not 0 <= self.strength < float("inf"):
            raise ValueError(f"strength must be finite and >= 0, or auto, got {self.strength}")

    def prepare(self, model: WorldModel, episodes: Episodes | None = None) -> Prepare:
        """The solver, its denoiser moved towards the policy."""
        solve = self.unguided(model, episodes)

        def prepare(policy: Policy | None, generator: torch.Generator) -> Draw:
            move = guided_jointly if self.joint else guided
            if policy is None or self.strength == 0:
                return solve

            def draw_with(strength: float) -> Draw:
                guidance = PolicyGuidance(
                    codec=model.codec,
                    policy=policy,
                    strength=strength,
                    policy_std=self.policy_std,
                    variance=model.errors,
                )
                return lambda denoise, n, random: solve(move(denoise, guidance), n, random)

            if self.strength == "auto":
                return draw_with(
                    tuned_strength(draw_with, model, policy, self.policy_std, generator)
                )
            return draw_with(self.strength)

        return prepare

    def unguided(self, model: WorldModel, episodes: Episodes | None) -> Draw:
        """How windows come from what they start as, by a denoiser guided or not."""
        return _solve(model, self.levels, self.solver)


@dataclass(frozen=True, kw_only=True)
class PartialPGDConfig(PGDConfig):
    """Calibrated guidance of windows of the data, noised to a level and brought back.

    Partial noising (GTA, arXiv 2405.16907) in place of pure noise. Noised data are what a sampler
    should have reached at that level, exactly, so that a few calls are left to make; but windows
    stay near those of the data, the nearer the lower the level. Terminals are made, not copied.
    """

    levels: int = 4
    """Noise levels of the sampler, in equal ratios from `noise` to 0.4 / levels."""
    solver: Solver = "auto"
    """unipc (auto), dpmpp, euler: one call per level; heun, midpoint: two."""
    noise: float = 3.0
    """Level that windows of the data are noised to, in standard deviations of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.4 / self.levels < self.noise <= SIGMA_MAX:
            raise ValueError(
                f"noise must lie in ({0.4 / self.levels:.3g}, {SIGMA_MAX:g}] with {self.levels} "
                f"levels, got {self.noise}"
            )

    def unguided(self, model: WorldModel, episodes: Episodes | None) -> Draw:
        """The solver from noised windows of the data."""
        if model.lineage.teacher:
            raise InputError(
                "pgd-partial noises the data anew, and a student knows only the noise of its "
                "pairs; give the student's teacher as --augment.model-file"
            )
        if episodes is None:
            raise InputError(
                "pgd-partial starts from windows of the data; give them to `offdiff augment`, with "
                "the model as --augment.model-file"
            )
        windows, _ = split(episodes, model.config, model.device)
        sigmas = low_levels(self.levels, self.noise)
        sample = SAMPLERS["unipc" if self.solver == "auto" else self.solver]

        def draw(denoise: Denoise, n: int, random: torch.Generator) -> Tensor:
            real = model.codec.encode(windows.sample(n, generator=random))
            return sample(denoise, real + model.noise(n, self.noise, generator=random), sigmas)

        return draw


@dataclass(frozen=True, kw_only=True)
class ReleasedPGDConfig(DiffusionConfig):
    """Policy-guided diffusion with the sampler and the guidance of its authors' code.

    To be compared with: of the same world model. Theirs also maps actions by atanh and knows no
    terminals: `--augment.model.action-map tanh --augment.model.no-terminals`.
    """

    levels: int = 256
    """Noise levels of the sampler."""
    coefficient: float = 1.0
    """Guidance coefficient (--policy_guidance_coeff)."""
    normalise: bool = True
    """Steps of unit length (--normalize_action_guidance)."""
    denoised: bool = True
    """Policy asked at the clean estimate (--denoised_guidance)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.coefficient < float("inf"):
            raise ValueError(f"coefficient must be finite and >= 0, got {self.coefficient}")

    def prepare(self, model: WorldModel, episodes: Episodes | None = None) -> Prepare:
        """The released sampler and guidance."""
        sigmas = karras_sigmas(self.levels)

        def prepare(policy: Policy | None, generator: torch.Generator) -> Draw:
            guidance = policy and ReleasedGuidance(
                codec=model.codec,
                policy=policy,
                coefficient=self.coefficient,
                policy_std=self.policy_std,
                normalise=self.normalise,
                denoised=self.denoised,
            )

            def draw(denoise: Denoise, n: int, random: torch.Generator) -> Tensor:
                noise = model.noise(n, float(sigmas[0]), generator=random)
                return sample_released(
                    denoise, noise, sigmas, generator=random, guidance=guidance or None
                )

            return draw

        return prepare


def _solve(model: WorldModel, levels: int, solver: Solver) -> Draw:
    sigmas = model.levels(levels)
    sample = sampler(chosen(solver, model, levels), model, levels)

    def draw(denoise: Denoise, n: int, random: torch.Generator) -> Tensor:
        start = model.start(model.noise(n, 1.0, generator=random), levels)
        return sample(denoise, start, sigmas)

    return draw
