"""Does fitted Q evaluation rank real policies as the simulator does?

Evaluates every stored agent of an environment, and an idle policy, twice: by FQE on a dataset and
by discounted Monte-Carlo returns in the simulator. Writes one JSON record with both columns and
their rank correlation:

    python benchmarks/fqe_rank.py --data hopper-mixed-zoo.hdf5 --agents agents --env Hopper-v4 \
        --out results/fqe/hopper-mixed-zoo.json

An agent file `<algorithm>_<Environment>.npz` holds plain arrays: layers W0, b0, W1, ... (out, in),
`activation`, `output` ("tanh" or "clip"), and optionally an observation normaliser.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.files import sha256, write_text
from offdiff.core.numerics import use_fastest_exact_matmul
from offdiff.core.protocols import Policy
from offdiff.core.seeding import derive_seed
from offdiff.data.episodes import Episodes
from offdiff.data.load import load_dataset
from offdiff.environments import make_simulator
from offdiff.evaluate import simulator_version
from offdiff.ope import FQEConfig, fitted_q_evaluation


class Agent:
    """A published policy, read from plain arrays; acts with its mean."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays = {
                name: torch.from_numpy(np.asarray(arrays[name], np.float32))
                for name in arrays.files
                if arrays[name].dtype.kind == "f"
            }
            self.activation = str(arrays["activation"])
            self.output = str(arrays["output"])
            self.layers = int(arrays["n_layers"])
            if bool(arrays["time_feature"]) or int(arrays["obs_pad"]):
                raise InputError(f"{path} expects more inputs than the observation; leave it out")

    def act(self, obs: Tensor, /) -> Tensor:
        """(B, O) -> (B, A) in [-1, 1]."""
        x = obs
        if "obs_mean" in self.arrays:
            scale = (self.arrays["obs_var"] + self.arrays["obs_eps"]).sqrt()
            limit = float(self.arrays["obs_clip"])
            x = ((x - self.arrays["obs_mean"]) / scale).clamp(-limit, limit)
        for i in range(self.layers):
            x = torch.nn.functional.linear(x, self.arrays[f"W{i}"], self.arrays.get(f"b{i}"))
            if i < self.layers - 1:
                x = torch.tanh(x) if self.activation == "tanh" else torch.relu(x)
        return torch.tanh(x) if self.output == "tanh" else x.clamp(-1, 1)

    def reset(self, which: Tensor, /) -> None:
        """Nothing to forget."""


class Idle:
    """Zero torque: the floor of the ranking."""

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def act(self, obs: Tensor, /) -> Tensor:
        """(B, O) -> (B, A), zeros."""
        return torch.zeros(len(obs), self.action_dim)

    def reset(self, which: Tensor, /) -> None:
        """Nothing to forget."""


def monte_carlo(
    policy: Policy, env_id: str, discounts: list[float], episodes: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Discounted returns (discounts, episodes) and undiscounted returns (episodes,)."""
    powers = np.ones((len(discounts), episodes))
    total, plain = np.zeros((len(discounts), episodes)), np.zeros(episodes)
    with make_simulator(env_id) as simulator:
        for k in range(episodes):
            obs, ended = simulator.reset(derive_seed(seed, f"episode {k}") % 2**31), False
            while not ended:
                step = simulator.step(policy.act(torch.from_numpy(obs[None]))[0].numpy())
                total[:, k] += powers[:, k] * step.reward
                powers[:, k] *= discounts
                plain[k] += step.reward
                obs, ended = step.obs, step.ended
    return total, plain


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, for values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def joined(parts: list[Episodes]) -> Episodes:
    """All episodes one after another."""
    names = [field.name for field in fields(Episodes)]
    return Episodes(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="HDF5 files, joined")
    parser.add_argument("--agents", type=Path, required=True, help="folder of .npz agents")
    parser.add_argument("--env", required=True, help="e.g. Hopper-v4")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--discounts", type=float, nargs="+", default=[0.99])
    parser.add_argument("--updates", type=int, default=FQEConfig.updates)
    parser.add_argument(
        "--layer-norm", action=argparse.BooleanOptionalAction, default=FQEConfig.layer_norm
    )
    parser.add_argument("--target-rate", type=float, default=FQEConfig.target_rate)
    parser.add_argument("--episodes", type=int, default=20, help="Monte-Carlo episodes per policy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    matmul = use_fastest_exact_matmul()
    data = joined([load_dataset(str(path)).episodes for path in args.data])
    family = args.env.split("-")[0]
    policies: dict[str, Policy] = {
        path.stem: Agent(path) for path in sorted(args.agents.glob(f"*_{family}.npz"))
    }
    if not policies:
        raise SystemExit(f"no *_{family}.npz in {args.agents}")
    policies["idle"] = Idle(data.spec.action_dim)

    started = time.perf_counter()
    truth = {
        name: monte_carlo(policy, args.env, args.discounts, args.episodes, args.seed)
        for name, policy in policies.items()
    }
    simulated = time.perf_counter() - started
    comparisons = []
    for i, discount in enumerate(args.discounts):
        config = FQEConfig(
            discount=discount,
            updates=args.updates,
            target_rate=args.target_rate,
            layer_norm=args.layer_norm,
        )
        started = time.perf_counter()
        estimates = fitted_q_evaluation(policies, data, config, seed=args.seed)
        seconds = time.perf_counter() - started
        table = [
            {
                "policy": name,
                "return": float(truth[name][1].mean()),
                "monte_carlo": float(truth[name][0][i].mean()),
                "monte_carlo_sem": float(truth[name][0][i].std(ddof=1) / args.episodes**0.5),
                **asdict(estimate),
            }
            for name, estimate in estimates.items()
        ]
        table.sort(key=lambda row: -row["monte_carlo"])
        columns = [[row[key] for row in table] for key in ("value", "monte_carlo")]
        correlation = rank_correlation(*columns)
        best = max(table, key=lambda row: row["value"])
        comparisons.append(
            {
                "config": asdict(config),
                "rank_correlation": correlation,
                "regret_at_1": table[0]["monte_carlo"] - best["monte_carlo"],
                "fqe_seconds": round(seconds, 1),
                "table": table,
            }
        )
        print(f"discount {discount}: rank correlation {correlation:.3f} ({seconds:.0f} s)")
        for row in table:
            print(
                f"  {row['policy']:<20} MC {row['monte_carlo']:9.1f}  FQE {row['value']:9.1f}"
                f" [{row['low']:.1f}, {row['high']:.1f}]  far {row['far_actions']:.2f}"
            )
    record = {
        "what": "FQE against discounted Monte-Carlo returns of the same policies",
        "data": [{"file": path.name, "sha256": sha256(path)} for path in args.data],
        "transitions": len(data),
        "env_id": args.env,
        "simulator_version": simulator_version(),
        "monte_carlo_episodes": args.episodes,
        "monte_carlo_seconds": round(simulated, 1),
        "seed": args.seed,
        "system": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "matmul": matmul,
            "cores": os.cpu_count(),
        },
        "comparisons": comparisons,
    }
    write_text(args.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
