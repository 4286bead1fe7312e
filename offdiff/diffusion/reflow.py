"""Few-step students: pairs from a teacher's ODE, reflow on them, distillation to k steps.

In EDM's coordinates a pair (x0, eps) is trained on as data are, x = x0 + sigma eps, whatever the
path: rectified flow's reflow (arXiv 2209.03003, 2405.20320) and rectified diffusion (2410.07303)
differ in the weight and the law of the levels alone, which are the student's configuration.
Dimension letters: N pairs, T rows, D columns, G channel groups.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.seeding import derive_seed
from offdiff.data.codec import GROUPS
from offdiff.data.episodes import Episodes
from offdiff.data.windows import Windows, episodes_hash
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.couplings import Coupling, FlowGuided, Independent, Leg, Pairs
from offdiff.diffusion.denoiser import SIGMA_MAX, Denoise, Levels
from offdiff.diffusion.distributed import Group, distributed
from offdiff.diffusion.fit import CHECKPOINT, Fit, run_fit, split
from offdiff.diffusion.flow_solvers import HIGH, invert
from offdiff.diffusion.laws import Grid, TimeLevels
from offdiff.diffusion.multistep import sample_unipc
from offdiff.diffusion.paths import RectifiedFlow
from offdiff.diffusion.premetric import Premetric
from offdiff.diffusion.progress import StepBar
from offdiff.diffusion.sampling import karras_sigmas, pinned, student_levels
from offdiff.diffusion.world_model import Lineage, WorldModel, measure_gaussian

FARTHEST = 5.0
"""Standard deviations outside the data at which a teacher's window is left out as an accident."""


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """How many pairs, and how the teacher makes them. ValueError for values out of range."""

    pairs: int = 16_000
    """Windows that the teacher makes."""
    levels: int = 20
    """Network calls for each: UniPC of third order."""
    real_share: float = 0.1
    """Share that is made the other way, from windows of the data and back to their noise."""
    chunk: int = 256
    """Windows at a time."""
    seed: int = 0

    def __str__(self) -> str:
        made = f"pairs {self.pairs}, levels {self.levels}"
        return f"{made}, real share {self.real_share}, seed {self.seed}"

    def __post_init__(self) -> None:
        for name, (low, high) in {
            "pairs": (1, 2**31), "levels": (2, 1000), "real_share": (0, 1), "chunk": (1, 2**20),
        }.items():  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {getattr(self, name)}")


@torch.no_grad()
def make_pairs(
    teacher: WorldModel, windows: Windows, config: PairsConfig, *, progress: bool = False
) -> Pairs:
    """Pairs by the teacher's deterministic ODE, without guidance: it would go stale.

    Of a teacher trained with levels="mixed" half of the windows begin in states of the data, so
    that the student learns to be conditioned as well. Windows with an entry more than five
    standard deviations outside the data are left out. Raises InputError if that leaves less than
    half, and for a teacher that cannot be one.
    """
    require_teacher(teacher)
    generator = torch.Generator(teacher.device).manual_seed(derive_seed(config.seed, "pairs"))
    sigmas = karras_sigmas(config.levels)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    data = Independent(windows, teacher.codec)
    bound = FARTHEST + _farthest(data, generator)
    with StepBar("pairs", config.pairs, 0, progress) as bar:
        for start in range(0, config.pairs, config.chunk):
            n = min(config.chunk, config.pairs - start)
            real, noise, _ = data.draw(n, 0.0, generator=generator)
            known = _known(teacher, n, generator)
            denoise: Denoise = teacher.denoiser
            if known is not None:
                denoise = pinned(teacher.denoiser, real, known)
            made = sample_unipc(denoise, SIGMA_MAX * noise, sigmas, order=3)
            backwards = torch.rand(n, generator=generator, device=noise.device) < config.real_share
            if bool(backwards.any()) and known is None:
                least = noise[backwards]
                found = invert(teacher.denoiser, real[backwards], steps=config.levels, noise=least)
                # Students start from sigma * noise, without what is left of the window there.
                made[backwards], noise[backwards] = real[backwards], found / HIGH
            if known is None:
                known = torch.zeros(*made.shape[:2], len(GROUPS), dtype=torch.bool,
                                    device=made.device)  # fmt: skip
            sound = (made.isfinite() & (made.abs() <= bound)).all(2).all(1)
            parts.append((made[sound], noise[sound], known[sound]))
            bar.advance(n)
    clean, noise, known = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if len(clean) < config.pairs / 2:
        raise InputError(
            f"the teacher made {config.pairs - len(clean)} of {config.pairs} windows that no data "
            "come near; train it longer"
        )
    return Pairs(
        clean=clean,
        noise=noise,
        known=known if bool(known.any()) else None,
        teacher=teacher.hash,
        calls=config.levels,
        made=str(config),
    )


def require_teacher(model: WorldModel) -> None:
    """Raises InputError for a distilled model, which has no ODE, and for a quantised one."""
    if model.lineage.max_calls:
        raise InputError(
            "this model was distilled to few calls and has no path to learn from; learn from its "
            "teacher"
        )
    if model.denoiser.quantised:
        raise InputError("this model is quantised; learn from the float one, and quantise last")


def require_kin(teacher: WorldModel, config: ModelConfig) -> None:
    """Raises InputError for a student of other windows than its teacher's."""
    own = teacher.config
    if (config.horizon, config.action_map, config.terminals, config.levels) != (
        own.horizon, own.action_map, own.terminals, own.levels,
    ):  # fmt: skip
        raise InputError("a student needs its teacher's horizon, action map, terminals and levels")


def require_guide(guide: WorldModel, teacher: WorldModel) -> None:
    """Raises InputError for a guide whose windows mean something else than the teacher's."""
    require_teacher(guide)
    require_kin(guide, teacher.config)
    own, other = guide.codec, teacher.codec
    if not (torch.equal(own.mean, other.mean) and torch.equal(own.std, other.std)):
        raise InputError(
            "the guide has other statistics than the teacher; take the teacher, or a student of it"
        )


def _farthest(data: Independent, generator: torch.Generator) -> Tensor:
    """(D,) largest entry of some windows of the data, by column."""
    some = data.draw(4096, 0.0, generator=generator).clean
    return some.abs().amax((0, 1))


def _known(teacher: WorldModel, n: int, generator: torch.Generator) -> Tensor | None:
    """(n, T, G): the first observation of half the windows, if the teacher takes levels per row."""
    if not teacher.denoiser.level_channels:
        return None
    known = torch.zeros(n, teacher.codec.horizon + 1, len(GROUPS), dtype=torch.bool,
                        device=teacher.device)  # fmt: skip
    half = torch.rand(n, generator=generator, device=teacher.device) < 0.5
    known[half, 0, GROUPS.index("state")] = True
    return known


def reflow_config(teacher: ModelConfig) -> ModelConfig:
    """The student's defaults: one round, U-shaped times, pseudo-Huber on the velocity."""
    return dataclasses.replace(
        teacher,
        objective="v",
        metric="huber",
        law="u-shape",
        uniform_share=0.0,
        shift=1.0,
        steps=max(1, teacher.steps // 2),
        learning_rate=teacher.learning_rate / 3,
    )


def distil_config(teacher: ModelConfig) -> ModelConfig:
    """As reflow, at the levels of the student's calls alone: for one, from noise to window."""
    return dataclasses.replace(reflow_config(teacher), objective="x0", law="end")


def levels_of_calls(calls: int) -> Levels:
    """The law of the levels at which a student of so many calls is called."""
    times = RectifiedFlow().time(student_levels(calls)[:-1])
    return TimeLevels(Grid(tuple(times.tolist())))


def student_fit(
    teacher: WorldModel, config: ModelConfig, coupling: Coupling, held: Windows, group: Group
) -> Fit:
    """A student before its first step, with the teacher's weights where the networks are alike."""
    group.require_divisible(config.batch_size)
    same = config.network == teacher.config.network
    weights = teacher.denoiser.network if same else None
    return Fit.of(config, teacher.codec, coupling, held, group, weights)


def train_student(
    teacher: WorldModel,
    pairs: Pairs,
    episodes: Episodes,
    config: ModelConfig,
    folder: Path,
    *,
    recipe: str,
    calls: int = 0,
    premetric: Premetric | None = None,
    guide: WorldModel | None = None,
    leg: Leg = "student",
    progress: bool = False,
) -> WorldModel:
    """A student of the pairs; continues from the checkpoint in `folder` if there is one.

    It starts from the teacher's weights where the networks are the same. Guidance keeps the
    teacher's error curve: the student's own says how well it knows a pair, not what data vary by.
    calls: that it is distilled to, with the law "end"; 0 for a path to follow in any number.
    premetric: see `Loss`; the recipe has to name it, or a checkpoint of another would be taken.
    guide, leg: see `FlowGuided`.
    Raises InputError for a model that cannot be a teacher, pairs of another one, or a loss that
    stops being finite; ValueError for calls without the law "end", or the reverse.
    """
    require_teacher(teacher)
    if pairs.teacher != teacher.hash:
        raise InputError("the pairs were made by another teacher; make them again")
    if premetric is not None and config.metric != "huber":
        raise InputError(f"a premetric goes with the metric huber, not with {config.metric}")
    if (calls > 0) != (config.law == "end"):
        raise ValueError("a number of calls goes with the law 'end', and that law with calls")
    require_kin(teacher, config)
    windows, held = split(episodes, teacher.config, teacher.device)
    with distributed(teacher.device) as group:
        fit = student_fit(teacher, config, pairs, held, group)
        fit.loss.premetric = premetric
        if calls > 1:
            fit.law = levels_of_calls(calls)
        how = f"{recipe} {calls} {len(pairs)} {pairs.anneal}"
        if guide is not None:
            require_guide(guide, teacher)
            student = fit.loss.denoiser
            fit.coupling = FlowGuided(pairs=pairs, student=student, guide=guide.denoiser, leg=leg)
            how += f" {guide.hash} {leg}"
        identity = f"{episodes_hash(episodes)} {teacher.hash} {how}"
        run_fit(fit, folder / CHECKPOINT, identity, title=recipe, progress=progress)
        return dataclasses.replace(
            fit.model(teacher.data_hash),
            errors=teacher.errors,
            gaussian=measure_gaussian(teacher.codec, windows, coupled=True),
            lineage=Lineage(
                recipe=recipe,
                teacher=teacher.hash,
                pairs=len(pairs),
                calls_per_pair=pairs.calls,
                max_calls=calls,
            ),
        )
