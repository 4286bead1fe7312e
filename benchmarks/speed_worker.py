"""One library's half of `benchmarks/learners.py`: trains when told to, and says how long it took.

Runs in the interpreter of its library, d3rlpy's or offdiff's, on the same made-up transitions, and
takes turns with the other one as `turns.py` describes.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from turns import serve

SHAPES = {"hopper": (11, 3), "halfcheetah": (17, 6)}
TRANSITIONS, EPISODE, BATCH, HIDDEN = 200_000, 500, 256, (256, 256)

Advance = Callable[[int], None]
"""Trains for so many updates."""


def made_up_data(obs_dim: int, action_dim: int) -> dict[str, np.ndarray[Any, Any]]:
    """Speed does not depend on values: normal observations and rewards, uniform actions."""
    random = np.random.default_rng(0)
    return {
        "obs": random.normal(size=(TRANSITIONS, obs_dim)).astype(np.float32),
        "action": random.uniform(-1, 1, (TRANSITIONS, action_dim)).astype(np.float32),
        "reward": random.normal(size=TRANSITIONS).astype(np.float32),
        "truncated": np.arange(TRANSITIONS) % EPISODE == EPISODE - 1,
    }


def peer(shape: str, device: str) -> dict[str, Advance]:
    """d3rlpy's learners, driven as its own `fit` drives them."""
    import d3rlpy
    from d3rlpy.algos import CQLConfig, IQLConfig, TD3PlusBCConfig

    data = made_up_data(*SHAPES[shape])
    dataset = d3rlpy.dataset.MDPDataset(
        observations=data["obs"],
        actions=data["action"],
        rewards=data["reward"],
        terminals=np.zeros(TRANSITIONS, np.float32),
        timeouts=data["truncated"].astype(np.float32),
    )
    compiled = {"compile_graph": True} if device.startswith("cuda") else {}
    configs = {
        "iql": IQLConfig(batch_size=BATCH, **compiled),
        "td3bc": TD3PlusBCConfig(batch_size=BATCH, **compiled),
        "cql": CQLConfig(batch_size=BATCH, alpha_learning_rate=0.0, **compiled),
    }

    def advance(algo: Any) -> Advance:
        algo.build_with_dataset(dataset)

        def updates(count: int) -> None:
            for _ in range(count):
                algo.update(dataset.sample_transition_batch(BATCH))

        return updates

    return {name: advance(config.create(device=device)) for name, config in configs.items()}


def ours(shape: str, device_name: str, seed_counts: list[int]) -> dict[str, Advance]:
    """offdiff's learners, driven as its training loop drives them; also with several seeds."""
    from offdiff.algos.cql import CQLConfig
    from offdiff.algos.iql import IQLConfig
    from offdiff.algos.td3bc import TD3BCConfig
    from offdiff.core.numerics import keep_freed_memory, use_fastest_exact_matmul
    from offdiff.core.protocols import LearnerConfig
    from offdiff.core.seeding import SeedStreams
    from offdiff.core.types import Batch, Spec
    from offdiff.data.buffer import ReplayBuffer
    from offdiff.training import add_metrics

    device = torch.device(device_name)
    keep_freed_memory()
    if device.type == "cpu":
        use_fastest_exact_matmul()
    data = {key: torch.from_numpy(value) for key, value in made_up_data(*SHAPES[shape]).items()}
    replay = ReplayBuffer(TRANSITIONS, Spec(*SHAPES[shape]), device)
    following = {key: data[key].roll(-1, 0) for key in ("obs", "action")}
    replay.extend(
        Batch(
            obs=data["obs"],
            action=data["action"],
            reward=data["reward"],
            next_obs=following["obs"],
            terminal=torch.zeros(TRANSITIONS),
            next_action=following["action"],
        )
    )

    def advance(config: LearnerConfig, seeds: int) -> Advance:
        noise, batches = (
            SeedStreams(range(seeds), name, device) for name in ("learner", "batches")
        )
        learner = config.build(replay.spec, random=noise, updates=1_000_000, device=device)

        def updates(count: int) -> None:
            totals: dict[str, torch.Tensor] = {}
            for _ in range(count):
                batch = replay.sample(BATCH, random=batches)
                add_metrics(totals, learner.update(batch))

        return updates

    configs = {
        "iql": IQLConfig(hidden=HIDDEN),
        "td3bc": TD3BCConfig(hidden=HIDDEN),
        "cql": CQLConfig(hidden=HIDDEN, penalty=5.0),
    }
    return {
        name if seeds == 1 else f"{name}x{seeds}": advance(config, seeds)
        for name, config in configs.items()
        for seeds in seed_counts
    }


def gemm(count: int) -> None:
    """`count` products of 256x256x256, the size that dominates an update."""
    a, b = torch.ones(2, 256, 256)
    for _ in range(count):
        torch.mm(a, b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=("offdiff", "d3rlpy"), required=True)
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cores", type=int, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    os.sched_setaffinity(0, args.cores)
    torch.set_num_threads(len(args.cores))

    def prepare() -> tuple[dict[str, Advance], dict[str, Any]]:
        if args.library == "offdiff":
            tasks = ours(args.shape, args.device, args.seeds)
        else:
            tasks = peer(args.shape, args.device)
        if args.device.startswith("cuda"):
            tasks = {name: synchronised(task) for name, task in tasks.items()}
        return {**tasks, "gemm": gemm}, {"torch": torch.__version__}

    serve(prepare)


def synchronised(task: Advance) -> Advance:
    """The task until the GPU is done with it."""

    def wait(count: int) -> None:
        task(count)
        torch.cuda.synchronize()

    return wait


if __name__ == "__main__":
    main()
