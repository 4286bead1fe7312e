"""Solvers by name, what they cost, and which one a model wants."""

from typing import Literal

from torch import Tensor

from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.flow_solvers import OnPath, solve_midpoint
from offdiff.diffusion.multistep import sample_unipc
from offdiff.diffusion.paths import RectifiedFlow
from offdiff.diffusion.sampling import sample_dpmpp_2m, sample_euler, sample_heun
from offdiff.diffusion.skips import Sample, with_skips
from offdiff.diffusion.world_model import WorldModel

Solver = Literal["auto", "heun", "euler", "dpmpp", "unipc", "midpoint"]


def sample_midpoint(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """RF-Solver on the rectified-flow path, from and to EDM's coordinates; two calls per level."""
    path = RectifiedFlow()
    times = path.time(sigmas)
    return solve_midpoint(OnPath(denoise, path), float(path.a(times[0])) * x, times)


SAMPLERS: dict[str, Sample] = {
    "heun": sample_heun,
    "euler": sample_euler,
    "dpmpp": sample_dpmpp_2m,
    "unipc": sample_unipc,
    "midpoint": sample_midpoint,
}
TWICE = ("heun", "midpoint")
"""Two calls per level, one for the last."""


def chosen(solver: Solver, model: WorldModel, levels: int) -> str:
    """The solver that `auto` stands for.

    UniPC in few steps from a Gaussian start; Euler for a student, whose flow is nearly straight,
    and on levels that were searched with it; else Heun, as EDM does.
    """
    if solver != "auto":
        return solver
    if model.gaussian is not None and model.starts_low(levels):
        return "unipc"
    return "euler" if model.lineage.teacher or levels in model.grids else "heun"


def sampler(solver: str, model: WorldModel, levels: int) -> Sample:
    """The solver of that name; it skips the blocks that a search found for so many levels.

    For the model's own denoiser, guided or not. Solvers of two calls per level, with which no
    search was made, run the whole network.
    """
    sample, skips = SAMPLERS[solver], model.skips.get(levels)
    if not skips or solver in TWICE:
        return sample
    return with_skips(sample, model.denoiser.network, skips)


def calls_of(solver: str, levels: int) -> int:
    """Network calls of a sample."""
    return 2 * levels - 1 if solver in TWICE else levels


def levels_of(solver: str, calls: int) -> int:
    """The most levels for which a solver makes at most so many calls."""
    return (calls + 1) // 2 if solver in TWICE else calls
