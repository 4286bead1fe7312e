"""A command's options from a dataclass, whose docstring is its help."""

import inspect
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
