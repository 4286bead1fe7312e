"""Offline reinforcement learning and planning with diffusion world models.

The names below are the public ones. Each is loaded when it is first used, so that `import offdiff`
alone costs next to nothing: it does not even import torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offdiff.checkpoint import load_planner, load_policy
    from offdiff.config import RunConfig
    from offdiff.core.errors import InputError
    from offdiff.data.buffer import ReplayBuffer
    from offdiff.data.episodes import Episodes
    from offdiff.data.load import load_dataset
    from offdiff.evaluate import evaluate
    from offdiff.policy import DeployedPolicy
    from offdiff.run import run

    __version__: str

__all__ = [
    "DeployedPolicy",
    "Episodes",
    "InputError",
    "ReplayBuffer",
    "RunConfig",
    "__version__",
    "evaluate",
    "load_dataset",
    "load_planner",
    "load_policy",
    "run",
]

_HOMES = {
    "DeployedPolicy": "offdiff.policy",
    "Episodes": "offdiff.data.episodes",
    "InputError": "offdiff.core.errors",
    "ReplayBuffer": "offdiff.data.buffer",
    "RunConfig": "offdiff.config",
    "evaluate": "offdiff.evaluate",
    "load_dataset": "offdiff.data.load",
    "load_planner": "offdiff.checkpoint",
    "load_policy": "offdiff.checkpoint",
    "run": "offdiff.run",
}
"""Public name -> the module that defines it."""


class _Package(ModuleType):
    """Keeps `offdiff.run` and `offdiff.evaluate` functions, though modules have the same names.

    Importing a submodule binds it to its package; here that would hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


def __getattr__(name: str) -> object:
    """Loads a public name at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("offdiff")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'offdiff' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
