"""Observation statistics of a saved stable-baselines3 `VecNormalize`, read without unpickling it.

Agents trained behind a VecNormalize act nonsense without it, and its file is a pickle. Here only
numbers are taken from it: every class but numpy's arrays is replaced by an inert stand-in, so no
code of the file runs, and files made with the old `gym` open, too.
Dimension letters: B batch, O observation, A action.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.protocols import Policy

NUMPY_ONLY = re.compile(
    r"numpy\.(ndarray|dtype)"
    r"|numpy\._?core\.multiarray\.(_reconstruct|scalar)"
    r"|numpy\._?core\.numeric\._frombuffer"
)
"""What a pickled array of numbers is made of."""


@dataclass(frozen=True, kw_only=True)
class ObsNormalizer:
    """As VecNormalize does it: (obs - mean) / sqrt(variance + epsilon), clipped."""

    mean: Tensor
    """(O,)"""
    variance: Tensor
    """(O,)"""
    epsilon: float
    clip: float

    def __call__(self, obs: Tensor) -> Tensor:
        """(B, O) in the environment's units -> (B, O) as the agent was trained on."""
        scaled = (obs.double() - self.mean) / (self.variance + self.epsilon).sqrt()
        return scaled.clamp(-self.clip, self.clip).to(obs.dtype)


class NormalizedPolicy:
    """A `Policy` for normalised observations, as one for the environment's own."""

    def __init__(self, policy: Policy, normalizer: ObsNormalizer) -> None:
        self._policy = policy
        self._normalizer = normalizer

    def act(self, obs: Tensor, /) -> Tensor:
        """(B, O) in the environment's units -> (B, A) in [-1, 1]."""
        return self._policy.act(self._normalizer(obs))

    def reset(self, which: Tensor, /) -> None:
        """Passes the new episodes on."""
        self._policy.reset(which)


def read_normalizer(path: Path, obs_dim: int) -> ObsNormalizer:
    """The statistics that `VecNormalize.save` wrote to `path`, for observations of `obs_dim`.

    Raises InputError for other files, other sizes, and statistics of dict observations.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give what VecNormalize.save wrote")
    try:
        with path.open("rb") as file:
            stored = _NumbersOnly(file).load()
        mean, variance = (
            np.asarray(a, np.float64) for a in (stored.obs_rms.mean, stored.obs_rms.var)
        )
        epsilon, clip = float(stored.epsilon), float(stored.clip_obs)
    # A damaged or foreign pickle can fail in any of these ways; nothing of it was executed.
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, AttributeError,
            KeyError, IndexError, MemoryError, RecursionError) as error:  # fmt: skip
        raise InputError(
            f"{path} holds no observation statistics of one vector ({type(error).__name__}); give "
            "what VecNormalize.save wrote"
        ) from error
    if mean.shape != (obs_dim,) or variance.shape != (obs_dim,):
        raise InputError(
            f"{path} holds statistics of shape {mean.shape}, observations have {obs_dim} numbers; "
            "give those the agent was trained with"
        )
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance >= 0).all()):
        raise InputError(f"{path}: its statistics are not finite; the file is damaged")
    return ObsNormalizer(
        mean=torch.from_numpy(mean),
        variance=torch.from_numpy(variance),
        epsilon=epsilon,
        clip=clip,
    )


class _Inert:
    """Stands for any object of the pickle: keeps its attributes, does nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _NumbersOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if NUMPY_ONLY.fullmatch(f"{module}.{name}"):
            return super().find_class(module, name)
        return _Inert
