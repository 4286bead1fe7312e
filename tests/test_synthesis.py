"""Runs with synthetic experience: augmenters, learners, resuming, several seeds, refusals."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offdiff.algos.bc import BCConfig
from offdiff.algos.cql import CQLConfig
from offdiff.algos.dql import DQLConfig
from offdiff.algos.idql import IDQLConfig
from offdiff.algos.iql import IQLConfig
from offdiff.algos.rebrac import ReBRACConfig
from offdiff.algos.td3bc import TD3BCConfig
from offdiff.augment.base import AugmentConfig, Source
from offdiff.augment.diffusion import (
    PartialPGDConfig,
    PGDConfig,
    ReleasedPGDConfig,
    UnguidedConfig,
)
from offdiff.augment.dynamics import DynamicsConfig
from offdiff.augment.world_model import WorldModelConfig
from offdiff.config import RunConfig
from offdiff.core.errors import InputError
from offdiff.core.protocols import Augmenter, LearnerConfig, Policy
from offdiff.core.tensors import load_tensors
from offdiff.core.types import Trajectories
from offdiff.data.hdf5 import write_hdf5
from offdiff.data.toy import linear_gaussian
from offdiff.diffusion.config import ModelConfig
from offdiff.run import run
from offdiff.synthesis import Synthesis

MODEL = ModelConfig(horizon=4, network="unet-32", steps=6, batch_size=8)
DYNAMICS = DynamicsConfig(hidden=(16, 16), updates=20)
WHEN: dict[str, Any] = {"every": 20, "transitions": 40}
PGD = PGDConfig(model=MODEL, levels=4, **WHEN)
AUGMENTERS: dict[str, AugmentConfig] = {
    "pgd": PGD,
    "pgd-auto": replace(PGD, strength="auto"),
    "filtered": replace(PGD, drop_share=0.2, dynamics=DYNAMICS),
    "pgd-partial": PartialPGDConfig(model=MODEL, **WHEN),
    "pgd-released": ReleasedPGDConfig(model=MODEL, **(WHEN | {"levels": 8})),
    "unguided": UnguidedConfig(model=MODEL, levels=4, solver="dpmpp", **WHEN),
    "world-model": WorldModelConfig(horizon=4, dynamics=DYNAMICS, **(WHEN | {"start": 20})),
}
LEARNERS: dict[str, LearnerConfig] = {
    "bc": BCConfig(hidden=(16, 16), batch_size=16),
    "td3bc": TD3BCConfig(hidden=(16, 16), batch_size=16),
    "iql": IQLConfig(hidden=(16, 16), batch_size=16),
    "cql": CQLConfig(hidden=(16, 16), batch_size=16),
    "rebrac": ReBRACConfig(hidden=(16, 16), batch_size=16),
    "dql": DQLConfig(hidden=(16, 16), batch_size=16, candidates=2, levels=2),
    "idql": IDQLConfig(hidden=(16, 16), batch_size=16, candidates=2, levels=2),
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run on the linear task, with a cache of its own."""
    monkeypatch.setenv("OFFDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("offdiff.diffusion.fit.VALIDATION_WINDOWS", 32)  # most of the time else
    path = tmp_path / "toy.hdf5"
    write_hdf5(path, linear_gaussian(40, 10, terminal_share=0.5), {})
    return RunConfig(
        dataset=str(path), updates=60, log_every=20, device="cpu", out=tmp_path / "runs"
    )


def weights(out: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    (path,) = out.glob(f"*/*/*/seed-{seed}/policy.safetensors")
    return load_tensors(path)[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", AUGMENTERS)
def test_every_augmenter_feeds_a_learner(toy: RunConfig, name: str) -> None:
    config = replace(toy, algo=LEARNERS["iql"], augment=AUGMENTERS[name])
    (record,) = run(config, progress=False)
    assert record.augment["name"] == name.replace("-auto", "").replace("filtered", "pgd")
    expected = [20, 40] if name == "world-model" else [0, 20, 40]
    made = record.augment["generations"]
    assert [row["update"] for row in made] == expected
    assert made[-1]["policy"]["residual_std"] > 0
    assert record.cost["generation_seconds"] > 0
    json.dumps(record.augment, allow_nan=False)
    (folder,) = toy.out.glob("*/*/*")
    assert folder.parent.name.startswith("iql-")
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "metrics.csv", "seed-0", "synthetic.json", "synthetic.png"
    ]  # fmt: skip


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_takes_synthetic_experience(toy: RunConfig, name: str) -> None:
    (with_it,) = run(replace(toy, algo=LEARNERS[name], augment=PGD), progress=False)
    assert len(with_it.augment["generations"]) == 3
    first = weights(toy.out)
    run(replace(toy, algo=LEARNERS[name], out=toy.out / "plain"), progress=False)
    assert not same(first, weights(toy.out / "plain")), "it makes a difference"


def test_all_batches_can_be_synthetic(toy: RunConfig) -> None:
    run(replace(toy, algo=LEARNERS["rebrac"], augment=replace(PGD, share=1.0)), progress=False)


def test_seeds_trained_together_have_synthetic_experience_of_their_own(toy: RunConfig) -> None:
    config = replace(toy, algo=LEARNERS["iql"], augment=PGD)
    records = run(replace(config, seeds=(0, 1)), progress=False)
    last = [r.augment["generations"][-1] for r in records]
    assert last[0]["seed"] == 0
    assert last[1]["seed"] == 1
    assert last[0]["policy"] != last[1]["policy"]
    run(replace(config, seeds=(1,), out=toy.out / "alone"), progress=False)
    joint, alone = weights(toy.out, 1), weights(toy.out / "alone", 1)
    for key, value in alone.items():
        torch.testing.assert_close(joint[key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_a_run_killed_around_a_generation_resumes_to_the_same_bits(
    toy: RunConfig, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    config = replace(
        toy, algo=LEARNERS["iql"], augment=replace(PGD, every=10), checkpoint_seconds=0.0
    )
    (undisturbed,) = run(replace(config, out=toy.out / "whole"), progress=False)

    class Killed(Exception):
        pass

    original, make = Synthesis.generate, Synthesis._make

    def dying(self: Synthesis, training: Any, update: int) -> None:
        if update == 40 and moment == "before":
            raise Killed
        original(self, training, update)
        if update == 40:
            raise Killed

    def dying_half(self: Synthesis, learner: Any, update: int) -> None:
        make(self, learner, update)
        if update == 40:
            raise Killed

    if moment == "half":
        monkeypatch.setattr(Synthesis, "_make", dying_half)
    else:
        monkeypatch.setattr(Synthesis, "generate", dying)
    with pytest.raises(Killed):
        run(replace(config, out=toy.out / "killed"), progress=False)
    monkeypatch.setattr(Synthesis, "generate", original)
    monkeypatch.setattr(Synthesis, "_make", make)
    (resumed,) = run(replace(config, out=toy.out / "killed", resume=True), progress=False)
    assert same(weights(toy.out / "whole"), weights(toy.out / "killed"))
    for name in ("metrics.csv", "synthetic.json"):
        whole, killed = (next((toy.out / k).rglob(name)).read_text() for k in ("whole", "killed"))
        assert whole == killed
    assert resumed.augment == undisturbed.augment
    assert [row["update"] for row in resumed.augment["generations"]] == [0, 10, 20, 30, 40, 50]


def test_the_model_is_trained_once(toy: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(toy, algo=LEARNERS["bc"], augment=PGD)
    run(config, progress=False)
    first = weights(toy.out)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("offdiff.augment.cache.train_model", never)
    run(replace(config, overwrite=True), progress=False)
    assert same(first, weights(toy.out)), "from the cache comes the very same model"


def test_models_of_other_data_are_refused(toy: RunConfig, tmp_path: Path) -> None:
    run(replace(toy, algo=LEARNERS["bc"], augment=PGD), progress=False)
    (model,) = (tmp_path / "cache").rglob("model.safetensors")
    write_hdf5(tmp_path / "other.hdf5", linear_gaussian(41, 10), {})
    config = replace(
        toy, dataset=str(tmp_path / "other.hdf5"), augment=replace(PGD, model_file=str(model))
    )
    with pytest.raises(InputError, match="models other data"):
        run(config, progress=False)
    assert not list(toy.out.glob("other/**/config.json")), "nothing was begun"


def test_runs_that_would_generate_nothing_are_refused(toy: RunConfig) -> None:
    with pytest.raises(InputError, match="start must lie below updates"):
        replace(toy, augment=replace(PGD, start=60))
    with pytest.raises(InputError, match=r"share of 0\.001 of a batch of 16 is no transition"):
        replace(toy, algo=LEARNERS["bc"], augment=replace(PGD, share=0.001))


def test_another_model_in_the_same_file_is_another_run(toy: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    config = replace(toy, augment=replace(PGD, model_file=str(file)))
    found = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        found.append(config.identity("data"))
    assert found[0] != found[1]


def test_windows_longer_than_every_episode_are_refused(toy: RunConfig, tmp_path: Path) -> None:
    write_hdf5(tmp_path / "short.hdf5", linear_gaussian(9, 5), {})
    config = replace(
        toy,
        dataset=str(tmp_path / "short.hdf5"),
        augment=replace(PGD, model=replace(MODEL, horizon=6)),
    )
    with pytest.raises(InputError, match="longest episode has 5; shorten the horizon"):
        run(config, progress=False)


def test_pools_beyond_memory_are_refused_with_their_size(toy: RunConfig) -> None:
    config = replace(toy, algo=LEARNERS["bc"], augment=replace(PGD, transitions=10**12))
    with pytest.raises(InputError, match=r"GiB and cpu has"):
        run(config, progress=False)


@pytest.mark.parametrize(
    "change",
    [{"share": 0.0}, {"share": 1.1}, {"every": 0}, {"pools": 0}, {"levels": 0}, {"strength": -1.0},
     {"policy_std": 0.0}, {"drop_share": 1.0}, {"strength": float("nan")}, {"chunk": -1},
     {"threads": -1}, {"strength": float("inf")}],
)  # fmt: skip
def test_values_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(PGD, **change)


@dataclass(frozen=True, kw_only=True)
class EchoConfig(AugmentConfig):
    """An augmenter as another package would write it: the data's own first windows."""

    length: int = 3

    def build(self, source: Source) -> Augmenter:
        return Echo(source, self.length)


class Echo:
    def __init__(self, source: Source, length: int) -> None:
        from offdiff.data.windows import Windows

        self.windows, self.window = Windows.of(source.episodes, length, source.device), length

    def generate(
        self, n: int, policy: Policy | None, *, generator: torch.Generator
    ) -> Trajectories:
        return self.windows.sample(n, generator=generator)

    def provenance(self) -> dict[str, Any]:
        return {"echo": self.window}


def test_an_augmenter_of_another_package_is_one_class(toy: RunConfig) -> None:
    augment = EchoConfig(**WHEN)
    (record,) = run(replace(toy, algo=LEARNERS["bc"], augment=augment), progress=False)
    assert record.augment["generations"][0]["provenance"] == {"echo": 3}
    assert record.augment["name"].endswith(":EchoConfig")
