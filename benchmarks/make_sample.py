"""Cuts the bundled sample out of a larger file: python benchmarks/make_sample.py SOURCE.

The sample in `data/hopper_sample.hdf5` was cut with the defaults from `hopper-mixed-zoo.hdf5`:
Hopper-v4 acted by agents of DLR-RM/rl-trained-agents (MIT), whole episodes, drawn at random.
"""

import argparse
from pathlib import Path

import numpy as np

from offdiff.data.hdf5 import read_hdf5, write_hdf5

TARGET = Path(__file__).parents[1] / "data" / "hopper_sample.hdf5"


def make_sample(source: Path, target: Path, *, steps: int, seed: int) -> None:
    """Writes random whole episodes of `source`, in random order, up to `steps` rows."""
    recording = read_hdf5(source)
    order = np.random.default_rng(seed).permutation(recording.episodes.n_episodes)
    total = np.cumsum(recording.episodes.lengths[order])
    chosen = recording.episodes.select(order[total <= steps])
    write_hdf5(
        target,
        chosen,
        {
            "env_id": recording.attributes["env_id"],
            "behaviour": "10 % random, 20 % A2C, 20 % SAC, 25 % PPO, 25 % TQC agents, shuffled",
            "origin": "agents of https://github.com/DLR-RM/rl-trained-agents acting in Hopper-v4",
            "licence": "MIT (agents)",
            "cut": f"whole episodes of {source.stem}, drawn with seed {seed}, up to {steps} steps",
        },
    )
    returns = chosen.returns
    print(
        f"{target}: {len(chosen)} steps, {chosen.n_episodes} episodes, "
        f"{target.stat().st_size / 1e6:.2f} MB, return {returns.mean():.0f} ± {returns.std():.0f}, "
        f"best {returns.max():.0f}"
    )


def main() -> None:
    """Parses arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_sample(args.source, args.target, steps=args.steps, seed=args.seed)


if __name__ == "__main__":
    main()
