"""Steering and editing with trained world models: gradients skipped or full; there and back again.

    python benchmarks/steering.py --dataset D --models M --agents A    results/steering/D.json
    python benchmarks/steering.py --table                              results/tables/steering.md

Models and policies are those of benchmarks/few_steps.py. Steering: windows towards a policy, by its
likelihood; costs are of one thread, graphs the bytes that autograd keeps during a step. Inversion:
real windows to their noise and back (RF-Solver is the midpoint rule), and back again under the
policy's guidance, which edits them.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from few_steps import models_of
from synthetic import AGENTS, Agent
from torch import Tensor

from offdiff.core.files import replacing, write_text
from offdiff.data.load import load_dataset
from offdiff.data.windows import episodes_hash
from offdiff.diagnostics import Inspector
from offdiff.diffusion.couplings import Independent
from offdiff.diffusion.fit import split
from offdiff.diffusion.flow_solvers import HIGH, LOW, OnPath, restore, solve_euler, solve_midpoint
from offdiff.diffusion.guidance import PolicyGuidance, guided, guided_jointly
from offdiff.diffusion.paths import RectifiedFlow
from offdiff.diffusion.sampling import sample_euler
from offdiff.diffusion.steering import Steer, policy_cost, sample_steered
from offdiff.diffusion.world_model import WorldModel
from offdiff.distances import energy_distance
from offdiff.markdown import markdown_table
from offdiff.results import code_version, system

RESULTS = Path(__file__).parents[1] / "results"
KINDS = ("edm", "reflow")
STEPS = (4, 16)
RATES = (0.01, 0.03)
WINDOWS = 256
CPU = torch.device("cpu")
Sampler = Callable[[Tensor], Tensor]


def methods(model: WorldModel, policy: Agent, steps: int) -> dict[str, Sampler]:
    """Name -> standard normal numbers to clean windows, all with `steps` steps of Euler's rule."""
    times = torch.linspace(HIGH, 0, steps + 1, dtype=torch.float64)
    path = RectifiedFlow()
    sigmas = path.b(times) / path.a(times)
    calibrated = PolicyGuidance(codec=model.codec, policy=policy, variance=model.errors)
    cost = policy_cost(model.codec, policy)

    def by_guidance(move: Any) -> Sampler:
        return lambda noise: sample_euler(
            move(model.denoiser, calibrated), float(sigmas[0]) * noise, sigmas
        )

    def by_flowchef(rate: float, **options: Any) -> Sampler:
        steer = Steer(cost=cost, rate=rate, **options)
        return lambda noise: sample_steered(model.denoiser, noise, times, steer)

    found: dict[str, Sampler] = {
        "none": lambda noise: sample_euler(model.denoiser, float(sigmas[0]) * noise, sigmas),
        "calibrated": by_guidance(guided),
        "calibrated, joint (full gradient)": by_guidance(guided_jointly),
    }
    for rate in RATES:
        found[f"FlowChef, rate {rate:g}"] = by_flowchef(rate)
        found[f"FlowChef, rate {rate:g}, full gradient"] = by_flowchef(rate, gradient="full")
    return found


def steered(model: WorldModel, policy: Agent, inspector: Inspector, steps: int) -> list[Any]:
    """A row per method."""
    rows = []
    noise = model.noise(WINDOWS, 1.0, generator=torch.Generator().manual_seed(0))
    for name, sample in methods(model, policy, steps).items():
        kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        begun = time.perf_counter()
        with torch.no_grad():
            made = sample(noise)
        seconds = time.perf_counter() - begun
        with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            sample(noise)
        windows = model.codec.decode(made)
        found = inspector.inspect(windows, policy)
        assert found.policy is not None
        rows.append({
            "method": name, "steps": steps, "seconds": seconds,
            "graph_mb_per_step": kept / steps / 1e6,
            "log_likelihood": found.policy.log_likelihood,
            "residual_std": found.policy.residual_std,
            "dynamics": found.dynamics.mean if found.dynamics else None,
        })  # fmt: skip
    return rows


@torch.no_grad()
def there_and_back(
    model: WorldModel, clean: Tensor, policy: Agent, inspector: Inspector
) -> dict[str, Any]:
    """Round trips of real windows, and what the policy's guidance makes of them on the way back."""
    columns = model.denoiser.continuous
    least = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    rounds = []
    for name, solve in (("euler", solve_euler), ("midpoint", solve_midpoint)):
        for steps in (5, 10, 20, 40):
            times = torch.linspace(LOW, HIGH, steps + 1, dtype=torch.float64)
            path = OnPath(model.denoiser, RectifiedFlow())
            # As of level LOW: where the data do not vary the noise has to come from there.
            noise = solve(path, (1 - LOW) * clean + LOW * least, times)
            back = solve(path, noise, times.flip(0))
            rounds.append({
                "rule": name, "steps": steps,
                "rms": float((back - clean)[..., columns].square().mean().sqrt()),
                "noise_variance": float(noise[:, :-1, columns].var()),
            })  # fmt: skip
    calibrated = PolicyGuidance(codec=model.codec, policy=policy, variance=model.errors)
    denoise = guided(model.denoiser, calibrated)
    edited = restore(denoise, noise, steps=20)
    fresh = restore(denoise, torch.randn_like(noise), steps=20)
    scores = {}
    for name, rows in (("recorded", clean), ("edited", edited), ("new", fresh)):
        found = inspector.inspect(model.codec.decode(rows), policy)
        assert found.policy is not None
        scores[name] = {
            "log_likelihood": found.policy.log_likelihood,
            "dynamics": found.dynamics.mean if found.dynamics else None,
            "distance": float((rows - clean)[..., columns].square().mean().sqrt()),
            "energy": energy_distance(rows, clean) if name != "recorded" else 0.0,
        }
    example = model.codec.decode(torch.stack((clean[0], edited[0], fresh[0])))
    shown = {"obs": example.obs.tolist(), "action": example.action.tolist()}
    return {"rounds": rounds, "edit": scores, "example": shown}


def measure(name: str, folder: Path, agents: Path) -> dict[str, Any]:
    """One dataset's record."""
    torch.set_num_threads(1)
    loaded = load_dataset(name)
    models = models_of(folder, loaded.info.name, episodes_hash(loaded.episodes))
    inspector = Inspector(loaded.info, loaded.episodes, samples=WINDOWS)
    task = str(loaded.info.env_id).partition("-")[0]
    policy = Agent(agents / f"{AGENTS[-1]}_{task}.npz")
    rows: dict[str, Any] = {}
    for kind in KINDS:
        model = models[kind]
        _, held = split(loaded.episodes, model.config, CPU)
        data = Independent(held, model.codec)
        clean = data.draw(WINDOWS, 0.0, generator=torch.Generator().manual_seed(1)).clean
        rows[kind] = {
            "hash": model.hash,
            "steered": [row for n in STEPS for row in steered(model, policy, inspector, n)],
            "inverted": there_and_back(model, clean, policy, inspector),
        }
    return {
        "dataset": loaded.info.name,
        "policy": AGENTS[-1],
        "windows": WINDOWS,
        "code": code_version("python benchmarks/steering.py"),
        "system": system(CPU, "default"),
        "models": rows,
    }


def page(records: list[dict[str, Any]]) -> str:
    """All records as Markdown."""
    lines = ["# Steering and editing", "", *(__doc__ or "").split("\n\n")[-1].splitlines(), ""]
    for record in records:
        for kind, found in record["models"].items():
            lines += [f"## {record['dataset']}, {kind}, policy {record['policy']}", ""]
            lines += [markdown_table([
                ["method", "steps", "log-likelihood", "residual std", "dynamics error", "seconds",
                 "graph, MB per step"],
                *([r["method"], str(r["steps"]), f"{r['log_likelihood']:.2f}",
                   f"{r['residual_std']:.2f}", _number(r["dynamics"]), f"{r['seconds']:.2f}",
                   f"{r['graph_mb_per_step']:.1f}"] for r in found["steered"]),
            ]), ""]  # fmt: skip
            inverted = found["inverted"]
            lines += [markdown_table([
                ["there and back", "steps each way", "RMS", "variance of the noise"],
                *([r["rule"], str(r["steps"]), _number(r["rms"]), f"{r['noise_variance']:.3f}"]
                  for r in inverted["rounds"]),
            ]), ""]  # fmt: skip
            lines += [markdown_table([
                ["windows", "log-likelihood", "dynamics error", "RMS from the recorded ones"],
                *([name, f"{r['log_likelihood']:.2f}", _number(r["dynamics"]),
                   f"{r['distance']:.3f}"] for name, r in inverted["edit"].items()),
            ]), ""]  # fmt: skip
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def plot(record: dict[str, Any], path: Path) -> None:
    """One recorded window, edited towards the policy, and a new window of the policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    example = record["models"][KINDS[0]]["inverted"]["example"]
    obs, action = (torch.tensor(example[name]) for name in ("obs", "action"))
    shown = [(obs[..., i], f"observation {i}") for i in range(min(2, obs.shape[-1]))]
    shown += [(action[..., i], f"action {i}") for i in range(min(2, action.shape[-1]))]
    figure = Figure(figsize=(12, 3), dpi=100)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    styles = (("recorded", "#6b6b6b", "-"), ("edited", "#c8553d", "-"), ("new", "#1f5fa8", ":"))
    for panel, (values, title) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        for line, (name, colour, dash) in zip(values, styles, strict=True):
            panel.plot(line, color=colour, linestyle=dash, label=name)
        panel.set(title=title, xlabel="step")
        panel.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset")
    parser.add_argument("--models", type=Path, help="folder of the models")
    parser.add_argument("--agents", type=Path, help="folder of the policies' arrays")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write table and plots")
    args = parser.parse_args()
    folder = args.results / "steering"
    if not args.table:
        if not (args.dataset and args.models and args.agents):
            parser.error("--dataset, --models and --agents are needed, or --table")
        record = measure(args.dataset, args.models, args.agents)
        write_text(folder / f"{record['dataset']}.json", json.dumps(record, indent=1) + "\n")
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    write_text(args.results / "tables" / "steering.md", page(records))
    for record in records:
        plot(record, folder / f"{record['dataset']}.png")


if __name__ == "__main__":
    main()
