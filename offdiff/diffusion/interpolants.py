"""Two-sided stochastic interpolants: bridges between samples of two laws (arXiv 2303.08797).

x_t = a(t) x0 + b(t) source + g(t) z, with z standard normal: from x0 (t = 0) to a source (t = 1)
that need not be noise. It may be the plan of a moment ago, or a window of another behaviour. The
score of such a process does not follow from its velocity, so two fields are learned:

    v = E[a' x0 + b' source | x],   eta = E[z | x],   bvel = v + g' eta,   score = -eta / g.

g' has no bound near the ends, but g g' has, and eta vanishes there like g: the velocity is put
together as v + (g g') (eta / g). Dimension letters: B samples; the rest of a sample's shape is any.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.diffusion.flow_solvers import Noisiness
from offdiff.diffusion.paths import Path, RectifiedFlow

Fields = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""(x (B, ...), t in (0, 1)) -> (v, eta), each shaped as x."""

EDGE = 1e-3
"""Fields are asked no nearer to an end: there eta is all but 0 and what it is divided by too."""


@dataclass(frozen=True, kw_only=True)
class Interpolant:
    """A path from data to source, and the bump g^2 = bump t (1 - t) of the noise on the way.

    Raises ValueError for a negative bump, and for a path that does not end in its source alone.
    """

    path: Path = field(default_factory=RectifiedFlow)
    """a and b; its noise is the source here."""
    bump: float = 1.0
    """c >= 0; 0 has no noise, and so no score and no other sampler than the ODE."""

    def __post_init__(self) -> None:
        if not 0 <= self.bump < float("inf"):
            raise ValueError(f"bump must be 0 or above, got {self.bump}")
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        a, b = self.path.a(ends), self.path.b(ends)
        if not (torch.allclose(a, 1 - ends, atol=1e-9) and torch.allclose(b, ends, atol=1e-9)):
            raise ValueError(
                f"{self.path} does not go from a = 1, b = 0 to a = 0, b = 1; take RectifiedFlow() "
                "or Cosine()"
            )

    def g(self, t: Tensor) -> Tensor:
        """sqrt(bump t (1 - t))."""
        return (self.bump * t * (1 - t)).sqrt()

    def g_g_dot(self, t: Tensor) -> Tensor:
        """g g' = bump (1 - 2 t) / 2."""
        return self.bump * (1 - 2 * t) / 2

    def point(self, clean: Tensor, source: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t; clean, source and noise (B, ...), t broadcasts over them. InputError on shapes."""
        _check_alike(clean, source, noise)
        return self.path.a(t) * clean + self.path.b(t) * source + self.g(t) * noise

    def losses(
        self,
        predicted: tuple[Tensor, Tensor],
        clean: Tensor,
        source: Tensor,
        noise: Tensor,
        t: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mean squared errors of v and of eta, 0-d; the fields make them least.

        predicted: (v, eta) at `point`. The variance of g' z has no finite mean over t; that of
        these targets has, and `Bridge.drift` makes the whole velocity of them.
        Raises InputError for different shapes.
        """
        _check_alike(clean, source, noise, *predicted)
        velocity, eta = predicted
        target = self.path.a_dot(t) * clean + self.path.b_dot(t) * source
        return (velocity - target).square().mean(), (eta - noise).square().mean()


@dataclass(frozen=True)
class Bridge:
    """Fields, learned or exact, seen from their interpolant."""

    fields: Fields
    interpolant: Interpolant

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """Expected x' = a' x0 + b' source + g' z."""
        return self.drift(x, t, 0.0)

    def score(self, x: Tensor, t: float) -> Tensor:
        """Gradient of the log-density of x_t: -eta / g. InputError without a bump."""
        t = _inside(t)
        _, eta = self.fields(x, t)
        return -eta / self._g(t)

    def drift(self, x: Tensor, t: float, e: float) -> Tensor:
        """bvel + e score, of one call; e < 0 for the way back. InputError for e without a bump."""
        t = _inside(t)
        velocity, eta = self.fields(x, t)
        if self.interpolant.bump == 0 and e == 0:
            return velocity
        g_g_dot = float(self.interpolant.g_g_dot(torch.tensor(t, dtype=torch.float64)))
        return velocity + (g_g_dot - e) / self._g(t) * eta

    def _g(self, t: float) -> float:
        if self.interpolant.bump == 0:
            raise InputError(
                "an interpolant without noise has no score; give it a bump above 0, or sample with "
                "e = 0"
            )
        return float(self.interpolant.g(torch.tensor(t, dtype=torch.float64)))


def quiet(t: float, /) -> float:
    """e = 0: the ODE."""
    return 0.0


def cross(
    bridge: Bridge,
    x: Tensor,
    times: Tensor,
    noisiness: Noisiness = quiet,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Takes x (B, ...) at times[0] to times[-1]: to the data if times fall, to the source if not.

    Forwards dx = [bvel + e score] dt + sqrt(2 e) dW, backwards dx = [-bvel + e score] d(-t) +
    sqrt(2 e) dW: the same marginals for every e(t) >= 0, which is chosen after training. Where
    e > 0 a step is Euler's and Maruyama's (one call), where e = 0 Heun's (two). A step that ends at
    0 or 1 is Euler's without noise (one), so nothing is divided by g = 0.
    times: (n + 1,) in [0, 1], rising or falling. generator: on x's device; needed where e > 0.
    Raises InputError for other times, a negative e, and noise without generator or bump.
    """
    _check_times(times)
    for now, following in pairwise(times.tolist()):
        step, at_end = following - now, following in (0.0, 1.0)
        e = 0.0 if at_end else _checked(noisiness(now), now, generator)
        slope = bridge.drift(x, now, e if step > 0 else -e)
        if e > 0:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + step * slope + (2 * e * abs(step)) ** 0.5 * noise
        elif at_end:
            x = x + step * slope
        else:
            x = x + step * (slope + bridge.velocity(x + step * slope, following)) / 2
    return x


def _inside(t: float) -> float:
    return min(max(t, EDGE), 1 - EDGE)


def _checked(e: float, t: float, generator: torch.Generator | None) -> float:
    if not 0 <= e < float("inf"):
        raise InputError(f"e({t:g}) must be 0 or above, got {e}")
    if e > 0 and generator is None:
        raise InputError(f"e({t:g}) = {e:g} draws noise; give a generator")
    return e


def _check_times(times: Tensor) -> None:
    steps = times.diff() if times.ndim == 1 else times.new_zeros(1)
    monotone = bool((steps > 0).all()) or bool((steps < 0).all())
    if len(steps) == 0 or not monotone or times.min() < 0 or times.max() > 1:
        raise InputError("times must be two or more in [0, 1], all rising or all falling")


def _check_alike(*samples: Tensor) -> None:
    shapes = {tuple(each.shape) for each in samples}
    if len(shapes) > 1:
        raise InputError(
            f"both ends, noise and predictions must have one shape, got {sorted(shapes)}"
        )
