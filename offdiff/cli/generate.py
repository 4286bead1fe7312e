"""`offdiff data generate`: make a Maze2D dataset with a waypoint controller."""

import sys

import tyro

INTRODUCTION = """Make a Maze2D dataset by D4RL's recipe, in Gymnasium-Robotics' PointMaze.

A ball follows shortest paths to goals drawn at random, with noise on its actions.

Examples:
  offdiff data generate --maze umaze --to umaze.hdf5
  offdiff data generate --maze large --dense --steps 1000000 --to me/pointmaze/large-dense-v0
  offdiff data generate --maze large --to large.hdf5 --resume    continue after a stop

Then: offdiff run --algo iql --dataset umaze.hdf5
"""


def main(command: str, args: list[str]) -> int:
    """Parses, generates, prints where the dataset is; the exit code."""
    from offdiff.data.generate import MazeConfig, generate

    config = tyro.cli(
        MazeConfig,
        args=args,
        prog=f"offdiff {command}",
        description=INTRODUCTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    print(generate(config, show=sys.stderr.isatty()))
    return 0
