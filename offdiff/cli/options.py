"""Options of a command: a dataclass, whose docstring is its help, or a function's arguments."""

import inspect
from collections.abc import Callable
from typing import TypeVar

import tyro

Options = TypeVar("Options")


def parse_options(kind: type[Options], args: list[str], command: str) -> Options:
    """Options of a command; tyro ends the process for bad ones and after --help."""
    options: Options = tyro.cli(
        kind,
        args=args,
        prog=f"offdiff {command}",
        description=inspect.getdoc(kind),  # by itself tyro would leave the examples out
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return options


def call_with_options(
    action: Callable[..., None], args: list[str], command: str, about: str | None = None
) -> int:
    """Calls the function with the options; the exit code. about: instead of its docstring."""
    tyro.cli(
        action,
        args=args,
        prog=f"offdiff {command}",
        description=about,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return 0
