"""`offdiff data collect`: record a dataset from a stable-baselines3 agent, given or trained."""

import sys

import tyro

INTRODUCTION = """Record a dataset in a simulator, by D4RL's recipe.

Examples:
  offdiff data collect --env Hopper-v4 --recipe random --steps 100000 --to random.hdf5
  offdiff data collect --env Hopper-v4 --recipe medium --agent sac.zip --to medium.hdf5
  offdiff data collect --env HalfCheetah-v4 --recipe expert --agent ppo.zip \\
      --normalizer vecnormalize.pkl --to expert.hdf5       an agent trained behind VecNormalize
  offdiff data collect --env Hopper-v4 --recipe medium --train sac --to me/hopper/medium-v0
  offdiff data collect --env Hopper-v4 --recipe medium-replay --train sac --to replay.hdf5
  offdiff data collect ... --resume                        continue after a stop, to the same data

Then: offdiff run --algo iql --dataset medium.hdf5
"""


def main(command: str, args: list[str]) -> int:
    """Parses, records, prints where the dataset is; the exit code."""
    from offdiff.data.collect import CollectConfig, collect

    config = tyro.cli(
        CollectConfig,
        args=args,
        prog=f"offdiff {command}",
        description=INTRODUCTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from offdiff.environments import make_simulator

    path = collect(config, lambda: make_simulator(config.env).env, show=sys.stderr.isatty())
    print(path)
    return 0
