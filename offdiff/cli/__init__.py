"""The command line: parse, call, print. No logic lives here."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from offdiff.core.errors import InputError, unknown_name

COMMANDS = {
    "run": ("offdiff.cli.run", "train learners on a dataset and evaluate them"),
    "eval": ("offdiff.cli.eval", "evaluate a finished run again: more episodes, video, FQE"),
    "augment": ("offdiff.cli.augment", "write synthetic experience as a dataset"),
    "model train": ("offdiff.cli.model", "train a world model and keep it for later runs"),
    "model quantize": ("offdiff.cli.quantize", "make a world model's linear layers int8"),
    "model info": ("offdiff.cli.model", "describe a world model, or list those in the cache"),
    "model reflow": ("offdiff.cli.model_students", "train a student that needs few network calls"),
    "model distill": ("offdiff.cli.model_students", "train a student that needs one network call"),
    "model search-steps": ("offdiff.cli.model_steps", "search noise levels for few steps"),
    "model compare": ("offdiff.cli.model_steps", "quality of models against network calls"),
    "model sample": ("offdiff.cli.augment", "write windows of a world model as a dataset"),
    "plan": ("offdiff.cli.plan", "watch a planner plan: pictures, film, how far off it was"),
    "table": ("offdiff.cli.table", "write benchmark tables from run records"),
    "report": ("offdiff.cli.report", "write one HTML page of run records"),
    "bench": ("offdiff.cli.bench", "run a grid: datasets x methods x seeds; killed, it goes on"),
    "bench status": ("offdiff.cli.bench", "say what of a grid is finished, begun, failed, missing"),
    "bench planners": ("offdiff.cli.bench_planners", "time planners against one another"),
    "search": ("offdiff.cli.search", "search hyperparameters on tuning seeds, report on others"),
    "export": ("offdiff.cli.export", "write a run's policy as ONNX or TorchScript, checked"),
    "data list": ("offdiff.cli.data", "list known datasets"),
    "data info": ("offdiff.cli.data", "describe and check one dataset"),
    "data convert": ("offdiff.cli.data", "convert between D4RL HDF5 and Minari"),
    "data collect": ("offdiff.cli.collect", "record a dataset from a stable-baselines3 agent"),
    "data generate": ("offdiff.cli.generate", "make a Maze2D dataset with a waypoint controller"),
}
"""Command -> (module, summary). A module's `main(command, args)` is imported when it is used."""

GROUPS = {name.partition(" ")[0] for name in COMMANDS if " " in name}
"""First words of the commands that have two."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `offdiff`; the exit code is 2 for bad input."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except InputError as error:
        print(f"offdiff: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has enough; Python must not complain again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("offdiff: interrupted", file=sys.stderr)
        return 130


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"offdiff {version('offdiff')}")
        return 0
    words = 2 if " ".join(args[:2]) in COMMANDS or args[0] not in COMMANDS else 1
    words = words if args[0] in GROUPS else 1
    if args[0] in GROUPS - set(COMMANDS) and (len(args) == 1 or args[1] in ("-h", "--help")):
        print(_help(f"{args[0]} "))
        return 0
    command = " ".join(args[:words])
    if command not in COMMANDS:
        raise unknown_name("command", command, COMMANDS, "(see offdiff --help)")
    module = importlib.import_module(COMMANDS[command][0])
    run: Callable[[str, list[str]], int] = module.main
    return run(command, args[words:])


def _help(prefix: str = "") -> str:
    lines = [f"usage: offdiff {prefix}COMMAND ...", "", "commands:"]
    lines += [
        f"  {name:<15} {about}" for name, (_, about) in COMMANDS.items() if name.startswith(prefix)
    ]
    lines += ["", "offdiff COMMAND --help explains one. Start with: offdiff run --algo iql"]
    return "\n".join(lines)
