"""A planner's run: recorded like a learner's, resumed to the same bits, refused in one sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from straight_planner import record_drift

from offdiff.checkpoint import load_planner, load_policy
from offdiff.cli import main
from offdiff.config import RunConfig
from offdiff.core.errors import InputError
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.planners.fit import PlannerFit
from offdiff.planners.veteran import VeteranConfig
from offdiff.records import read_record
from offdiff.run import run

PLANNER = VeteranConfig(
    horizon=3, network="mlp-128", hidden=(16, 16), candidates=2, levels=2, batch_size=16,
    replan_every=2, holdout=0.2,
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    record_drift(tmp_path / "drift.hdf5")
    return RunConfig(
        dataset=str(tmp_path / "drift.hdf5"), planner=PLANNER, seeds=(0, 3), updates=6, log_every=2,
        final_episodes=2, out=tmp_path / "runs", device="cpu", checkpoint_seconds=0,
    )  # fmt: skip


def files(out: Path) -> dict[str, bytes]:
    """Everything but what tells times."""
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(p.relative_to(out)): p.read_bytes() for p in paths if p.name != "run.json"}


def test_records_tell_what_learners_records_tell(config: RunConfig) -> None:
    first, second = run(config, progress=False)
    assert (first.algo["name"], first.algo["kind"]) == ("veteran", "planner")
    assert first.algo["n_gradient_steps"] == 6
    assert [len(r.eval["returns"]) for r in (first, second)] == [2, 2]
    assert first.eval["action_mode"] == "a plan every 2 steps"
    assert first.cost["calls_per_decision"] == PLANNER.levels
    assert first.cost["decision_seconds"] > 0
    assert first.config["diff_from_default"]["horizon"] == 3
    assert second.seeds["train"] == 3
    assert sorted(files(config.out)) == [
        f"drift/veteran/{Path(first.run_id).parts[-2]}/{name}"
        for name in (
            "config.json", "seed-0/metrics.csv", "seed-0/policy.safetensors",
            "seed-3/metrics.csv", "seed-3/policy.safetensors",
        )
    ]  # fmt: skip
    assert run(config, progress=False) == [first, second]  # read, not made again


@pytest.mark.parametrize("stop_after", [3, 6, 9])
def test_a_stopped_run_goes_on_to_the_same_bits(
    config: RunConfig, stop_after: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped within the first seed, between the seeds, within the second."""
    whole = run(replace(config, out=tmp_path / "whole"), progress=False)
    step, taken = PlannerFit.step, 0

    def stopping(fit: PlannerFit) -> dict[str, torch.Tensor]:
        nonlocal taken
        taken += 1
        if taken > stop_after:
            raise KeyboardInterrupt
        return step(fit)

    monkeypatch.setattr(PlannerFit, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=False)
    with pytest.raises(InputError, match="holds an unfinished run"):
        run(config, progress=False)
    monkeypatch.setattr(PlannerFit, "step", step)
    resumed = run(replace(config, resume=True), progress=False)
    assert files(config.out) == files(tmp_path / "whole")
    assert [r.eval for r in resumed] == [r.eval for r in whole]


def test_what_cannot_work_leaves_nothing_behind(config: RunConfig) -> None:
    with pytest.raises(InputError, match="reaches 30 steps ahead, and the longest episode has 20"):
        run(replace(config, planner=replace(PLANNER, horizon=31)), progress=False)
    assert not config.out.exists()


def test_a_wanted_return_far_outside_the_data_is_warned_of(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run(replace(config, planner=replace(PLANNER, wanted_return=1e4)), progress=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "wanted return of 10000 lies far outside the data's, which go from" in line


@pytest.mark.parametrize("part", ["inverse", "critic"])
def test_a_file_without_a_part_is_refused_by_its_name(config: RunConfig, part: str) -> None:
    record = run(replace(config, seeds=(0,)), progress=False)[0]
    path = config.out / record.run_id / "policy.safetensors"
    tensors, meta = load_tensors(path)
    save_tensors(path, {k: v for k, v in tensors.items() if not k.startswith(part)}, meta)
    with pytest.raises(InputError, match=rf"lacks what planner veteran needs .*\b{part}\."):
        load_planner(path)


def test_planners_and_policies_are_not_mistaken_for_each_other(
    config: RunConfig, toy_file: Path, tmp_path: Path
) -> None:
    planned = config.out / run(replace(config, seeds=(0,)), progress=False)[0].run_id
    with pytest.raises(InputError, match="holds a planner, not a policy network"):
        load_policy(planned)
    learner = RunConfig(dataset=str(toy_file), updates=2, out=tmp_path / "bc", device="cpu")
    learned = learner.out / run(learner, progress=False)[0].run_id
    with pytest.raises(InputError, match="holds no planner but a policy"):
        load_planner(learned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--planner", "veterans"), "unknown planner 'veterans'; did you mean 'veteran'"),
        (("--planner", "veteran", "--algo", "iql"), "neither --algo nor --published"),
        (("--planner", "veteran", "--augment", "unguided"), "augment is for learners"),
        (("--planner", "offdiff.records:RunRecord"), "RunRecord is no planner config"),
    ],
)
def test_refusals(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_record_can_be_read_back(config: RunConfig) -> None:
    record = run(replace(config, seeds=(0,)), progress=False)[0]
    assert read_record(config.out / record.run_id / "run.json") == record
