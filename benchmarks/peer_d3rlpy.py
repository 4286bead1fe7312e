"""Train and evaluate one d3rlpy learner on a D4RL-style file: the peer's half of the parity table.

Runs in a virtual environment of its own, because d3rlpy 2.8.1 pins gymnasium 1.0.0:

    python -m venv peer && peer/bin/pip install d3rlpy==2.8.1 "mujoco>=3.3,<3.12" h5py imageio
    peer/bin/python benchmarks/peer_d3rlpy.py --algo iql --data FILE.hdf5 --env Hopper-v4 \
        --seed 0 --updates 50000 --out iql-0.json

Observations are standardised for every learner: without it d3rlpy's IQL fails on these files.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import d3rlpy
import gymnasium
import h5py
import mujoco
import numpy as np
import torch
from d3rlpy.algos import CQLConfig, IQLConfig, TD3PlusBCConfig
from d3rlpy.optimizers import AdamFactory
from d3rlpy.optimizers.lr_schedulers import CosineAnnealingLRFactory
from d3rlpy.preprocessing import StandardObservationScaler

EVAL_SEED = 10_000


def learner(name: str, updates: int) -> d3rlpy.algos.QLearningAlgoBase:
    """The peer's learner with the hyperparameters of results/grids/parity.toml."""
    scaler = StandardObservationScaler()
    if name == "iql":
        return IQLConfig(
            batch_size=256,
            observation_scaler=scaler,
            actor_learning_rate=3e-4,
            critic_learning_rate=3e-4,
            actor_optim_factory=AdamFactory(lr_scheduler_factory=CosineAnnealingLRFactory(updates)),
            expectile=0.7,
            weight_temp=3.0,
            max_weight=100.0,
        ).create(device="cpu")
    if name == "td3bc":
        return TD3PlusBCConfig(
            batch_size=256,
            observation_scaler=scaler,
            actor_learning_rate=3e-4,
            critic_learning_rate=3e-4,
            alpha=2.5,
        ).create(device="cpu")
    return CQLConfig(
        batch_size=256,
        observation_scaler=scaler,
        actor_learning_rate=1e-4,
        critic_learning_rate=3e-4,
        temp_learning_rate=1e-4,
        alpha_learning_rate=0.0,  # the multiplier stays 1: a plain penalty of weight 5
        conservative_weight=5.0,
        n_action_samples=10,
    ).create(device="cpu")


def dataset(path: Path) -> d3rlpy.dataset.MDPDataset:
    with h5py.File(path) as file:
        return d3rlpy.dataset.MDPDataset(
            observations=file["observations"][:],
            actions=file["actions"][:],
            rewards=file["rewards"][:],
            terminals=file["terminals"][:].astype(np.float32),
            timeouts=file["timeouts"][:].astype(np.float32),
        )


def evaluate(algo: d3rlpy.algos.QLearningAlgoBase, env_id: str, episodes: int) -> list[float]:
    env = gymnasium.make(env_id)
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=EVAL_SEED + episode)
        total, over = 0.0, False
        while not over:
            action = algo.predict(obs[None].astype(np.float32))[0]
            obs, reward, terminal, truncated, _ = env.step(action)
            total, over = total + float(reward), terminal or truncated
        returns.append(total)
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algo", choices=("iql", "td3bc", "cql"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.out.exists():
        return
    torch.set_num_threads(1)
    d3rlpy.seed(args.seed)
    algo = learner(args.algo, args.updates)
    start = time.perf_counter()
    algo.fit(
        dataset(args.data),
        n_steps=args.updates,
        n_steps_per_epoch=1000,
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )
    seconds = time.perf_counter() - start
    record = {
        "library": f"d3rlpy {d3rlpy.__version__}",
        "algo": args.algo,
        "data": args.data.name,
        "seed": args.seed,
        "updates": args.updates,
        "config": json.loads(algo.config.serialize()),
        "env": args.env,
        "eval_seed": EVAL_SEED,
        "returns": evaluate(algo, args.env, args.episodes),
        "train_seconds": seconds,
        "versions": {
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
            "mujoco": mujoco.__version__,
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1))
    temporary.replace(args.out)


if __name__ == "__main__":
    main()
